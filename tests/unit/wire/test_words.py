"""Spoken codes."""

from __future__ import annotations

import hashlib
from importlib.resources import files

import pytest

from p2ptunnel.errors import InvalidCodeError
from p2ptunnel.wire.words import CODE_BITS, SpokenCode, complete_word, parse_code, parse_word, words_of

CODE = SpokenCode("home-nas", "apple-river-zoo")


def listed() -> list[str]:
    return files("p2ptunnel.wire").joinpath("words.txt").read_text(encoding="ascii").split()


def test_the_list_is_the_one_that_other_programs_have() -> None:
    text = files("p2ptunnel.wire").joinpath("words.txt").read_bytes()
    assert hashlib.sha256(text).hexdigest() == "2f5eed53a4727b4bf8880d8f3f199efc90e58503646d9ff8eff3a2ed3b24dbda"


def test_the_list_is_sorted_and_four_letters_tell_its_words_apart() -> None:
    words = listed()
    assert len(words) == 2048
    assert words == sorted(words)
    assert len({word[:4] for word in words}) == 2048


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "abandon-abandon-abandon"), (2**CODE_BITS - 1, "zoo-zoo-zoo"), (2**22 + 2**11 + 2, "ability-ability-able")],
)
def test_a_number_has_three_words(number: int, words: str) -> None:
    assert words_of(number) == words


@pytest.mark.parametrize(
    "text",
    [
        "home-nas-apple-river-zoo",
        "home-nas apple river zoo",
        "  HOME-NAS  Apple River\tZoo\n",
        "home-nas-appl-rive-zoo",
        "home-nas appple rivre zoo",
        "home-nas - apple - river - zoo",
    ],
)
def test_a_code_is_read_however_it_was_written(text: str) -> None:
    assert parse_code(text) == CODE


def test_a_code_is_written_in_one_way() -> None:
    assert str(CODE) == "home-nas-apple-river-zoo"


def test_a_code_does_not_show_its_words() -> None:
    assert repr(CODE) == "SpokenCode(home-nas-…)"


@pytest.mark.parametrize(
    "text", ["", "home-nas", "apple-river-zoo", "home apple river", "-apple-river-zoo", "- apple river zoo"]
)
def test_what_is_no_code_is_refused(text: str) -> None:
    with pytest.raises(InvalidCodeError, match=r"a tag and three words|is no tag"):
        parse_code(text)


@pytest.mark.parametrize(
    ("text", "which", "nearest"),
    [
        ("home-nas-xylophone-river-zoo", "the first word is not in the list", "Nearest to it"),
        ("home-nas-apple-rver-zoo", "the second word could be several of the list", "river"),
        ("home-nas-apple-river-qqqq", "the third word is not in the list", "Ask for the code again."),
        ("home-nas-apple-aple-zoo", "the second word could be several of the list", "able, apple"),
    ],
)
def test_a_word_that_cannot_be_mended_is_named_by_its_place_only(text: str, which: str, nearest: str) -> None:
    with pytest.raises(InvalidCodeError, match=which) as caught:
        parse_code(text)
    assert nearest in caught.value.hint
    assert not any(part in str(caught.value) for part in text.split("-")[2:])


def test_who_has_left_out_a_word_is_told_of_how_many_there_are() -> None:
    with pytest.raises(InvalidCodeError) as caught:
        parse_code("home-nas-aple-rivver")
    assert caught.value.hint.endswith("Or is a word missing? A code is a tag and three words.")
    with pytest.raises(InvalidCodeError) as caught:
        parse_code("home-nas-apple-river-qqqq")
    assert "missing" not in caught.value.hint


def test_every_word_is_itself_and_so_are_its_first_four_letters() -> None:
    for word in listed():
        assert parse_word(word) == word
        assert parse_word(word[:4]) == word


def test_a_mended_word_is_one_slip_away() -> None:
    assert [parse_word(slip) for slip in ("rivver", "rivr", "riveq", "irver")] == ["river"] * 4


def test_what_is_too_short_to_tell_is_not_guessed() -> None:
    with pytest.raises(InvalidCodeError):
        parse_word("zo")


def test_beginnings_are_completed() -> None:
    assert complete_word("zo") == ["zone", "zoo"]
    assert complete_word("appl") == ["apple"]
    assert complete_word("qx") == []
