"""The paper's settings: the YAML files beside this module, fields of `TrainConfig` for a family of models each."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from kaconv.utils.yaml_text import load_yaml

_FAMILIES = {
    "resnet50": "resnet",
    "resnet101": "resnet",
    "resnext50_32x4d": "resnet",
    "mobilenetv2_050": "mobilenetv2",
    "mobilenetv2_100": "mobilenetv2",
}


def load_recipe(recipe: str) -> dict[str, Any]:
    """Fields of `TrainConfig`: for one of the paper's models, itself and its family's settings; or a YAML file's.

    Args:
        recipe: a model such as "ka_resnet50_l", or the path of a file that ends in .yaml.

    Raises:
        ValueError: for a model that has no recipe, or a file that holds something else.
        FileNotFoundError: if there is no such file.
    """
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe)
        if not path.is_file():
            raise FileNotFoundError(f"there is no recipe {path.resolve()}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"recipe {recipe}: it is not text in UTF-8") from None
        return _fields(text, recipe)
    family = recipe_families().get(recipe)
    if family is None:
        raise ValueError(
            f"there is no recipe for {recipe!r}; choose from {', '.join(recipe_families())}, or give a .yaml file"
        )
    text = (files(__name__) / f"{family}.yaml").read_text(encoding="utf-8")
    return {"model": recipe} | _fields(text, family)


def recipe_families() -> dict[str, str]:
    """For each of the paper's models, the name of its family's recipe."""
    return {model: family for name, family in _FAMILIES.items() for model in (name, f"ka_{name}_l", f"ka_{name}_h")}


def _fields(text: str, name: str) -> dict[str, Any]:
    try:
        values = load_yaml(text)
    except ValueError as error:
        raise ValueError(f"recipe {name}: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"recipe {name} must hold a training's fields as `name: value`")
    return values
