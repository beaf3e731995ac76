"""The spoken code: a tag and three words.  Rule: whatever is close to exactly one word of the list is that word.

The list is BIP-39's English one, 2048 words of which the first four letters tell each from all others, so that a word can be
cut short and most slips can be mended: `words.txt` beside this module, in the public domain.
"""

from __future__ import annotations

import bisect
import difflib
import functools
import pkgutil
import re
from typing import Final

from msgspec import Struct

from p2ptunnel.errors import InvalidCodeError, InvalidTagError
from p2ptunnel.types import Tag, parse_tag

__all__ = ["CODE_BITS", "SpokenCode", "complete_word", "parse_code", "parse_word", "words_of"]

CODE_BITS: Final = 33
"""How much a guesser has to guess: three words of 2^11."""

_WORDS: Final = 3
_WORD_BITS: Final = 11
_SHORTEST: Final = 4  # letters that are completed or mended: no two words begin with the same four
_ORDINALS: Final = ("first", "second", "third")
_CODE: Final = re.compile(r"\s*(\S.*?)" + r"[\s-]+([^\s-]+)" * _WORDS + r"\s*", re.DOTALL)


class SpokenCode(Struct, frozen=True):
    """What one person tells another: who to ask for, and three words that prove the asker was told.

    `str` gives the one way to write it, `tag-word-word-word`; its repr shows the tag only.
    """

    tag: Tag
    words: str
    """Joined by hyphens: the password of the exchange."""

    def __str__(self) -> str:
        return f"{self.tag}-{self.words}"

    def __repr__(self) -> str:
        return f"SpokenCode({self.tag}-…)"


def words_of(number: int) -> str:
    """Return the three words that stand for a number of `CODE_BITS` random bits, joined by hyphens."""
    listed = _listed()
    places = (number >> _WORD_BITS * place & (1 << _WORD_BITS) - 1 for place in reversed(range(_WORDS)))
    return "-".join(listed[place] for place in places)


def parse_code(text: str) -> SpokenCode:
    """Return the code in `text`: a tag and three words, with hyphens or spaces between them, in any case.

    Words may be cut short to four letters, and a slip of one letter is mended where only one word is that near.

    Raises:
        InvalidCodeError: It is no code; its text holds nothing of what was typed.
    """
    found = _CODE.fullmatch(text.lower())
    if found is None:
        raise InvalidCodeError("a spoken code is a tag and three words", "For instance: home-nas-apple-river-zoo")
    tag, *words = found.groups()
    try:
        parse_tag(tag)
    except InvalidTagError:
        raise InvalidCodeError("what stands before the three words is no tag", InvalidTagError.hint) from None
    return SpokenCode(tag, "-".join(parse_word(word, place) for place, word in enumerate(words)))


def parse_word(text: str, place: int = 0) -> str:
    """Return the word of the list that `text` is, begins, or misses by one letter.

    Args:
        text: In lower case.
        place: Which of the three words it is, from 0; for the error.

    Raises:
        InvalidCodeError: It is none, or could be several; the hint names the nearest.
    """
    listed = _listed()
    if _at(text) < len(listed) and listed[_at(text)] == text:
        return text
    near = (complete_word(text) or [word for word in listed if _is_one_slip(text, word)]) if len(text) >= _SHORTEST else []
    if len(near) == 1:
        return near[0]
    nearest = near or difflib.get_close_matches(text, listed, n=3) or complete_word(text[:2])
    hint = f"Nearest to it: {', '.join(nearest[:5])}." if nearest else "Ask for the code again."
    if not (place or near):
        hint += " Or is a word missing? A code is a tag and three words."
    which = "could be several of the list" if near else "is not in the list"
    raise InvalidCodeError(f"the {_ORDINALS[place]} word {which}", hint)


def complete_word(beginning: str) -> list[str]:
    """Return the words that begin so; one alone as soon as there are four letters."""
    listed = _listed()
    return listed[_at(beginning) : bisect.bisect_left(listed, beginning + "~")]


def _at(text: str) -> int:
    return bisect.bisect_left(_listed(), text)


def _is_one_slip(text: str, word: str) -> bool:
    """Tell whether one letter too many, too few, or other, or two letters swapped, makes `word` of `text`."""
    if abs(len(text) - len(word)) > 1:
        return False
    same = next((place for place, (ours, theirs) in enumerate(zip(text, word, strict=False)) if ours != theirs), None)
    if same is None:  # one is the beginning of the other
        return True
    ours, theirs = text[same:], word[same:]
    swapped = ours[1::-1] + ours[2:] == theirs
    return swapped or ours[1:] == theirs[1:] or ours[1:] == theirs or ours == theirs[1:]


@functools.cache
def _listed() -> list[str]:
    data = pkgutil.get_data("p2ptunnel.wire", "words.txt")
    assert data is not None  # it is a part of the package
    return data.decode("ascii").split()
