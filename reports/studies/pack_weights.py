"""Put a model that a study has trained into the package: half precision, with a model card.

python reports/studies/pack_weights.py reports/studies/imagenette_mobilenetv2.yaml ka_mobilenetv2_050_l imagenette
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from kaconv.data.datasets import load_data
from kaconv.data.photos import IMAGENETTE
from kaconv.inference import evaluate
from kaconv.models.checkpoints import load_checkpoint, save_checkpoint
from kaconv.models.weights import FOLDER, SUFFIX
from kaconv.training.run import Run
from kaconv.training.study_results import read_study_results
from kaconv.training.study_spec import load_study, study_trainings
from kaconv.utils.files import write_text
from kaconv.utils.intervals import wilson_interval

CARD = """\
# {weights}

| | |
| --- | --- |
| model | `{model}`, {params:,} parameters, {classes} classes, images of {size}×{size} pixels |
| top-1 error | **{top1:.1f} %** [{low:.1f}, {high:.1f}] of {n:,} test images (95 % interval, Wilson) |
| top-5 error | {top5:.1f} % |
| over seeds | {over_seeds} |
| data | {data} |
| licence of the data | {licence} |
| recipe | {epochs} epochs of [`{spec}`](../../../reports/studies/{spec}), variant `{variant}`, seed {seed} |
| trained on | {machine}, torch {torch}, commit {commit} |
| stored as | kernels and matrices in half precision; the errors above are those of this file |

**For** looking at attention that was trained on photographs, trying things out, and as a start for fine-tuning.

**Not for** decisions about anything: it is a small network after a short training on ten classes. It takes every image
for one of these, knows neither people nor places well, and its errors are far from what the architecture can reach. Its
figures cannot be compared with published ones, since the images are not the usual ones.
"""


@dataclass(frozen=True)
class Source:
    """The data behind a tag, their terms, and the names of the classes where their folders are called otherwise."""

    data: str
    licence: str
    classes: tuple[str, ...] | None = None


SOURCES = {
    "imagenette": Source(
        "Imagenette v2 squashed to 112×112 pixels: ten classes of ImageNet, 9,469 training and 3,925 test images",
        "none is stated; ImageNet's terms allow non-commercial research and education",
        IMAGENETTE,
    ),
    "cifar10": Source(
        "CIFAR-10 as JPEG files of quality 75: 50,000 training and 10,000 test images",
        "none is stated; to cite: A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009",
    ),
}


def main() -> None:
    """Write the weights and their card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path, help="the study; its results stand beside it as JSON")
    parser.add_argument("model")
    parser.add_argument("tag", choices=SOURCES)
    parser.add_argument("--variant", default="plain", help="of the study (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: %(default)s)")
    parser.add_argument("--runs", type=Path, help="where the study's runs are (default: runs/NAME)")
    args = parser.parse_args()
    study = load_study(args.spec)
    wanted = (args.model, args.variant, args.seed)
    trainings = study_trainings(study, args.runs or Path("runs") / study.name)
    training = next((each for each in trainings if (each.model, each.variant, each.seed) == wanted), None)
    if training is None:
        parser.error(f"the study has no training {' '.join(map(str, wanted))}")
    pack(Run.load(training.config.out), args.spec, args.tag, args.variant)


def pack(run: Run, spec: Path, tag: str, variant: str) -> None:
    """Write MODEL.TAG.safetensors and MODEL.TAG.md from a finished run of a study."""
    source, weights = SOURCES[tag], f"{run.config.model}.{tag}"
    trained = run.load_checkpoint("last")
    data = load_data(run.config.data, run.config.data_root, preprocessing=trained.preprocessing)
    facts = {
        "name": trained.name,
        "classes": list(source.classes or trained.classes),
        "preprocessing": trained.preprocessing,
    }
    path = FOLDER / f"{weights}{SUFFIX}"
    save_checkpoint(path, trained.model, **facts, half=True)
    found = evaluate(load_checkpoint(path).model, data.test)
    low, high = wilson_interval(found.top1_error, found.n)
    info = {
        "test_error": found.top1_error,
        "test_error_interval": [low, high],
        "test_top5_error": found.top5_error,
        "n": found.n,
        "study": spec.stem,
        "config": run.config.identity(),
    }
    save_checkpoint(path, trained.model, **facts, info=info, half=True)
    provenance = run.summary["provenance"]
    card = CARD.format(
        weights=weights,
        model=trained.name,
        params=run.summary["parameters"],
        classes=len(facts["classes"]),
        size=trained.preprocessing.image_size,
        top1=found.top1_error,
        low=low,
        high=high,
        top5=found.top5_error,
        n=found.n,
        over_seeds=_over_seeds(spec, trained.name, variant),
        data=source.data,
        licence=source.licence,
        epochs=run.config.epochs,
        spec=spec.name,
        variant=variant,
        seed=run.config.seed,
        machine=f"{provenance['machine']['gpu'] or provenance['machine']['cpu']}",
        torch=provenance["versions"]["torch"],
        commit=provenance["commit"],
    )
    write_text(FOLDER / f"{weights}.md", card)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, top-1 error {found.top1_error:.1f} %")


def _over_seeds(spec: Path, model: str, variant: str) -> str:
    results = read_study_results(spec.with_suffix(".json"))
    row = next(row for row in results["summary"] if (row["model"], row["variant"]) == (model, variant))
    interval = row["test_error_interval"]
    spread = "no interval from a single one" if interval is None else f"[{interval[0]:.1f}, {interval[1]:.1f}]"
    seeds = f"{len(row['seeds'])} seed{'s' if len(row['seeds']) > 1 else ''}"
    return f"top-1 error {row['test_error']:.1f} % over {seeds}, {spread}"


if __name__ == "__main__":
    main()
