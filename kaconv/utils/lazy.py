"""Importing a package's names on first use."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from kaconv.utils.extras import missing_package


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__` that imports what needs torch on first use, so that `--help` answers at once.

    Args:
        package: the package's `__name__`.
        modules: for each public name, the module within the package that has it.
    """

    def __getattr__(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(import_module(f"{package}.{modules[name]}"), name)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(missing_package(error), name=error.name) from None

    return __getattr__
