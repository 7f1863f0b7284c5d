"""Checkpoints as files for other runtimes: ONNX, and PyTorch's own exported programs."""

import json
import warnings
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from kaconv.models.checkpoints import METADATA_KEY, Checkpoint
from kaconv.ops import use_backend
from kaconv.utils.extras import missing_package
from kaconv.utils.files import replacing

FORMATS = ("onnx", "pt2")


def export(checkpoint: Checkpoint, path: str | Path, format: str) -> None:
    """Write a checkpoint's model, with one input `images` (N, 3, S, S), prepared, and one output `logits`; any N.

    The file also holds, as JSON, the model's name, classes, preprocessing and the checkpoint's info: in ONNX as the
    metadata property `kaconv`, in pt2 as the extra file `kaconv.json`. The layers are exported as PyTorch's own
    operators, so that the file runs without kaconv. A program of `torch.export.export(model, ...)` keeps the fused
    ones, and so does the package that `torch._inductor.aoti_compile_and_package` makes of it: these run in Python,
    where kaconv has been imported, for it is there that the fused operators are.

    Args:
        format: "onnx" or "pt2" (for `torch.export.load`).

    Raises:
        ValueError: for another format, or a model that gives no tensor, such as a detector.
        ModuleNotFoundError: if what writes ONNX is not installed.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; choose from {', '.join(FORMATS)}")
    metadata = json.dumps(checkpoint.metadata())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        if format == "onnx":
            _write_onnx(checkpoint, path, metadata)
        else:
            program = _program(checkpoint)
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.export.save(program, file, extra_files={f"{METADATA_KEY}.json": metadata})


def _program(checkpoint: Checkpoint) -> ExportedProgram:
    size = checkpoint.preprocessing.image_size
    # Two images: a batch of one would be taken for a constant.
    images = torch.zeros(2, 3, size, size)
    with use_backend("eager"):
        with torch.no_grad():
            output = checkpoint.model.eval()(images)
        if not isinstance(output, torch.Tensor):
            kind = type(output).__name__
            raise ValueError(
                f"only models that give a tensor are exported; {checkpoint.name} gives a {kind}. "
                "torch.onnx.export(model, ([image],), path, dynamo=False) writes a detector"
            )
        return torch.export.export(checkpoint.model.eval(), (images,), dynamic_shapes=({0: Dim("batch")},))


def _write_onnx(checkpoint: Checkpoint, path: str | Path, metadata: str) -> None:
    try:
        import onnx  # noqa: F401 (onnxscript needs it)
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(missing_package(error), name=error.name) from None
    exported = torch.onnx.export(
        _program(checkpoint),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
        optimize=False,  # it takes minutes for thousands of small operators, and runtimes do it again
        verbose=False,
    )
    assert exported is not None  # it is where a file is written at once
    exported.model.metadata_props[METADATA_KEY] = metadata
    with replacing(path) as temporary:
        exported.save(temporary)
