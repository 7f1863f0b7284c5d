"""A model's attention, picture by picture, in a notebook."""

import base64
import html
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import ipywidgets as W
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from kaconv.data.preprocessing import Preprocessing
from kaviz.explorer.gallery import INTERVENTIONS, Gallery
from kaviz.explorer.views import CHANNELS, MAPS_OF, SCOPES, Settings, View, view
from kaviz.figures import save_figure

_SECONDS = 1.0  # that a layer is shown for while playing
_DPI = 120
_WIDTH = "300px"  # of a control
_NONE = -1  # in place of a picture's number; a list with the value None would show nothing as chosen


class AttentionExplorer(W.VBox):
    """Pictures and the attention that a model gives them: choose, compare, intervene, save.

    All layers' attention is computed once for all pictures; what is chosen is looked up there and drawn. With an
    intervention the model runs again for the pictures shown, or for all where means of classes are.

    Args:
        model: with KAConv2d layers, giving (N, classes). It runs in eval mode, on its own device; it is left as it was.
        images: the pictures as the model takes them, normalised, (N, 3, H, W).
        labels: true classes (N,), which means of classes need.
        classes: names of all classes; None numbers them.
        preprocessing: how the pictures were normalised; without it none can be uploaded, and each is shown in its own
            range of colours.
        ids: names or numbers of the pictures (N,); None numbers them from 0.
        save_to: folder for what the button saves.

    Raises:
        ValueError: if the model has no KAConv2d layer, or if the rest does not fit together.

    Example:
        >>> explorer = AttentionExplorer(model, images, labels=labels, preprocessing=checkpoint.preprocessing)
        >>> explorer  # the last line of a cell shows it
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        labels: Sequence[int] | Tensor | None = None,
        classes: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        ids: Sequence[Any] | None = None,
        save_to: str | Path = "explorer",
    ) -> None:
        gallery = Gallery(model, images, labels=labels, classes=classes, preprocessing=preprocessing, ids=ids)
        super().__init__()
        self.gallery = gallery
        self.save_to = Path(save_to)
        self._busy = False
        self._make_controls()
        self._offer_pictures(0, _NONE)
        self._arrange()
        self._settle()
        self._draw()
        self._watch()

    def settings(self) -> Settings:
        """What the controls say."""
        return Settings(
            layer=self.layer.value,
            a=self.picture_a.value,
            b=None if self.picture_b.value == _NONE else self.picture_b.value,
            maps_of=self.maps_of.value,
            channels=self.channels.value,
            channel=self.channel.value,
            scale=self.scale.value,
            intervention=self.intervention.value,
            where=self.where.value,
            position=self.position.value,
        )

    def figure(self, **changes: Any) -> Figure:
        """The figure that other settings than those of the controls would give.

        Args:
            changes: fields of `kaviz.explorer.views.Settings`.
        """
        return view(self.gallery, replace(self.settings(), **changes)).figure()

    def close(self) -> None:
        """Take it off the page and out of memory."""
        if self.comm is None:  # closed already, or never opened
            return
        self.save.on_click(self._on_save, remove=True)
        for widget in [*_tree(self)]:
            widget.unobserve_all()
            (super() if widget is self else widget).close()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict:
        """The widget, and for pages without a kernel what it shows as it is displayed."""
        return super()._repr_mimebundle_(**kwargs) | {"text/html": self._still()}

    def _still(self) -> str:
        """The picture, its caption, and the settings that apply."""
        controls = [control for control in self._choices if not control.disabled]
        rows = "".join(f"<tr><th>{control.description}</th><td>{_shown(control)}</td></tr>" for control in controls)
        source = base64.b64encode(self.picture.value).decode()
        caption = html.escape(" ".join(self.shown.caption))
        picture = f'<img alt="{caption}" src="data:image/png;base64,{source}">'
        return f"<div>{picture}{self.caption.value}<table>{rows}</table></div>"

    def _make_controls(self) -> None:
        self.picture_a = _dropdown("Picture A", [])
        self.picture_b = _dropdown("Picture B", [], "to compare A with")
        uploads = self.gallery.preprocessing is not None
        self.upload = W.FileUpload(
            description="Upload a picture",
            accept="image/*",
            disabled=not uploads,
            tooltip="a picture file, to be shown as A" if uploads else "needs the preprocessing of the pictures",
            layout=W.Layout(width="auto"),
        )
        self.layer = _dropdown("Layer", self.gallery.layers, "from the input to the output")
        self.play = W.Play(max=len(self.gallery.layers) - 1, interval=int(1000 * _SECONDS), tooltip="Play")
        self.maps_of = _dropdown("Maps of", MAPS_OF, "the picture's own maps, or the mean over its class")
        self.channels = _dropdown("Channels", CHANNELS)
        self.channel = W.BoundedIntText(description="Channel", layout=W.Layout(width=_WIDTH))
        self.scale = _dropdown("Scale fits", SCOPES, "the layers whose maps the colour scale fits")
        self.intervention = _dropdown("Intervention", INTERVENTIONS, "what takes the place of the attention")
        self.where = _dropdown("Intervene in", SCOPES[::-1], "the layers with the intervention")
        self.position = _dropdown("Position", [], "the kernel position that is removed")
        pictures, maps = [self.picture_a, self.picture_b], [self.layer, self.maps_of, self.channels, self.channel]
        self._choices = [*pictures, *maps, self.scale, self.intervention, self.where, self.position]
        self.save = W.Button(
            description="Save figure and data", tooltip="PNG, SVG, PDF and CSV", layout=W.Layout(width="auto")
        )
        self.status = W.HTML()
        self.picture = W.Image(format="png", layout=W.Layout(max_width="100%", align_self="flex-start"))
        self.caption = W.HTML()

    def _offer_pictures(self, a: int, b: int) -> None:
        names = [(self.gallery.describe(index), index) for index in range(len(self.gallery))]
        self.picture_a.options, self.picture_b.options = names, [("none", _NONE), *names]
        self.picture_a.value, self.picture_b.value = a, b

    def _arrange(self) -> None:
        rows = [
            [self.picture_a, self.picture_b, self.upload],
            [self.layer, W.HBox([W.Label("Play through the layers"), self.play])],
            [self.maps_of, self.channels, self.channel],
            [self.intervention, self.where, self.position],
            [self.scale, self.save],
        ]
        boxes = [W.HBox(row, layout=W.Layout(flex_flow="row wrap")) for row in rows]
        self.children = [*boxes, self.status, self.picture, self.caption]

    def _watch(self) -> None:
        for control in self._choices:
            control.observe(self._on_choice, "value")
        self.play.observe(self._on_play, "value")
        self.upload.observe(self._on_upload, "value")
        self.save.on_click(self._on_save)

    def _on_choice(self, change: dict) -> None:
        self._do(self._render)

    def _on_play(self, change: dict) -> None:
        self.layer.index = change["new"]

    def _on_upload(self, change: dict) -> None:
        for file in change["new"]:
            self._do(self._add, bytes(file["content"]), file["name"])
        if change["new"]:
            self.upload.value = ()  # so that the same file can be given again, and none is kept

    def _on_save(self, button: W.Button) -> None:
        self._do(self._save)

    def _do(self, action: Callable[..., None], *args: Any) -> None:
        """What a click asks for. Controls that it sets ask for nothing; what goes wrong is said in a line."""
        if self._busy:
            return
        self._busy = True
        try:
            self._say("")
            action(*args)
        except Exception as error:  # there is no cell below which a traceback would be seen
            text = str(error) if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {error}"
            self._say(text, "alert")
        finally:
            self._busy = False

    def _render(self) -> None:
        self._settle()
        self._draw()

    def _add(self, content: bytes, name: str) -> None:
        number = self.gallery.add(content, name)
        self._offer_pictures(number, self.picture_b.value)
        self._render()

    def _save(self) -> None:
        names = (f"view-{number:03}" for number in count(1))
        free = next(name for name in names if not (self.save_to / f"{name}.png").exists())
        files = save_figure(self.shown.figure(), self.save_to / free)
        self._say(f"saved {', '.join(file.name for file in files)} in {self.save_to.resolve()}")

    def _settle(self) -> None:
        """Only what applies can be changed, and only within its limits."""
        _, channels = self.gallery.kernels[self.layer.value]
        self.channel.max = channels - 1
        positions = [(name, number) for number, name in enumerate(self.gallery.positions(self.layer.value))]
        if self.position.options != tuple(positions):
            self.position.options = positions
            self.position.value = len(positions) // 2
        self.play.value = self.layer.index
        self.maps_of.disabled = not self.gallery.labelled
        self.channel.disabled = self.channels.value != "one channel"
        self.where.disabled = self.intervention.value == "none"
        self.position.disabled = self.intervention.value != "one position removed"

    def _draw(self) -> None:
        self.shown = view(self.gallery, self.settings())
        self.picture.value = _png(self.shown)
        self.caption.value = f"<p>{'<br>'.join(map(html.escape, self.shown.caption))}</p>"

    def _say(self, text: str, role: str = "status") -> None:
        color = {"status": "inherit", "alert": "#b3261e"}[role]
        self.status.value = f'<div role="{role}" style="color:{color}">{html.escape(text)}</div>' if text else ""


def _dropdown(label: str, options: Sequence, tooltip: str | None = None) -> W.Dropdown:
    return W.Dropdown(description=label, options=list(options), tooltip=tooltip, layout=W.Layout(width=_WIDTH))


def _shown(control: W.Widget) -> str:
    return html.escape(str(control.label if isinstance(control, W.Dropdown) else control.value))


def _png(view: View) -> bytes:
    figure = view.figure()
    figure.set_dpi(_DPI)
    data = io.BytesIO()
    FigureCanvasAgg(figure).print_png(data, pil_kwargs={"compress_level": 1})
    return data.getvalue()


def _tree(widget: W.Widget) -> Iterator[W.Widget]:
    """A widget and all that it is made of."""
    for child in getattr(widget, "children", ()):
        yield from _tree(child)
    for name in ("layout", "style"):
        if widget.has_trait(name):
            yield getattr(widget, name)
    yield widget
