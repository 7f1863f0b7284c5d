"""Running a trained model: predictions of files, errors over data sets."""

from kaconv.inference.evaluation import Evaluation, evaluate, evaluate_checkpoint
from kaconv.inference.predict import predict

__all__ = ["Evaluation", "evaluate", "evaluate_checkpoint", "predict"]
