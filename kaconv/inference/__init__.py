"""Running a trained model: predictions of files, errors over data sets."""

from typing import TYPE_CHECKING

from kaconv.utils.lazy import lazy_names

if TYPE_CHECKING:
    from kaconv.inference.evaluation import Evaluation, evaluate, evaluate_checkpoint
    from kaconv.inference.prediction import predict
    from kaconv.inference.robustness import corruption_errors

__all__ = ["Evaluation", "corruption_errors", "evaluate", "evaluate_checkpoint", "predict"]

_MODULES = {
    "Evaluation": "evaluation",
    "corruption_errors": "robustness",
    "evaluate": "evaluation",
    "evaluate_checkpoint": "evaluation",
    "predict": "prediction",
}
__getattr__ = lazy_names(__name__, _MODULES)
