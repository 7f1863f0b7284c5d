"""Rules for values that a user gives, and what is said of a bad one."""

from collections.abc import Callable
from pathlib import Path

from kaconv.utils.text import short_repr

Rule = tuple[str, Callable[[object], bool]]  # what a value may be, in words and as a test


def check_values(values: dict, rules: dict[str, Rule]) -> None:
    """ValueError for the first value that its rule does not allow, with what it may be."""
    for name, (allowed, is_allowed) in rules.items():
        if not is_allowed(values[name]):
            raise ValueError(f"{name} must be {allowed}, got {short_repr(values[name])}")


def file_in_the_way(folder: Path) -> Path | None:
    """The folder itself or a parent of it that exists but is not a folder."""
    return next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)


def whole(least: int, most: int | None = None) -> Rule:
    """A whole number within limits, both included."""
    allowed = f"a whole number >= {least}" if most is None else f"a whole number from {least} to {most}"
    return allowed, lambda value: type(value) is int and least <= value and (most is None or value <= most)


def or_none(rule: Rule) -> Rule:
    """A rule that also allows None."""
    allowed, is_allowed = rule
    return f"{allowed}, or None", lambda value: value is None or is_allowed(value)


def is_number(is_allowed: Callable[[float], bool]) -> Callable[[object], bool]:
    """The test for a number, no truth value, that passes another test; an int must be within the range of floats."""

    def is_allowed_number(value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        try:
            return is_allowed(float(value))
        except OverflowError:
            return False

    return is_allowed_number


def is_one_of(*allowed: str) -> Rule:
    """One of a few words."""
    return f"one of {', '.join(allowed)}", lambda value: value in allowed


PERCENT: Rule = ("a number from 0 to 100", is_number(lambda value: 0 <= value <= 100))
TEXT: Rule = ("text", lambda value: isinstance(value, str))
TRUE_OR_FALSE: Rule = ("true or false", lambda value: isinstance(value, bool))
MOST_PICTURES, MOST_WORKERS = 2**20, 1024  # far above what is of use; beyond them torch fails in obscure ways
MOST_PIXELS = 8192  # of a side: squared, it is within what Pillow deems safe
MOST_SEED = 2**32 - 1  # NumPy's limit
VAL_FRACTION = 0.2  # of each class, where a folder of classes has no splits
SPLIT_RULE: Rule = ("a number between 0 and 1", is_number(lambda value: 0 < value < 1))
EVALUATION_RULES: dict[str, Rule] = {
    "batch_size": whole(1, MOST_PICTURES),
    "workers": whole(0, MOST_WORKERS),
    "max_broken": whole(0),
}
