"""Every figure with long names, many layers and sharp attention: nothing overprints, is cut off or becomes a speck."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.text import Text

from kaconv import AttentionRecord
from kaconv.attention.effects import ALL_LAYERS, OTHER_CLASS, SAME_CLASS, attention_correlations, pool_effects
from kaconv.attention.kernels import PositionShares
from kaconv.attention.stability import ANOTHER_OF_ITS_CLASS, ANOTHER_PICTURE, blur, flip, noise, rotation, shift
from kaconv.data.corruptions import CORRUPTIONS, SEVERITIES
from kaconv.paper.published import TABLE
from kaconv.training.study_results import merge_results
from kaconv.training.study_spec import parse_study
from kaviz import plots, set_style
from kaviz.attribution import MEASURES, METHOD_LABELS

LEAST_PANEL = 0.23  # inches: the shorter side of an image that can be made out
LEAST_FONT = 6  # points
SLACK = 1.5  # pixels by which the boxes of two texts may meet: they hold a margin

LAYERS = [f"features.{block}.conv.{block % 2}.module" for block in range(1, 18)]
CLASSES = ["church_of_our_ladies", "French_horn_players_", "parachutists, falling", "chainsaw"]
FILES = [f"IMG_2024{number:04d}_183214.jpg" for number in range(8)]
IMAGES = np.random.default_rng(0).random((8, 96, 96, 3))
MODELS = ["mobilenetv2_050", "ka_mobilenetv2_050_l", "ka_mobilenetv2_050_h"]


def sharp(rng, *shape, sharpness=3.0):
    """Attention (..., kh, kw, C), which at places is close to 1."""
    logits = np.exp(sharpness * rng.normal(size=shape))
    return (logits / logits.sum(axis=(-3, -2), keepdims=True)).astype(np.float32)


def record(size=(3, 3), layers=17, classes=4, seed=0, samples=8, channels=12):
    rng = np.random.default_rng(seed)
    maps = {layer: sharp(rng, samples, *size, channels) for layer in LAYERS[:layers]}
    labels = np.arange(samples) % classes
    return AttentionRecord(maps, labels, ids=np.array([FILES[i % 8] for i in range(samples)]))


def many_classes(seed=0):
    """1000 classes, as ImageNet has them."""
    rng = np.random.default_rng(seed)
    maps = {layer: sharp(rng, 1000, 3, 3, 4) for layer in LAYERS[-2:]}
    return AttentionRecord(maps, np.arange(1000)), [f"{number}_{CLASSES[number % 4]}" for number in range(1000)]


def effect_rows(layers=LAYERS[::3]):
    rng, measures = np.random.default_rng(0), ("error_change", "log_probability_change", "changed", "donors_class")
    rows = []
    for layer in [*layers, ALL_LAYERS]:
        for model in MODELS[1:]:
            for name in ("uniform", "shuffled over positions", "frozen to the mean", SAME_CLASS, OTHER_CLASS):
                for seed in (0, 1, 2):
                    row = {"model": model, "seed": seed, "layer": layer, "intervention": name}
                    for measure in measures if name == OTHER_CLASS else measures[:-1]:
                        value = rng.normal(30, 20) if layer == ALL_LAYERS else rng.normal(0, 4)
                        row |= {measure: value, f"{measure}_interval": (value - 2, value + 2)}
                    rows.append(row)
    return pool_effects(rows)


def one_model(rows):
    return [row for row in rows if row["model"] == MODELS[1]]


def removal_rows(seeds=(0,), size=(3, 3)):
    rng = np.random.default_rng(0)
    return [
        {"model": model, "seed": seed, "layer": layer, "row": row, "column": column}
        | {"attention": share, "log_probability_change": -rng.exponential(2)}
        for model in MODELS[1:]
        for seed in seeds
        for layer in LAYERS[::2]
        for (row, column), share in np.ndenumerate(sharp(rng, *size, 1)[..., 0])
    ]


def stability_rows(scale=1.0):
    rng = np.random.default_rng(0)
    changes = [shift(1), shift(2), shift(4), flip("left-right"), flip("top-bottom"), rotation(90), blur(0.5), blur(1)]
    changes += [noise(0.05), noise(0.1), noise(0.2)]
    named = [(kind, kind, "", "") for kind in (ANOTHER_PICTURE, ANOTHER_OF_ITS_CLASS)]
    named += [(change.name, change.kind, change.strength, change.unit) for change in changes]
    return [
        dict(zip(("change", "kind", "strength", "unit"), names, strict=True))
        | {"layer": layer, "distance": 0.1, "pixels": 0.08 * place, "kept": 0.5}
        | {"relative": 1.0 if names[0] == ANOTHER_PICTURE else scale * rng.uniform(0, 0.16 * place)}
        for place, names in enumerate(named)
        for layer in LAYERS
    ]


def table_rows():
    unit = {"M": 10**6, "G": 10**9}
    counts = [[round(float(text[:-1]) * unit[text[-1]]) for text in (row.params, row.flops)] for row in TABLE]
    return [
        {"name": row.name, "model": row.model, "params": params, "paper_flops": flops, "macs": flops}
        | {"published": {"top1_error": row.top1_error, "top5_error": row.top5_error}, "measured": None}
        for row, (params, flops) in zip(TABLE, counts, strict=True)
    ]


def corruption_rows():
    places = [("none", 0), *((name, severity) for name in CORRUPTIONS for severity in SEVERITIES)]
    return [
        {"corruption": name, "severity": severity, "top1_error": error, "top1_error_interval": (error - 3, error + 3)}
        for name, severity in places
        for error in [30 + 10.0 * severity]
    ]


def speed_rows():
    ratios = {"plain": 1.0, "reference": 18.0, "eager": 4.0, "fused": 2.0, "SE": 1.1, "SK": 0.9, "CondConv": 1.3}

    def measured(ratio):
        return {"median_ms": 1234 * ratio, "ratio": ratio, "ratio_quartiles": [0.95 * ratio, 1.2 * ratio]} | {
            "peak_bytes": int(2**33 * ratio**0.5),
            "floor_ms": 2.5,
        }

    return [
        {"model": model, "variant": variant, "inference": measured(ratio), "training": measured(ratio)}
        for model in ("ka_resnet101_l", "ka_resnext50_32x4d_l", "ka_mobilenetv2_050_l", "ka_mobilenetv2_100_l")
        for variant, ratio in ratios.items()
    ]


def curve_rows():
    return [
        {"model": model, "seed": seed, "epoch": epoch, "train_loss": 2 / epoch, "test_error": 90 / epoch + seed}
        for model in [*MODELS, "ka_mobilenetv2_100_l"]
        for seed in range(3)
        for epoch in range(1, 31)
    ]


def summary_rows():
    return [
        {"model": model, "test_errors": [21.0, 23.0, 22.1], "test_error": 22.0, "seed_interval": (20.0, 24.0)}
        | {"picture_interval": (20.5, 23.5), "test_pictures": 3925}
        for model in [*MODELS, "ka_mobilenetv2_100_l"]
    ]


def comparison_rows():
    return [
        {"model": model, "difference": -place, "difference_interval": (-place - 1, -place + 1)}
        | {"params_ratio": 2 + place, "paper_flops_ratio": 1.1 + place / 50, "train_seconds_ratio": 2.0}
        for place, model in enumerate(MODELS[1:])
    ]


def channel_names(count=8):
    return [f"channel {1000 + number}" for number in range(count)]


def kernel_figure(signed, size=(3, 3)):
    rng = np.random.default_rng(0)
    static, effective = rng.random((*size, 3)), rng.random((4, *size, 3))
    label = "weight" if signed else "size of the weights"
    rows = [f"from input {1000 + number}" for number in range(3)]
    options = {"title": f"The kernel of channel 1000 in {LAYERS[-1]}", "label": label}
    return plots.plot_effective_kernels(
        static - signed * 0.5, effective - signed * 0.5, rows, IMAGES[:4], FILES[:4], **options
    )


def shares(size=(3, 3)):
    rng = np.random.default_rng(0)
    attention = {layer: sharp(rng, 8, *size, 12) for layer in LAYERS}
    response = {layer: rng.random(maps.shape).astype(np.float32) for layer, maps in attention.items()}
    return PositionShares(attention, response)


def attributions():
    rng = np.random.default_rng(0)
    titles = ["“church”\np = 0.98"] * 7
    maps = {label: rng.normal(size=(7, 96, 96)) for label in list(METHOD_LABELS.values())[:3]}
    return plots.plot_attributions(IMAGES[:7], maps, titles, title="Evidence for the predicted class")


def perturbation_curves():
    rng, fractions = np.random.default_rng(0), np.linspace(0, 1, 10)
    curves = {label: rng.random((8, 10)) for label in METHOD_LABELS.values()}
    return plots.plot_perturbation_curves(fractions, curves, curves, (rng.random((8, 10)), rng.random((8, 10))))


def attention_and_use(layers):
    rng, layers = np.random.default_rng(0), LAYERS[:layers]
    attention = {layer: sharp(rng, 8, 3, 3, 12) for layer in layers}
    contributions = {layer: rng.normal(size=(8, 3, 3, 12)) for layer in layers}
    agreement = {layer: rng.uniform(-1, 1, 8) for layer in layers}
    return plots.plot_attention_and_use(attention, contributions, agreement)


def faithfulness(models):
    rng = np.random.default_rng(0)
    rows = [
        {"model": model, "method": method, "measure": measure, "mean": mean, "low": mean - 0.1, "high": mean + 0.1}
        for model in models
        for method in METHOD_LABELS
        for measure in MEASURES
        for mean in rng.uniform(0.1, 0.9, 1)
    ]
    return plots.plot_faithfulness(pd.DataFrame(rows), METHOD_LABELS)


def study_results():
    variants = {"plain": {}, "attention_warmup_and_low_rate": {"attention_warmup_epochs": 1, "models": MODELS[1:]}}
    spec = {"name": "small", "data": "digits", "models": MODELS, "seeds": [0, 1, 2], "variants": variants}
    runs = [
        {"model": model, "variant": variant, "seed": seed, "state": "done", "config": {"data": "digits"}, "epochs": 3}
        | {epoch: {"test_error": 30.0 + seed * (1 + len(variant) / 30) - place} for epoch in ("best", "last")}
        | {"params": 704_074, "seconds_per_epoch": 60.0, "images_per_second": 100.0}
        for place, model in enumerate(MODELS)
        for variant in (variants if place else ["plain"])
        for seed in range(3)
    ]
    spec = parse_study(spec)
    return merge_results(spec, [("one.json", {"study": spec.to_dict(), "runs": runs, "provenance": {}})])[0]


def attention_shift():
    rng = np.random.default_rng(0)
    changes = ["brighter by one half", "mirrored left to right", "positions shuffled"]
    by_variant = {variant: {change: rng.random(8) for change in changes} for variant in "LH"}
    return plots.plot_attention_shift({"the pixels change": by_variant, "the weights change": by_variant})


def position_maps():
    maps = np.random.default_rng(0).normal(size=(9, 96, 96))
    notes = [f"attention {place}.0 %" for place in range(9)]
    return plots.plot_position_maps(maps, (3, 3), title="Maps", label="value", center=0, notes=notes)


def large_position_maps():
    maps = np.random.default_rng(0).normal(size=(35, 96, 96))
    return plots.plot_position_maps(maps, (5, 7), title="Maps", label="value", center=0, notes=["12 %"] * 35)


def contributions(size=(3, 3)):
    rng = np.random.default_rng(0)
    title = f"What each position of channel 1000 in {LAYERS[-1]} adds"
    return plots.plot_contributions(rng.random((*size, 12, 12)), sharp(rng, *size, 1)[..., 0], IMAGES[0], title=title)


def aggregation():
    maps = np.random.default_rng(0).random((4, 96, 96))
    return plots.plot_aggregation(maps[0], {"AG-L": maps[1], "AG-H": maps[2]}, maps[3], title="The output")


def variants(layers):
    records = {model: [record(layers=layers, seed=seed) for seed in range(3)] for model in MODELS}
    return plots.plot_variants(records)


def training(layers=17):
    return {epoch: record(layers=layers, seed=epoch) for epoch in (0, 1, 2, 4, 8, 16, 30)}


def detections():
    boxes = np.array([[4.0, 6, 60, 80], [30, 30, 90, 94], [0, 0, 20, 95]])
    found = {"boxes": boxes, "labels": np.array([1, 2, 3]), "scores": np.array([0.91, 0.5, 0.1])}
    return plots.plot_detections(list(IMAGES[:6]), [{"boxes": boxes}] * 6, [found] * 6, CLASSES)


def class_figure(of, names):
    return plots.plot_class_maps(of, of.layers[-1], [0, 1, 2, 3], np.tile(IMAGES[0], (len(names), 1, 1, 1)), names)


LARGE = (5, 7)
FIGURES = {
    "plot_added_cost": lambda: plots.plot_added_cost(table_rows()),
    "plot_aggregation": aggregation,
    "plot_attention_against_pixels": lambda: plots.plot_attention_against_pixels(
        {"trained": stability_rows(), "untrained": stability_rows(20.0)}
    ),
    "plot_attention_and_use": lambda: attention_and_use(17),
    "plot_attention_and_use of 4 layers": lambda: attention_and_use(4),
    "plot_attention_and_cost": lambda: plots.plot_attention_and_cost(
        removal_rows((0, 1)), attention_correlations(removal_rows((0, 1)))
    ),
    "plot_attention_and_cost of one seed": lambda: plots.plot_attention_and_cost(
        removal_rows(), attention_correlations(removal_rows())
    ),
    "plot_attention_by_channel": lambda: plots.plot_attention_by_channel(
        {name: sharp(np.random.default_rng(0), 3, 3, 8) for name in ("AG-L", "AG-H")}, channel_names(), title="A"
    ),
    "plot_attention_by_channel of 5×7": lambda: plots.plot_attention_by_channel(
        {name: sharp(np.random.default_rng(0), *LARGE, 8) for name in ("AG-L", "AG-H")}, channel_names(), title="A"
    ),
    "plot_attention_shift": attention_shift,
    "plot_attributions": attributions,
    "plot_changed_pictures": lambda: plots.plot_changed_pictures(
        IMAGES[0], {row["change"]: IMAGES[1] for row in stability_rows()[34::17]}, stability_rows()
    ),
    "plot_channel_difference": lambda: plots.plot_channel_difference(
        record(), LAYERS[-1], [0, 1, 2, 3, 4, 5, 6], (0, 1), IMAGES[:2], tuple(FILES[:2])
    ),
    "plot_channel_maps": lambda: plots.plot_channel_maps(record(), LAYERS[-1], range(8), range(8), IMAGES, FILES),
    "plot_channel_maps of 5×7": lambda: plots.plot_channel_maps(
        record(LARGE, layers=1), LAYERS[0], range(4), range(4), IMAGES[:4], FILES[:4]
    ),
    "plot_channel_range": lambda: plots.plot_channel_range(record(layers=6)),
    "plot_class_distances": lambda: plots.plot_class_distances(record(), CLASSES),
    "plot_class_distances of 1000": lambda: plots.plot_class_distances(*many_classes()),
    "plot_class_maps": lambda: class_figure(record(), CLASSES),
    "plot_class_maps of 1000": lambda: class_figure(*many_classes()),
    "plot_contributions": contributions,
    "plot_contributions of 5×7": lambda: contributions(LARGE),
    "plot_corruptions": lambda: plots.plot_corruptions({model: corruption_rows() for model in MODELS}),
    "plot_cost_and_benefit": lambda: plots.plot_cost_and_benefit(comparison_rows(), baseline=MODELS[0]),
    "plot_detections": detections,
    "plot_deviation": lambda: plots.plot_deviation(record(), record(seed=1)),
    "plot_deviation of 4 layers": lambda: plots.plot_deviation(record(layers=4), record(layers=4, seed=1)),
    "plot_effective_kernels": lambda: kernel_figure(signed=True),
    "plot_effective_kernels without signs": lambda: kernel_figure(signed=False, size=LARGE),
    "plot_effects": lambda: plots.plot_effects(effect_rows()),
    "plot_effects of few layers": lambda: plots.plot_effects(effect_rows(LAYERS[:2]), measure="log_probability_change"),
    "plot_entropy": lambda: plots.plot_entropy(record(), record(seed=1)),
    "plot_error_against": lambda: plots.plot_error_against(table_rows()[:9], "params"),
    "plot_error_against_cost": lambda: plots.plot_error_against_cost(table_rows()),
    "plot_faithfulness": lambda: faithfulness(["trained"]),
    "plot_faithfulness of 3 models": lambda: faithfulness(["plain", "L", "H"]),
    "plot_identity": lambda: plots.plot_identity(IMAGES[0, ..., 0], IMAGES[0, ..., 0] + 1e-7),
    "plot_input_dependence": lambda: plots.plot_input_dependence(record(), record(seed=1)),
    "plot_inside_and_outside": lambda: plots.plot_inside_and_outside(*(record(seed=seed) for seed in range(3))),
    "plot_inside_and_outside of 4 layers": lambda: plots.plot_inside_and_outside(
        *(record(layers=4, seed=seed) for seed in range(3))
    ),
    "plot_kernel_maps": lambda: plots.plot_kernel_maps(
        {"weights\nalone": sharp(np.random.default_rng(0), 3, 3, 8)}, channel_names(), title="Q", label="size", center=1
    ),
    "plot_layer_difference": lambda: plots.plot_layer_difference(record(), (0, 1), IMAGES[:2], tuple(FILES[:2])),
    "plot_layer_difference of 5×7": lambda: plots.plot_layer_difference(
        record(LARGE, layers=3), (0, 1), IMAGES[:2], tuple(FILES[:2])
    ),
    "plot_layer_maps": lambda: plots.plot_layer_maps(record(), range(5), IMAGES[:5], FILES[:5]),
    "plot_learning_curves": lambda: plots.plot_learning_curves(curve_rows()),
    "plot_peak_memory": lambda: plots.plot_peak_memory(speed_rows()),
    "plot_perturbation_curves": perturbation_curves,
    "plot_photo_and_kernels": lambda: plots.plot_photo_and_kernels(
        IMAGES[0], np.random.default_rng(0).normal(size=(8, 3, 3)), channel_names()
    ),
    "plot_picture_maps": lambda: plots.plot_picture_maps(record(), 0, IMAGES[0], FILES[0]),
    "plot_picture_maps of 5×7": lambda: plots.plot_picture_maps(record(LARGE, layers=6), 0, IMAGES[0], FILES[0]),
    "plot_position_maps": position_maps,
    "plot_position_maps of 5×7": large_position_maps,
    "plot_position_shares": lambda: plots.plot_position_shares(shares(), LAYERS[::4]),
    "plot_position_shares of 5×7": lambda: plots.plot_position_shares(shares(LARGE)),
    "plot_removals": lambda: plots.plot_removals(removal_rows()),
    "plot_removals of one model": lambda: plots.plot_removals(one_model(removal_rows())),
    "plot_removals of 5×7": lambda: plots.plot_removals(removal_rows(size=LARGE)),
    "plot_stability": lambda: plots.plot_stability(stability_rows(), stability_rows(20.0)),
    "plot_study": lambda: plots.plot_study(study_results()),
    "plot_test_errors": lambda: plots.plot_test_errors(summary_rows()),
    "plot_time_ratios": lambda: plots.plot_time_ratios(speed_rows()),
    "plot_training_maps": lambda: plots.plot_training_maps(training(), LAYERS[-1], [0, 1, 2], [0, 1], IMAGES[:2]),
    "plot_training_statistics": lambda: plots.plot_training_statistics(training(), dict.fromkeys(training(), 9.0)),
    "plot_transplants": lambda: plots.plot_transplants(effect_rows()),
    "plot_transplants of few layers": lambda: plots.plot_transplants(effect_rows(LAYERS[:2]), measure="changed"),
    "plot_variants": lambda: variants(17),
    "plot_variants of 4 layers": lambda: variants(4),
}


@pytest.fixture
def drawn_texts(monkeypatch):
    """Notes every text that a figure really draws, and not the hidden ones that it also owns."""
    with mpl.rc_context():
        set_style()
        drawn, draw = [], Text.draw

        def note(self, renderer, *args, **options):
            drawn.append(self)
            return draw(self, renderer, *args, **options)

        monkeypatch.setattr(Text, "draw", note)
        yield drawn


def corners(text):
    """The four corners of a text in pixels, whatever its slope."""
    box, angle = text.get_window_extent(), np.deg2rad(text.get_rotation())
    text.set_rotation(0)
    flat = text.get_window_extent()
    text.set_rotation(np.rad2deg(angle))
    half = np.maximum(np.array([flat.width, flat.height]) / 2 - SLACK, 0.1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half) @ turn.T + [
        (box.x0 + box.x1) / 2,
        (box.y0 + box.y1) / 2,
    ]


def overlap(one, other):
    if (one.max(0) <= other.min(0)).any() or (other.max(0) <= one.min(0)).any():
        return False
    return Path(np.vstack([one, one[:1]]), closed=True).intersects_path(
        Path(np.vstack([other, other[:1]]), closed=True)
    )


def faults(figure, drawn):
    """What a reader would stumble over, in words."""
    FigureCanvasAgg(figure).draw()
    owners = {id(text): axes for axes in figure.axes for text in axes.findobj(Text)}
    texts = [text for text in dict.fromkeys(drawn) if text.get_visible() and text.get_text().strip()]
    places = [corners(text) for text in texts]
    names = [repr(text.get_text()) for text in texts]
    width, height = figure.bbox.size
    found = []
    for place, name, text in zip(places, names, texts, strict=True):
        if place.min() < 0 or (place.max(0) > [width, height]).any():
            found.append(f"{name} leaves the figure")
        if text.get_fontsize() < LEAST_FONT:
            found.append(f"{name} is in {text.get_fontsize():.1f} points")
    for first, place in enumerate(places):
        found += [
            f"{names[first]} overprints {names[second]}"
            for second in range(first + 1, len(places))
            if overlap(place, places[second])
        ]
    for axes in figure.axes:
        if not axes.axison and not axes.images:
            continue
        (left, bottom), (right, top) = axes.get_window_extent().get_points()
        frame = np.array([[left, bottom], [right, bottom], [right, top], [left, top]])
        found += [
            f"{name} lies on the axes of {axes.get_title() or axes.get_title('left')!r}"
            for place, name, text in zip(places, names, texts, strict=True)
            if owners.get(id(text)) is not axes and overlap(place, frame)
        ]
        if axes.images and min(right - left, top - bottom) < LEAST_PANEL * figure.dpi:
            found.append(f"an image of {(right - left) / figure.dpi:.2f} × {(top - bottom) / figure.dpi:.2f} inches")
    return found


def test_no_figure_is_left_out():
    assert {name.split(" of ")[0].split(" without")[0] for name in FIGURES} == {
        name for name in plots.__all__ if name.startswith("plot_")
    }


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_legible(name, drawn_texts):
    assert not faults(FIGURES[name](), drawn_texts)


def test_overprinted_titles_and_specks_are_seen(drawn_texts):
    figure = Figure(figsize=(4, 1))
    left, right = figure.subplots(1, 2)
    left.imshow(np.zeros((3, 40)))
    left.set_title("a title that is too long for its place")
    right.set_title("and its neighbour, which it overprints")
    figure.text(0.9, 0.5, "beyond the edge")
    found = "\n".join(faults(figure, drawn_texts))
    for fault in ("overprints", "leaves the figure", "lies on the axes", "an image of"):
        assert fault in found
