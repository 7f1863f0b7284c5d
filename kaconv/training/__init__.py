"""Training and evaluation: one loop for the notebook, the terminal and `torchrun`."""

from typing import TYPE_CHECKING

from kaconv.training.config import TrainConfig
from kaconv.utils.lazy import lazy_names

if TYPE_CHECKING:
    from kaconv.training.processes import launch
    from kaconv.training.recipes import load_recipe
    from kaconv.training.run import Run
    from kaconv.training.study import compare, learning_curves, study_config, summarise, train_study
    from kaconv.training.study_results import read_study_results, study_command
    from kaconv.training.trainer import fit

__all__ = [
    "Run",
    "TrainConfig",
    "compare",
    "fit",
    "launch",
    "learning_curves",
    "load_recipe",
    "read_study_results",
    "study_command",
    "study_config",
    "summarise",
    "train_study",
]

_MODULES = {
    "Run": "run",
    "launch": "processes",
    "load_recipe": "recipes",
    "read_study_results": "study_results",
    "study_command": "study_results",
    "compare": "study",
    "learning_curves": "study",
    "study_config": "study",
    "summarise": "study",
    "train_study": "study",
    "fit": "trainer",
}


__getattr__ = lazy_names(__name__, _MODULES)
