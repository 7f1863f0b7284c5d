"""A model's attention, image by image, in a notebook."""

import contextvars
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from torch import Tensor, nn

from kaconv.attention.interventions import INTERVENTION_KINDS
from kaconv.data.preprocessing import Preprocessing
from kaviz.attribution import METHOD_LABELS, attribute
from kaviz.explorer.export import front_end, write_page
from kaviz.explorer.gallery import Gallery, Watch
from kaviz.explorer.views import attribution_pack, outcome_pack, position_pack, view_pack

_OUTCOMES = 4  # interventions that are kept
_ATTRIBUTED = 4  # images whose attribution is computed at a time


class Cancelled(Exception):
    """Someone has pressed Cancel."""


class AttentionExplorer(anywidget.AnyWidget):
    """Images and the attention that a model gives them: choose, compare, intervene, attribute, save, send.

    All layers' attention is computed once for all images, and the browser draws from that. What needs the model
    (interventions, attributions, images of your own) runs in a thread of the kernel, with progress, and can be
    cancelled; while it runs, leave the model alone.

    Args:
        model: with KAConv2d layers, giving (N, classes). It runs in eval mode, on its own device; it is left as it was.
        images: as the model takes them, normalised, (N, 3, H, W).
        labels: true classes (N,), -1 where one is not known; None if none is.
        classes: names of all classes; None numbers them.
        preprocessing: how the images were normalised; without it none can be uploaded, and each is shown in its own
            range of colours.
        ids: names of the images (N,), such as those of their files; None numbers them from 0.
        attributions: for each method its maps (N, h, w), positive for what speaks for the predicted class.
        positions: for each method and layer what the kernel positions contribute to the predicted class's score,
            (N, kh, kw), or (N, kh, kw, C), which is summed over the channels.
        title: stands above it; None: the model's kind.

    Raises:
        ValueError: if the model has no KAConv2d layer or gives no (N, classes), or if the rest does not fit together.

    Example:
        >>> explorer = AttentionExplorer(model, images, labels=labels, preprocessing=preprocessing)
        >>> explorer.state = {"a": 3, "b": 7, "layer": "layer4.2.conv2"}  # numbers of images, and a layer
        >>> page = explorer.export("view.html")  # all of it in a page; as the last line of a cell, `explorer` shows it
    """

    _esm = front_end().script
    _css = front_end().style
    frame = traitlets.Unicode(front_end().frame).tag(sync=True)
    view_data = traitlets.Bytes().tag(sync=True)
    extra_data = traitlets.List(traitlets.Bytes()).tag(sync=True)
    state = traitlets.Dict(help="what is chosen, as in a page's address; what is missing is as at first").tag(sync=True)
    abilities = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        labels: Sequence[int] | Tensor | None = None,
        classes: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        ids: Sequence[Any] | None = None,
        attributions: Mapping[str, np.ndarray] | None = None,
        positions: Mapping[str, Mapping[str, np.ndarray]] | None = None,
        title: str | None = None,
    ) -> None:
        gallery = Gallery(model, images, labels=labels, classes=classes, preprocessing=preprocessing, ids=ids)
        extras = {("attribution", name): attribution_pack(name, maps) for name, maps in (attributions or {}).items()}
        extras |= {("positions", name): position_pack(name, values) for name, values in (positions or {}).items()}
        self.gallery, self.title = gallery, title or type(model).__name__
        self._extras: dict[tuple[str, str], bytes] = extras
        self._thread: threading.Thread | None = None
        self._cancelled = threading.Event()
        abilities = {
            "uploads": preprocessing is not None,
            "interventions": {name: kind.description for name, kind in INTERVENTION_KINDS.items()},
            "of_a_position": [name for name, kind in INTERVENTION_KINDS.items() if kind.needs_position],
            "methods": dict(METHOD_LABELS),
            "positions": {layer: gallery.positions(layer) for layer in gallery.layers},
        }
        super().__init__(view_data=self._view(), extra_data=list(extras.values()), abilities=abilities)
        self.on_msg(self._on_message)

    def intervene(
        self,
        intervention: str,
        layers: str = "*",
        *,
        position: int | None = None,
        donor: int | None = None,
        watch: Watch | None = None,
    ) -> str:
        """Run the model with its attention replaced, and let it be chosen under "Attention".

        Args:
            intervention, layers, position, donor, watch: as in `Gallery.under`.

        Returns:
            The name under which it is chosen, the `outcome` of `state`. The last four are kept.
        """
        outcome = self.gallery.under(intervention, layers, position=position, donor=donor, watch=watch)
        name = self._name(intervention, layers, position, donor)
        kept = [key for key in self._extras if key[0] == "outcome" and key[1] != name]
        for key in kept[: max(0, len(kept) - _OUTCOMES + 1)]:
            del self._extras[key]
        self._keep("outcome", name, outcome_pack(name, outcome.record, outcome.probabilities))
        return name

    def attribute(self, method: str, watch: Watch | None = None) -> str:
        """Compute what each pixel contributes to the logit of the predicted class, for all images.

        Args:
            method: one of `kaviz.attribution.METHODS`.

        Returns:
            The name under which it is chosen, the `method` of `state`.
        """
        gallery = self.gallery
        device, parts = next(gallery.model.parameters()).device, []
        predicted = gallery.own().probabilities.argmax(axis=1)
        with gallery.lock:
            for start in range(0, len(gallery), _ATTRIBUTED):
                if watch is not None:
                    watch(start, len(gallery))
                batch = gallery.images[start : start + _ATTRIBUTED].to(device)
                target = batch.new_tensor(predicted[start : start + _ATTRIBUTED]).long()
                parts.append(_of_pixels(attribute(gallery.model, batch, target, method, progress=False)))
        name = METHOD_LABELS[method]
        self._keep("attribution", name, attribution_pack(name, np.concatenate(parts)))
        return name

    def upload(self, files: Sequence[tuple[str, bytes]], watch: Watch | None = None) -> list[str]:
        """Take in image files by their names and bytes; what was computed by interventions before is dropped.

        Returns:
            A sentence for each file that cannot be taken in.
        """
        before = len(self.gallery)
        refused = self.gallery.add(files, watch)
        if len(self.gallery) > before:
            self._extras = {key: content for key, content in self._extras.items() if key[0] != "outcome"}
            with self.hold_sync():
                self.extra_data = list(self._extras.values())
                self.view_data = self._view()
        return refused

    def export(self, path: str | Path) -> Path:
        """Write a page with all that is seen here, and with what is chosen now; it needs no network and no kernel.

        Args:
            path: of the file, such as "view.html".
        """
        return write_page(path, [self.view_data, *self.extra_data], self.title, self.state)

    def wait(self) -> None:
        """Wait until what the browser has asked for is done."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Take it off the page and out of memory."""
        if self.comm is None:  # closed already
            return
        self._cancelled.set()
        self.on_msg(self._on_message, remove=True)
        self.unobserve_all()
        layout = self.layout
        super().close()
        layout.close()

    def _view(self) -> bytes:
        gallery, own = self.gallery, self.gallery.own()
        record = type(own.record)(own.record.attention, labels=gallery.labels, ids=np.array(gallery.ids))
        return view_pack(
            record,
            images=[gallery.picture(index) for index in range(len(gallery))],
            probabilities=own.probabilities,
            classes=gallery.classes,
            shares=own.shares,
            title=self.title,
        )

    def _keep(self, kind: str, name: str, content: bytes) -> None:
        self._extras.pop((kind, name), None)
        self._extras[kind, name] = content
        self.extra_data = list(self._extras.values())

    def _name(self, intervention: str, layers: str, position: int | None, donor: int | None) -> str:
        where = "all layers" if layers == "*" else layers
        if position is not None:
            names = self.gallery.positions(layers if layers in self.gallery.layers else self.gallery.layers[0])
            return f"{names[position]} removed in {where}"
        if donor is not None:
            return f"attention of {self.gallery.ids[donor]} in {where}"
        return f"{intervention} in {where}"

    # What a browser asks for

    def _on_message(self, widget: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> None:
        if content.get("ask") == "cancel":
            self._cancelled.set()
        elif self._thread is not None and self._thread.is_alive():
            self.send({"say": "error", "text": "The model is at work; wait, or cancel that first."})
        else:
            self._cancelled.clear()
            # With this call's context, so that what the thread sends is known to be an answer to it.
            run = contextvars.copy_context().run
            self._thread = threading.Thread(target=run, args=(self._answer, dict(content), list(buffers)), daemon=True)
            self._thread.start()

    def _answer(self, content: dict[str, Any], buffers: list[memoryview]) -> None:
        """Does what is asked for, in a thread; what goes wrong is said in a line, for no cell is there to show it."""
        try:
            work = {"intervene": self._do_intervene, "attribute": self._do_attribute, "upload": self._do_upload}
            said = work[content["ask"]](content, buffers)
            self.send({"say": "done", **said})
        except Cancelled:
            self.send({"say": "done", "text": "Cancelled; nothing has changed."})
        except Exception as error:
            text = str(error) if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {error}"
            self.send({"say": "error", "text": text})

    def _do_intervene(self, content: dict[str, Any], buffers: list[memoryview]) -> dict[str, Any]:
        kind, donor = content["kind"], content["donor"] if content["donor"] >= 0 else None
        needs = INTERVENTION_KINDS[kind]
        which: dict[str, Any] = {
            "position": content["position"] if needs.needs_position else None,
            "donor": donor if needs.needs_donor else None,
        }
        name = self.intervene(kind, content["layers"], **which, watch=self._watch(kind))
        own = self.gallery.own().probabilities.argmax(axis=1)
        now = self.gallery.under(kind, content["layers"], **which).probabilities.argmax(axis=1)
        text = f"With {name}, {int((now != own).sum())} of {len(own)} predictions change."
        return {"text": text, "show": {"outcome": name}}

    def _do_attribute(self, content: dict[str, Any], buffers: list[memoryview]) -> dict[str, Any]:
        name = self.attribute(content["method"], self._watch("attribution"))
        return {"text": f"{name} is computed for all images.", "show": {"method": name}}

    def _do_upload(self, content: dict[str, Any], buffers: list[memoryview]) -> dict[str, Any]:
        files = [(str(name), bytes(buffer)) for name, buffer in zip(content["names"], buffers, strict=True)]
        refused = self.upload(files, self._watch("upload"))
        taken = len(files) - len(refused)
        said = [f"{taken} image{'' if taken == 1 else 's'} uploaded."] if taken else []
        if refused and not taken:
            raise ValueError("\n".join(refused))
        return {"text": "\n".join(said + refused)}

    def _watch(self, what: str) -> Callable[[int, int], None]:
        def watch(done: int, of: int) -> None:
            if self._cancelled.is_set():
                raise Cancelled
            self.send({"say": "progress", "what": what, "done": done, "of": of})

        return watch


def _of_pixels(attributions: Tensor) -> np.ndarray:
    """(N, h, w): the sum over the colours, or the one map where all colours have the same, as in Grad-CAM."""
    same = bool((attributions == attributions[:, :1]).all())
    return (attributions[:, 0] if same else attributions.sum(dim=1)).float().cpu().numpy()
