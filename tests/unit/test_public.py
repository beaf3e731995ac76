"""The public names of the package."""

import subprocess
import sys

import pytest

import p2ptunnel


@pytest.mark.parametrize("name", p2ptunnel.__all__)
def test_every_public_name_loads_from_its_home(name: str) -> None:
    value = getattr(p2ptunnel, name)
    assert value is not None
    if name != "__version__":
        assert value.__name__ == name
        assert value.__module__ == f"p2ptunnel.{p2ptunnel._HOMES[name]}"


def test_all_names_have_a_home_and_every_home_is_public() -> None:
    assert set(p2ptunnel.__all__) - {"__version__"} == set(p2ptunnel._HOMES)
    assert dir(p2ptunnel) == sorted(p2ptunnel.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        p2ptunnel.nothing  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = (
        "import sys, p2ptunnel; print([m for m in ('asyncio', 'ssl', 'cryptography', 'msgspec', 'click') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
