"""The order of the floors in ARCHITECTURE.md: imports run downward only, lazy ones and those for types included."""

import ast
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    ["kaconv.utils"],
    ["kaconv.ops", "kaconv.data"],
    ["kaconv.layers"],
    ["kaconv.models"],
    ["kaconv.inference"],
    ["kaconv.training", "kaconv.attention", "kaconv.bench", "kaconv.paper"],
    ["kaconv"],
    ["kaconv.cli"],
    ["kaconv.__main__"],
    ["kaviz.style", "kaviz.figures"],
    ["kaviz.attribution", "kaviz.plots"],
    ["kaviz.live", "kaviz.explorer"],
    ["kaviz.reports"],
    ["kaviz", "kaviz.cli"],
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
FILES = [path for package in ("kaconv", "kaviz") for path in sorted((ROOT / package).rglob("*.py"))]


def room_of(module: str) -> str:
    return module if module in FLOOR else ".".join(module.split(".")[:2])


def imported(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules |= {name if name in FLOOR else node.module for name in names}
    return {module for module in modules if module.split(".")[0] in ("kaconv", "kaviz")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_downward(path: Path) -> None:
    here = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    up = {module for module in imported(path) if room_of(module) != here and FLOOR[room_of(module)] >= FLOOR[here]}
    assert not up


def test_every_module_has_a_room() -> None:
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES]
    assert {room_of(module) for module in modules} == set(FLOOR)


PACKAGES = [
    "kaconv",
    "kaviz",
    *(
        f"{top}.{name}"
        for top in ("kaconv", "kaviz")
        for name in (module.name for module in pkgutil.iter_modules([str(ROOT / top)]) if module.ispkg)
    ),
]


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_there_and_no_modules(package: str) -> None:
    """A submodule of the same name would take a public name's place once it is imported."""
    there = importlib.import_module(package)
    submodules = {module.name for module in pkgutil.iter_modules(there.__path__)}
    names = getattr(there, "__all__", [])
    assert names or package == "kaconv.utils"  # whose modules are what others import
    assert not submodules & set(names)
    assert not [name for name in names if isinstance(getattr(there, name), ModuleType)]
