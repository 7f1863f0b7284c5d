"""Checkpoints on the Hugging Face Hub, through huggingface_hub's own mixin: `pip install 'kaconv[hub]'`."""

import copy
from pathlib import Path
from typing import Any

from kaconv.models.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from kaconv.models.complexity import complexity
from kaconv.utils.extras import missing_package

try:
    from huggingface_hub import EvalResult, ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(missing_package(error), name=error.name) from None

WEIGHTS = "model.safetensors"
_PAPER = "https://doi.org/10.1016/j.neucom.2022.10.017"
_TAGS = ["image-classification", "kaconv", "kernel-attention", "pytorch"]
_NOT_RECORDED = "not recorded"


class HubCheckpoint(
    Checkpoint, ModelHubMixin, library_name="kaconv", pipeline_tag="image-classification", tags=_TAGS, paper_url=_PAPER
):
    """A checkpoint with `save_pretrained`, `push_to_hub` and `from_pretrained`.

    A folder or repository holds `model.safetensors`, a kaconv checkpoint, which is what is loaded, with its checksum;
    `config.json` with what it says of itself; and a model card, README.md, which is left alone where there is one.

    Example:
        >>> checkpoint = HubCheckpoint.from_checkpoint("ka_resnet50_l.safetensors")
        >>> folder = checkpoint.save_pretrained("my-folder", model_card_kwargs={"license": "cc-by-4.0"})
        >>> model = HubCheckpoint.from_pretrained("my-folder").model  # or "user/name", where push_to_hub has sent it
    """

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint | str | Path, builder: str | None = None) -> "HubCheckpoint":
        """A checkpoint, or the one in a file, to be saved or pushed.

        Args:
            builder: as for `load_checkpoint`.

        Raises:
            FileNotFoundError, ValueError: as `load_checkpoint`.
        """
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = load_checkpoint(checkpoint, builder)
        return cls(**vars(checkpoint))

    def _save_pretrained(self, save_directory: Path) -> None:
        facts: dict[str, Any] = {"name": self.name, "classes": self.classes, "preprocessing": self.preprocessing}
        options = self.options or None  # None: what the model itself knows
        save_checkpoint(save_directory / WEIGHTS, self.model, info=self.info, options=options, **facts)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        builder: str | None = None,
        **ignored: Any,  # config.json's, which says nothing that the weights' file does not
    ) -> "HubCheckpoint":
        """As `from_pretrained`, whose `builder=` stands for a model outside of kaconv: only the caller may name it."""
        if Path(model_id).is_dir():
            path = Path(model_id, WEIGHTS)
        else:
            options: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "token": token}
            options |= {"force_download": force_download, "local_files_only": local_files_only}
            path = Path(hf_hub_download(model_id, WEIGHTS, **options))
        return cls.from_checkpoint(path, builder)

    def generate_model_card(self, *args: Any, license: str | None = None, **kwargs: Any) -> ModelCard:
        """The model card, filled in from what the checkpoint knows.

        Args:
            license: of the weights, one of the Hub's identifiers, such as "mit". The checkpoint cannot know it, as it
                depends on the data.
        """
        data = self._card_data(license)
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{self._card_text(license)}")

    def _card_data(self, license: str | None) -> ModelCardData:
        known = self._hub_mixin_info.model_card_data.to_dict() | ({"license": license} if license else {})
        data, error = self._data(), self._error()
        if data is not None and error is not None:
            names: dict[str, Any] = {"dataset_type": data, "dataset_name": data, "metric_type": "accuracy"}
            result = EvalResult("image-classification", **names, metric_value=round(1 - error / 100, 6))
            known |= {"model_name": self.name, "eval_results": [result]}
        return ModelCardData(**known)

    def _card_text(self, license: str | None) -> str:
        side, resize = self.preprocessing.image_size, self.preprocessing.resize
        channels = self.options.get("in_chans", 3)
        cost = complexity(copy.deepcopy(self.model).to("meta"), side, channels)
        more = f" and {len(self.classes) - 5} more" if len(self.classes) > 5 else ""
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        error = self._error()
        rows = {
            "architecture": f"{self.name} with {options}" if options else self.name,
            "classes": f"{len(self.classes)}: {', '.join(self.classes[:5])}{more}",
            "input": f"{channels}×{side}×{side}, from images of which the shorter side is resized to {resize} pixels",
            "parameters": f"{cost.params:,}",
            "multiply-adds of one image": f"{cost.macs:,}",
            "FLOPs as the paper counts them": f"{cost.paper_flops:,}",
            "trained on": self._data() or _NOT_RECORDED,
            "test error": _NOT_RECORDED if error is None else f"{error:.2f} %",
            "licence of the weights": license or "not stated",
        }
        table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items())
        return _CARD.format(name=self.name, paper=_PAPER, table=table, builder=_builder_note(self.name))

    def _data(self) -> str | None:
        """The data's name, without the path on the machine where they were."""
        config = self.info.get("config")
        data = config.get("data") if isinstance(config, dict) else None
        return data.partition(":")[0] if isinstance(data, str) else None

    def _error(self) -> float | None:
        error = self.info.get("test_error")
        return float(error) if isinstance(error, int | float) else None


_CARD = """# {name}

An image classifier with kernel attention convolutions, where its name begins with `ka_`, or its plain twin
([KAConv, Neurocomputing 2022]({paper})), as the Python package `kaconv` builds it.

| | |
| --- | --- |
{table}

```python
from kaconv.models.hub import HubCheckpoint

checkpoint = HubCheckpoint.from_pretrained("user/name")  # this repository, or a folder
images = checkpoint.preprocessing.eval_transform()(image)[None]
print(checkpoint.classes[checkpoint.model(images).argmax()])
```
{builder}"""


def _builder_note(name: str) -> str:
    if ":" not in name:
        return ""
    return f"\nThe model is built by code outside of kaconv: if you trust it, add `builder={name!r}`.\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
