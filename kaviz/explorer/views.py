"""What there is to see of the attention in some pictures: settings in, a view out. No widgets here."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from kaconv.attention.interventions import INTERVENTION_KINDS
from kaconv.attention.record import AttentionRecord, map_distances
from kaviz.explorer.figure import Panel, plot_explorer
from kaviz.explorer.gallery import INTERVENTIONS, Gallery, Outcome
from kaviz.plots.map_grid import most_dependent_channels

MAPS_OF = ("the picture", "its class, mean")
CHANNELS = ("mean of all", "one channel", "those that move most")
SCOPES = ("this layer", "all layers")
_MOST = 8  # single channels in a view


@dataclass(frozen=True)
class Settings:
    """What to look at.

    Args:
        layer: name of a layer.
        a: number of a picture.
        b: number of another one, to compare with; None: A alone.
        maps_of: one of `MAPS_OF`.
        channels: one of `CHANNELS`.
        channel: the channel's number, for "one channel".
        scale: one of `SCOPES`: the layers whose maps the colour scale fits.
        intervention: one of `kaviz.explorer.gallery.INTERVENTIONS`.
        where: one of `SCOPES`: the layers with the intervention.
        position: row-major number of the kernel position, for "one position removed".

    Raises:
        ValueError: for what is none of the choices.
    """

    layer: str
    a: int = 0
    b: int | None = None
    maps_of: str = MAPS_OF[0]
    channels: str = CHANNELS[0]
    channel: int = 0
    scale: str = "this layer"
    intervention: str = "none"
    where: str = "all layers"
    position: int = 0

    def __post_init__(self) -> None:
        choices = {
            "maps_of": MAPS_OF,
            "channels": CHANNELS,
            "scale": SCOPES,
            "intervention": tuple(INTERVENTIONS),
            "where": SCOPES,
        }
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")


@dataclass(frozen=True)
class View:
    """What is to be seen, and in `caption` the same in sentences. `figure` draws it."""

    panels: list[Panel]
    names: list[str]
    classes: list[str]
    title: str
    reach: float
    layer: str
    distances: dict[str, float] | None
    caption: list[str]

    def figure(self) -> Figure:
        options = {"title": self.title, "reach": self.reach, "layer": self.layer, "distances": self.distances}
        return plot_explorer(self.panels, self.names, self.classes, **options)


Compared = tuple[str, int, Outcome]  # what it is called, number of the picture, what the model makes of it


def view(gallery: Gallery, settings: Settings) -> View:
    """What the settings say of the pictures.

    With an intervention and no picture B, A is compared with A before the intervention.

    Raises:
        ValueError: if there is nothing to see with these settings; it says why.
    """
    _check(gallery, settings)
    own, now = gallery.own(), _outcome(gallery, settings)
    compared = [("A", settings.a, now)]
    if settings.b is not None:
        compared.append(("B", settings.b, now))
    elif now is not own:
        compared.append(("A before", settings.a, own))
    channels = _channels(own.record, settings)
    farthest = _farthest(own.record, settings)
    distances = _distances(gallery, settings, compared) if len(compared) == 2 else None
    return View(
        [_panel(gallery, settings, channels, *which) for which in compared],
        ["mean"] if channels is None else [str(channel) for channel in channels],
        gallery.classes,
        f"Attention in {settings.layer}: {_which_channels(gallery, settings)}\n{_which_change(gallery, settings)}",
        min(1.0, farthest) or 0.01,
        settings.layer,
        distances,
        _caption(gallery, settings, compared, farthest, distances),
    )


def _check(gallery: Gallery, settings: Settings) -> None:
    if settings.layer not in gallery.layers:
        raise ValueError(f"there is no layer {settings.layer!r}; there are {', '.join(gallery.layers)}")
    for index in (settings.a, settings.b):
        if index is not None and not 0 <= index < len(gallery):
            raise ValueError(f"pictures are numbered from 0 to {len(gallery) - 1}; there is no {index}")
    channels = gallery.kernels[settings.layer][1]
    if settings.channels == "one channel" and not 0 <= settings.channel < channels:
        raise ValueError(f"{settings.layer} has channels 0 to {channels - 1}; got {settings.channel}")


def _outcome(gallery: Gallery, settings: Settings) -> Outcome:
    if settings.intervention == "none":
        return gallery.own()
    kind = INTERVENTION_KINDS[settings.intervention]
    shown = None if settings.maps_of != "the picture" else sorted({settings.a, settings.b} - {None})
    return gallery.under(
        settings.intervention,
        settings.layer if settings.where == "this layer" else "*",
        position=settings.position if kind.needs_position else None,
        donor=settings.b if kind.needs_donor else None,
        samples=shown,
    )


def _panel(
    gallery: Gallery, settings: Settings, channels: Sequence[int] | None, name: str, index: int, outcome: Outcome
) -> Panel:
    maps = _maps(gallery, settings, index, outcome, settings.layer)
    return Panel(
        name,
        gallery.name(index),
        gallery.picture(index),
        maps.mean(axis=-1)[None] if channels is None else np.moveaxis(maps[..., channels], -1, 0),
        outcome.prediction(index),
        None if outcome is gallery.own() else gallery.own().prediction(index),
        gallery.label(index),
    )


def _maps(gallery: Gallery, settings: Settings, index: int, outcome: Outcome, layer: str) -> np.ndarray:
    """Of a picture, or the mean over its class. (kh, kw, C)."""
    if settings.maps_of == "the picture":
        return outcome.maps(layer, index)
    return outcome.record.attention[layer][gallery.class_members(index)[1]].mean(axis=0)


def _channels(record: AttentionRecord, settings: Settings) -> list[int] | None:
    """The channels whose maps are shown; None: the mean of all."""
    if settings.channels == "mean of all":
        return None
    if settings.channels == "one channel":
        return [settings.channel]
    return most_dependent_channels(record, settings.layer, _MOST).tolist()


def _farthest(record: AttentionRecord, settings: Settings) -> float:
    """The greatest distance of the pictures' maps from the even share, in even shares."""
    layers = [settings.layer] if settings.scale == "this layer" else record.layers
    maps = (record.deviation(layer) for layer in layers)
    if settings.channels == "mean of all":
        maps = (deviation.mean(axis=-1) for deviation in maps)
    return max(float(np.abs(deviation).max()) for deviation in maps)


def _distances(gallery: Gallery, settings: Settings, compared: Sequence[Compared]) -> dict[str, float]:
    """Total variation distance between the maps of the two in each layer, mean over the channels."""
    both = {
        layer: np.stack([_maps(gallery, settings, index, outcome, layer) for _, index, outcome in compared])
        for layer in gallery.layers
    }
    return {layer: float(map_distances(maps)[0, 1]) for layer, maps in both.items()}


def _which_channels(gallery: Gallery, settings: Settings) -> str:
    count = gallery.kernels[settings.layer][1]
    which = {
        "mean of all": f"mean of all {count} channels",
        "one channel": f"channel {settings.channel} of {count}",
        "those that move most": f"the {min(_MOST, count)} of {count} channels that move most",
    }[settings.channels]
    return which if settings.maps_of == "the picture" else f"{which}, mean over the class"


def _which_change(gallery: Gallery, settings: Settings) -> str:
    if settings.intervention == "none":
        return "No intervention"
    what = INTERVENTIONS[settings.intervention]
    if settings.intervention == "one position removed":
        what = (
            f"the position “{gallery.positions(settings.layer)[settings.position]}” gets nothing, the others share it"
        )
    where = "all layers" if settings.where == "all layers" else f"{settings.layer} only"
    return f"Intervention in {where}: {what}"


def _caption(
    gallery: Gallery,
    settings: Settings,
    compared: Sequence[Compared],
    farthest: float,
    distances: dict[str, float] | None,
) -> list[str]:
    sentences = [_on_picture(gallery, *which) for which in compared]
    sentences.append(f"Shown is the attention in {settings.layer}: {_which_channels(gallery, settings)}.")
    if settings.maps_of != "the picture":
        sentences += [_on_class(gallery, name, index) for name, index, _ in compared]
    sentences.append(f"{_which_change(gallery, settings)}.")
    sentences.append(_on_scale(gallery, settings, farthest))
    if distances:
        (first, *_), (second, *_) = compared
        sentences.append(
            f"{first} − {second} is drawn on a scale of its own. In this layer the maps of the two are "
            f"{distances[settings.layer]:.3f} apart: the total variation distance, mean over the channels; 0 is the "
            f"same, 1 nothing in common."
        )
    return sentences


def _on_picture(gallery: Gallery, name: str, index: int, outcome: Outcome) -> str:
    own = gallery.own()
    if name == "A before":
        return f"A before is A without the intervention, taken for {_taken(gallery, own, index)}."
    before = "" if outcome is own else f" (without the intervention: {_taken(gallery, own, index)})"
    return f"{name} is {gallery.name(index)}, taken for {_taken(gallery, outcome, index)}{before}."


def _taken(gallery: Gallery, outcome: Outcome, index: int) -> str:
    probabilities = outcome.prediction(index)
    return f"“{gallery.classes[probabilities.argmax()]}” with probability {probabilities.max():.2f}"


def _on_class(gallery: Gallery, name: str, index: int) -> str:
    label, members = gallery.class_members(index)
    predicted = "" if gallery.label(index) is not None else ", which the model takes it for"
    return f"{name}: the mean over {members.sum()} pictures of the class “{gallery.classes[label]}”{predicted}."


def _on_scale(gallery: Gallery, settings: Settings, farthest: float) -> str:
    kh, kw = gallery.kernels[settings.layer][0]
    even, reach = 1 / (kh * kw), min(1.0, farthest)
    fits = f"the maps of all {len(gallery)} pictures in {settings.scale}"
    ends = (
        f"The colours go from {even * (1 - reach):.3f} to {even * (1 + reach):.3f}, white at the even share 1/{kh * kw}"
    )
    if farthest <= 1:
        return f"{ends}, which fits {fits}."
    return f"{ends}; {fits} reach up to {even * (1 + farthest):.3f}, beyond the scale."
