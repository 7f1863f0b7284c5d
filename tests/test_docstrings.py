"""Public docstrings are there and begin with a verb or a noun phrase."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUESTION_WORDS = {"What", "How", "Which", "Whether"}


def files() -> list[Path]:
    """The modules of both packages."""
    found = [path for package in ("kaconv", "kaviz") for path in (ROOT / package).rglob("*.py")]
    return sorted(path for path in found if path.read_text(encoding="utf-8"))


def public(node: ast.AST, name: str) -> Iterator[tuple[str, str | None]]:
    """Names and docstrings of a module or class, and of what is public in it.

    A method of a class with a base may have the base's docstring; an overload has that of what it is one of.
    """
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        yield name, ast.get_docstring(node)
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if not isinstance(child, ast.ClassDef | ast.FunctionDef) or child.name.startswith("_"):
                continue
            overload = any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in child.decorator_list)
            inherited = isinstance(node, ast.ClassDef) and node.bases and ast.get_docstring(child) is None
            if not overload and not inherited:
                yield from public(child, f"{name}.{child.name}")


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_public_docstrings_begin_with_a_verb_or_a_noun_phrase(path: Path) -> None:
    docstrings = list(public(ast.parse(path.read_text(encoding="utf-8")), path.stem))
    assert not [name for name, text in docstrings if not text]
    assert not [f"{name}: {text}" for name, text in docstrings if text and text.split()[0] in QUESTION_WORDS]
