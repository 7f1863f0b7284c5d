"""Public docstrings are there and begin with a verb or a noun phrase."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = [
    "kaconv/__init__.py",
    "kaconv/attention",
    "kaconv/bench",
    "kaconv/cli.py",
    "kaconv/data",
    "kaconv/inference",
    "kaconv/paper",
    "kaconv/training",
    "kaconv/utils",
]
QUESTION_WORDS = {"What", "How", "Which", "Whether"}


def files() -> list[Path]:
    """The modules of all rooms."""
    found = [path for room in ROOMS for path in [ROOT / room, *(ROOT / room).rglob("*.py")] if path.is_file()]
    return sorted(path for path in found if path.read_text(encoding="utf-8"))


def public(node: ast.AST, name: str) -> Iterator[tuple[str, str | None]]:
    """Names and docstrings of a module or class, and of what is public in it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        yield name, ast.get_docstring(node)
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
                yield from public(child, f"{name}.{child.name}")


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_public_docstrings_begin_with_a_verb_or_a_noun_phrase(path: Path) -> None:
    docstrings = list(public(ast.parse(path.read_text(encoding="utf-8")), path.stem))
    assert not [name for name, text in docstrings if not text]
    assert not [f"{name}: {text}" for name, text in docstrings if text and text.split()[0] in QUESTION_WORDS]
