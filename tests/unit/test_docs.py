"""The documentation says what is so: what is made from the code is current, links lead somewhere, examples are real."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import click
import pytest

import p2ptunnel
from p2ptunnel.cli.main import root
from p2ptunnel.cli.settings import Settings
from scripts.write_reference import PARTS, outdated

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CONSOLE = re.compile(r"^\w*\$\s+(.*)$", re.MULTILINE)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return [text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as mkdocs makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-") for heading in headings}


# --- made from the code -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_a_part_made_from_the_code_is_current(part: str) -> None:
    assert not outdated(part), f"{PARTS[part][0]} has fallen behind: make fmt"


def test_the_page_of_messages_shows_every_vector() -> None:
    page = (DOCS / "protocol" / "messages.md").read_text(encoding="utf-8")
    table = json.loads((ROOT / "tests" / "vectors" / "messages.json").read_text(encoding="utf-8"))
    missing = [v["name"] for v in table["exact"] + table["decode_only"] if f"\n{v['wire'].strip()}\n" not in page]
    assert missing == []


def test_the_reference_has_every_public_name_and_where_it_lives() -> None:
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    rendered = {*re.findall(r"^::: (\S+)$", page, re.MULTILINE), "p2ptunnel.errors"}  # errors have a page of their own
    public = [name for name in p2ptunnel.__all__ if name != "__version__"]
    assert [name for name in public if f"`{name}`" not in page] == []
    assert [name for name in public if getattr(p2ptunnel, name).__module__ not in rendered] == []


# --- links and navigation ---------------------------------------------------------------------------------------------


@every_page
def test_every_link_inside_the_project_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_stands_in_the_navigation_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2].partition("\nplugins:")[0]
    named = re.findall(r"[\w/-]+\.md", navigation)
    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


# --- examples ---------------------------------------------------------------------------------------------------------


@every_page
def test_every_python_example_is_python_and_names_what_there_is(page: Path) -> None:
    for block in blocks(page, "python"):
        tree = compile(block, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("p2ptunnel"):
                module = __import__(node.module or "", fromlist=["*"])
                assert {name.name for name in node.names} <= set(module.__all__), node.module


@every_page
def test_every_command_shown_is_one_that_the_program_takes(page: Path) -> None:
    for block in blocks(page, "console"):
        for line in CONSOLE.findall(block):
            for command in re.split(r"\||&&|#|>|<", line):
                words = shlex.split(command)
                if "p2ptunnel" in words:
                    parse(words[words.index("p2ptunnel") + 1 :])


def parse(words: list[str]) -> None:
    """Parse a command line without running it.

    Raises:
        click.UsageError: The program would refuse it.
    """
    command: click.Command = root
    context = click.Context(root, info_name="p2ptunnel", obj=Settings(), **root.context_settings)
    while isinstance(command, click.Group):
        words = command.make_parser(context).parse_args(list(words))[1]
        if not words:
            return
        name, inner, words = command.resolve_command(context, words)
        assert inner is not None
        context, command = click.Context(inner, parent=context, info_name=name), inner
    command.make_context(context.info_name, list(words), parent=context.parent)


@pytest.mark.parametrize("words", [["frobnicate"], ["serve", "--nobody"], ["--nothing", "id"], ["peers", "burn", "x"]])
def test_a_command_that_the_program_does_not_take_would_be_noticed(words: list[str]) -> None:
    with pytest.raises(click.UsageError):
        parse(words)


# --- what must stand where --------------------------------------------------------------------------------------------


def test_the_readme_and_the_security_page_promise_the_same() -> None:
    promised = (
        "can deny service and see who talks to whom, when and how much",
        "read, alter, truncate unnoticed, replay or impersonate",
        "reaches only what you listed",
        "anonymity; availability against",
    )

    def words(text: str) -> set[str]:
        return {promise for promise in promised if promise in text}

    readme = re.sub(r"[>\s]+", " ", (ROOT / "README.md").read_text(encoding="utf-8"))
    page = re.sub(r"[>\s]+", " ", (DOCS / "explanation" / "security.md").read_text(encoding="utf-8"))
    assert words(readme) == words(page) == set(promised)


def test_the_version_in_the_changelog_is_the_packages() -> None:
    assert f"\n## {p2ptunnel.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_no_page_names_a_place_on_somebodys_machine() -> None:
    found = [page.name for page in PAGES if re.search(r"/(tmp|work|root|home)/\w", page.read_text(encoding="utf-8"))]
    assert found == []
