"""Text from data and files, made fit to be printed."""

import reprlib
import unicodedata

MOST_CHARACTERS = 1000  # of an error: beyond any message of ours
# They end a line, move the cursor or make a terminal do something; or are no text in any encoding (Cs).
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
_DIRECTIONS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they reorder what is on the line
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200


def printable(text: object) -> str:
    """`str(text)` with an escape such as `\\x1b` for each character that does more than to be seen."""
    return "".join(_escaped(character) if _does_more(character) else character for character in str(text))


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """`text`, or its beginning and its end where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} ... ({len(text) - 2 * half:,} characters left out) ... {text[-half:]}"


def short_repr(value: object) -> str:
    """`repr(value)` of a value that somebody gave: a line at most, of a list within itself, too."""
    return _REPR.repr(value)


def _does_more(character: str) -> bool:
    return unicodedata.category(character) in _UNPRINTABLE or character in _DIRECTIONS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
