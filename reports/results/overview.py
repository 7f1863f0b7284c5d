"""Draw the README's first picture: python reports/results/overview.py [FILE.png]."""

import sys

import torch

import kaviz
from kaconv import AttentionCapture
from kaconv.data import describe_sample, load_data
from kaconv.models.checkpoints import load_checkpoint
from kaviz import plots

WEIGHTS = "ka_mobilenetv2_050_l.imagenette"
LAYER = "features.4.conv.1"
SHOWN = ("497_church_d0fe", "497_church_efea", "701_parachute_74db", "701_parachute_1484", "340_zebra", "319_dragonfly")
CHANNELS = 4


def main(path: str) -> None:
    """Write the attention of the packaged network for six of the packaged photographs, as PNG, to `path`."""
    kaviz.set_style()
    trained = load_checkpoint(WEIGHTS)
    photos = load_data("photos", preprocessing=trained.preprocessing).for_classes(trained.classes)
    images, labels = zip(*photos.test, strict=True)
    inputs = torch.stack(images)
    with torch.no_grad(), AttentionCapture(trained.model) as capture:
        trained.model(inputs)
    record = capture.record(labels=labels)
    files = [describe_sample(photos.test, index) for index in range(len(images))]
    samples = [next(i for i, file in enumerate(files) if name in file) for name in SHOWN]
    pictures = trained.preprocessing.denormalise(inputs[samples]).movedim(1, -1).numpy()
    titles = [f"“{photos.classes[labels[sample]]}”" for sample in samples]
    channels = plots.most_dependent_channels(record, LAYER, CHANNELS)
    figure = plots.plot_channel_maps(record, LAYER, channels, samples, pictures, titles)
    figure.savefig(path, dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "reports/results/overview.png")
