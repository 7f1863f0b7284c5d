"""Trained weights that come with the package, named MODEL.TAG, such as `ka_mobilenetv2_050_l.imagenette`.

Each is a kaconv checkpoint in half precision, MODEL.TAG.safetensors, beside its model card, MODEL.TAG.md.
"""

from fnmatch import fnmatch
from pathlib import Path

FOLDER = Path(__file__).parent
SUFFIX = ".safetensors"


def list_weights(pattern: str = "*") -> list[str]:
    """The names of the trained weights that come with the package, MODEL.TAG, sorted, that match a shell pattern."""
    names = sorted(path.name.removesuffix(SUFFIX) for path in FOLDER.glob(f"*{SUFFIX}"))
    return [name for name in names if fnmatch(name, pattern)]


def weights_path(checkpoint: str | Path) -> Path:
    """The file of a checkpoint that is given by its path, or by MODEL.TAG if there is no such file."""
    path = Path(checkpoint)
    if not path.exists() and str(checkpoint) in list_weights():
        return FOLDER / f"{checkpoint}{SUFFIX}"
    return path


def weights_of(name: str, tag: str) -> Path | None:
    """The file of a model's weights by their tag, such as "imagenette"; None if there are none."""
    return FOLDER / f"{name}.{tag}{SUFFIX}" if f"{name}.{tag}" in list_weights() else None


def model_card(weights: str) -> str:
    """The model card of MODEL.TAG as Markdown: data, recipe, error, licence of the data, limits.

    Raises:
        ValueError: if there are no such weights.
    """
    if weights not in list_weights():
        raise ValueError(f"there are no weights {weights!r}; choose from {', '.join(list_weights())}")
    return (FOLDER / f"{weights}.md").read_text(encoding="utf-8")
