"""Training and evaluation: one loop for the notebook, the terminal and `torchrun`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kaconv.training.config import TrainConfig

if TYPE_CHECKING:
    from kaconv.training.evaluation import Evaluation, evaluate, evaluate_checkpoint
    from kaconv.training.launch import launch
    from kaconv.training.recipes import load_recipe
    from kaconv.training.run import Run
    from kaconv.training.study import compare, learning_curves, study_config, summarise, train_study
    from kaconv.training.trainer import fit

__all__ = [
    "Evaluation",
    "Run",
    "TrainConfig",
    "compare",
    "evaluate",
    "evaluate_checkpoint",
    "fit",
    "launch",
    "learning_curves",
    "load_recipe",
    "study_config",
    "summarise",
    "train_study",
]

_MODULES = {
    "Evaluation": "evaluation",
    "evaluate": "evaluation",
    "evaluate_checkpoint": "evaluation",
    "Run": "run",
    "launch": "launch",
    "load_recipe": "recipes",
    "compare": "study",
    "learning_curves": "study",
    "study_config": "study",
    "summarise": "study",
    "train_study": "study",
    "fit": "trainer",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use, so that `kaconv --help` answers at once."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
