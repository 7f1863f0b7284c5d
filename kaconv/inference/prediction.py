"""Class names for image files of all kinds."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from kaconv.data.pictures import check_resized_size, open_image, picture_files
from kaconv.data.preprocessing import Preprocessing
from kaconv.models.checkpoints import Checkpoint

BATCH_SIZE = 32


def predict(
    checkpoint: Checkpoint,
    paths: Sequence[str | Path],
    *,
    topk: int = 5,
    on_error: Callable[[Exception], None] | None = None,
    progress: bool = False,
) -> list[dict]:
    """The most probable classes of image files, prepared as the checkpoint says.

    It runs on the GPU if there is one.

    Args:
        paths: of images, or of folders, which stand for all images in them (see `picture_files`).
        topk: how many classes of each image to give; all where there are fewer.
        on_error: called with the error of each image that cannot be read, which is then left out. None: raise it.

    Returns:
        In the order of `paths`, a dict for each image: `path`, and `topk`, a list, the most probable first, of dicts
        with `class` (its name), `index` and `probability`.

    Raises:
        FloatingPointError: if the model's outputs are not all finite.
    """
    if not isinstance(topk, int) or topk < 1:
        raise ValueError(f"topk must be a whole number of at least 1, got {topk!r}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = checkpoint.model.to(device)
    topk = min(topk, len(checkpoint.classes))
    results = []
    shown = tqdm(_files(paths, on_error), desc="predict", unit="img", leave=False, disable=None if progress else True)
    for names, images in _batches(shown, checkpoint.preprocessing, on_error):
        with torch.no_grad():
            logits = model(images.to(device)).float().cpu()
        for name, row in zip(names, logits, strict=True):
            if not row.isfinite().all():
                raise FloatingPointError(f"the model's outputs are not finite for {name}")
            probabilities, indices = row.softmax(0).topk(topk)
            ranked = zip(indices.tolist(), probabilities.tolist(), strict=True)
            found = [{"class": checkpoint.classes[i], "index": i, "probability": p} for i, p in ranked]
            results.append({"path": name, "topk": found})
    return results


def _files(paths: Sequence[str | Path], on_error: Callable[[Exception], None] | None) -> list[str | Path]:
    files: list[str | Path] = []
    for path in paths:
        try:
            files += picture_files(path) if Path(path).is_dir() else [path]
        except OSError as error:
            if on_error is None:
                raise
            on_error(error)
    return files


def _batches(
    paths: Iterable[str | Path], preprocessing: Preprocessing, on_error: Callable[[Exception], None] | None
) -> Iterator[tuple[list[str], Tensor]]:
    transform = preprocessing.eval_transform()
    names, images = [], []
    for path in paths:
        try:
            image = open_image(path)
            check_resized_size(path, image, preprocessing.resize)
        except (OSError, ValueError) as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        names.append(str(path))
        images.append(transform(image))
        if len(images) == BATCH_SIZE:
            yield names, torch.stack(images)
            names, images = [], []
    if images:
        yield names, torch.stack(images)
