"""Examine the packaged weights on Imagenette: errors under corruptions, and interventions on the attention.

python reports/weights/imagenette.py folder:data/cache/imagenette112
"""

import argparse
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder

from kaconv import attention_statistics
from kaconv.attention.effects import measure_effects, usual_interventions
from kaconv.data import load_data
from kaconv.inference.robustness import corruption_errors
from kaconv.models.checkpoints import load_checkpoint
from kaconv.models.weights import list_weights, weights_path
from kaconv.utils.files import write_json
from kaconv.utils.provenance import provenance

OUT = Path(__file__).with_suffix(".json")
SEVERITIES = (1, 3, 5)
TEST_IMAGES, TRAINING_IMAGES = 100, 50  # of each class, the first by name
BATCH = 100


def main() -> None:
    """Write imagenette.json beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="Imagenette as a data spec, with train/ and val/")
    args = parser.parse_args()
    found: dict[str, list] = {"corruptions": [], "effects": []}
    for weights in sorted(list_weights("*.imagenette"), key=lambda name: name.startswith("ka_")):  # the plain one first
        print(weights, flush=True)
        checkpoint = load_checkpoint(weights_path(weights))
        model, names = checkpoint.model, {"model": checkpoint.name}
        data = load_data(args.data, preprocessing=checkpoint.preprocessing)
        data = replace(data, test=first_of_each_class(data.test, TEST_IMAGES))
        found["corruptions"] += [names | row for row in corruption_errors(model, data, severities=SEVERITIES)]
        if checkpoint.name.startswith("ka_"):
            learned = first_of_each_class(data.train, TRAINING_IMAGES)
            means = attention_statistics(model, DataLoader(learned, BATCH), progress=True)
            effects = measure_effects(model, data.test, usual_interventions(means), batch_size=BATCH, progress=True)
            found["effects"] += [names | {"seed": 0} | row for row in effects.rows()]
    write_json(OUT, found | {"test_images_per_class": TEST_IMAGES, "provenance": provenance()})
    print(OUT)


def first_of_each_class(images: ImageFolder, number: int) -> Subset:
    """The first images of each class, by name."""
    places = groupby(range(len(images)), key=lambda place: images.targets[place])  # a folder is in order of its classes
    return Subset(images, [place for _, group in places for place in list(group)[:number]])


if __name__ == "__main__":
    main()
