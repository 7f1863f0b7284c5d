"""Functions whose result `torch.compile` takes as it is."""

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)


def assume_constant_result(function: Function) -> Function:
    """Mark a function as `torch.compiler.assume_constant_result` does, whose import of TorchDynamo takes a second."""
    setattr(function, "_dynamo_marked_constant", True)  # noqa: B010 (no attribute that a type checker knows)
    return function
