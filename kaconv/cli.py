"""The `kaconv` command. A subcommand is `add_x_parser`, which says what it takes, and `run_x`, which does it.

What needs torch is imported where it runs.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from kaconv.utils.extras import missing_package
from kaconv.utils.text import printable, shortened

EXAMPLES = """\
examples:
  kaconv table
  kaconv list 'ka_*'
  kaconv train --model ka_resnet29_cifar_l --data digits --epochs 5 --out runs/first
  kaconv evaluate --checkpoint runs/first/best.safetensors --data digits
  kaconv predict --checkpoint runs/first/best.safetensors picture.png
  kaconv bench --models ka_mobilenetv2_100_l --image-size 96

`kaconv COMMAND --help` says more about each command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: that of the process) and return its exit status.

    2: wrong arguments, missing files, data or packages, a training that diverged; 130: interrupted; 141: whoever read
    the output has gone (`| head`).
    """
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here, where a reader who has gone can be noticed
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes when it ends
        return 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 1


def _run(argv: Sequence[str] | None) -> int:
    args = build_parser().parse_args(argv)
    try:
        if builders := vars(args).pop("builder"):
            from kaconv.models.registry import register_builders

            register_builders(builders)
        return args.run(args) or 0
    except KeyboardInterrupt:
        print("kaconv: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise  # whoever read the output has seen enough
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        print(f"kaconv: error: {_message(error)}", file=sys.stderr)
        return 2


def _message(error: Exception) -> str:
    """An error in one line of bounded length, without anything that a terminal would obey."""
    message = missing_package(error) if isinstance(error, ModuleNotFoundError) else str(error)
    if message.startswith("Caught "):  # torch puts the whole traceback of a loading process into the message
        message = message.splitlines()[-1].partition(f"{type(error).__name__}: ")[2]
    return shortened(printable(" ".join(message.splitlines())))


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `args.run(args)` does what was asked for."""
    parser = argparse.ArgumentParser(
        prog="kaconv",
        description="Kernel attention convolutions: models, training, evaluation.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--builder",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="import this function and take its name as a model's, also in a checkpoint; repeatable",
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_parser in (
        add_table_parser,
        add_list_parser,
        add_train_parser,
        add_study_parser,
        add_detect_parser,
        add_evaluate_parser,
        add_predict_parser,
        add_convert_parser,
        add_export_parser,
        add_bench_parser,
    ):
        add_parser(subparsers)
    return parser


def add_command(
    subparsers: argparse._SubParsersAction, name: str, run: Callable, help: str, epilog: str
) -> argparse.ArgumentParser:
    """A subparser for a command: `help` is its line in the list of commands, `epilog` its examples."""
    parser = subparsers.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


TABLE_EXAMPLES = """\
examples:
  kaconv table
  kaconv table --format json | python -m json.tool

Parameters and FLOPs are computed from the models and compared with the published ones at the printed precision.
Errors are the published ones; those measured here come from the results that `kaconv evaluate --out` wrote.
Exit status: 0 if every row agrees, 1 if one does not.
"""


def add_table_parser(subparsers: argparse._SubParsersAction) -> None:
    """`kaconv table`."""
    parser = add_command(subparsers, "table", run_table, "recompute the paper's ImageNet table", TABLE_EXAMPLES)
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="what to print (default: %(default)s)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("reports/results"),
        metavar="DIR",
        help="where measured results lie (default: %(default)s)",
    )


def run_table(args: argparse.Namespace) -> int:
    """Print the table; 1 if a row disagrees with the paper."""
    import json

    from kaconv.paper.table import all_agree, format_table, table_rows

    rows = table_rows(args.results, progress=True)
    print(format_table(rows) if args.format == "text" else json.dumps(rows, indent=2))
    return 0 if all_agree(rows) else 1


LIST_EXAMPLES = """\
examples:
  kaconv list
  kaconv list 'ka_resnet*'
  kaconv list --weights
"""


def add_list_parser(subparsers: argparse._SubParsersAction) -> None:
    """`kaconv list`."""
    parser = add_command(subparsers, "list", run_list, "list the models by name", LIST_EXAMPLES)
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern of names (default: all)")
    parser.add_argument(
        "--weights", action="store_true", help="list the trained weights that come with the package instead"
    )


def run_list(args: argparse.Namespace) -> None:
    """Print the names, one on a line."""
    from kaconv import list_models

    if args.weights:
        return _list_weights(args.pattern)
    names = list_models(args.pattern)
    if not names:
        raise ValueError(f"no model matches {args.pattern!r}; there are {', '.join(list_models())}")
    print("\n".join(names))


def _list_weights(pattern: str) -> None:
    from kaconv.models.checkpoints import load_checkpoint
    from kaconv.models.weights import list_weights, weights_path

    names = list_weights(pattern)
    if not list_weights():
        print("This version of kaconv brings no trained weights.")
        return
    if not names:
        raise ValueError(f"no weights match {pattern!r}; there are {', '.join(list_weights())}")
    width = max(map(len, names))
    print(f"{'weights':{width}}  classes  image  top-1 error %     MB")
    for name in names:
        found, size = load_checkpoint(name), weights_path(name).stat().st_size / 1e6
        error = found.info["test_error"]
        image = found.preprocessing.image_size
        print(f"{name:{width}}  {len(found.classes):7}  {image:5}  {error:13.1f}  {size:5.1f}")


TRAIN_EXAMPLES = """\
examples:
  kaconv train --model ka_resnet29_cifar_l --data digits --epochs 5 --out runs/digits-l
  kaconv train --model resnet29_cifar --data folder:my/pictures --image-size 32 --workers 2 --out runs/mine
  kaconv train --model mobilenetv2_100 --weights torchvision --freeze 'features.?.*' --data folder:my/pictures \\
      --lr 0.01 --out runs/tuned
  kaconv train --recipe ka_resnet50_l --data imagenet:/data/imagenet --workers 8 --out runs/r50-l
  torchrun --nproc-per-node 8 -m kaconv train --recipe ka_resnet50_l --data imagenet:/data/imagenet --workers 8 \\
      --mixed-precision bf16 --channels-last --out runs/r50-l
  torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m kaconv train \\
      --recipe ka_resnet50_l --data imagenet:/data/imagenet --workers 8 --out runs/r50-l

--recipe takes the paper's settings for one of its models (or a YAML file of fields); other options overrule it. A step
of 256 images on fewer GPUs is the same step with --accumulation.

--weights starts from trained weights; where they are of another number of classes, the last layer is new. --freeze
takes shell patterns of parameters' names, with commas between; batch norms that are frozen keep their statistics.

OUT gets config.yaml, metrics.jsonl, TensorBoard's events, last.safetensors, best.safetensors (by test error) and, at
the end, summary.json. The same command does nothing where OUT is finished, and goes on where it was interrupted, by
whatever: SIGKILL, a full disk, a power cut. SIGTERM saves the state first and leaves with status 143.
"""


def add_train_parser(subparsers: argparse._SubParsersAction) -> None:
    """`kaconv train`: one option for each field of TrainConfig."""
    from kaconv.training.config import TrainConfig

    parser = add_command(subparsers, "train", run_train, "train a model into a folder", TRAIN_EXAMPLES)
    parser.add_argument("--recipe", metavar="MODEL", help="the paper's settings for this model of it, or a YAML file")
    types = get_type_hints(TrainConfig)
    for field in fields(TrainConfig):
        kind = types[field.name]
        kind = get_args(kind)[0] if isinstance(kind, UnionType) else kind  # int | None: an int, or not given
        text = field.metadata["help"]
        if field.default is not MISSING and field.default is not None:
            text += f" (default: {str(field.default).lower() if kind is bool else field.default})"
        name, options = f"--{field.name.replace('_', '-')}", {"default": argparse.SUPPRESS, "help": text}
        options["required"] = field.default is MISSING and field.name != "model"  # which a recipe may give
        if kind is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, **options)
        else:
            parser.add_argument(
                name, type=kind, metavar=(field.name if kind is str else kind.__name__).upper(), **options
            )


def run_train(args: argparse.Namespace) -> None:
    """Train, and say where the best weights are."""
    from kaconv.training import TrainConfig

    options = {name: value for name, value in vars(args).items() if name not in ("run", "recipe")}
    if args.recipe is not None:
        from kaconv.training.recipes import load_recipe

        options = load_recipe(args.recipe) | options
    if "model" not in options:
        raise ValueError("--model or --recipe is required; see kaconv train --help")
    config = TrainConfig.from_dict(options)

    from accelerate import PartialState

    from kaconv.training import fit

    run = fit(config)
    if PartialState().is_main_process:  # under torchrun there are others
        best = run.summary["best"]
        print(f"{run.checkpoint_path('best')}: test error {best['test_error']:.2f} % (epoch {best['epoch']})")


STUDY_EXAMPLES = """\
examples:
  kaconv study reports/studies/imagenette_mobilenetv2.yaml --jobs 2
  kaconv study reports/studies/imagenette_mobilenetv2.yaml --jobs 2 --status
  kaconv study reports/studies/imagenette_mobilenetv2.yaml --status --results found.json
  kaconv study reports/studies/imagenette_mobilenetv2.yaml --merge one.json other.json --results both.json
  kaconv study SPEC.yaml --slurm partition=gpu --slurm gpus=4 --slurm timeout=600 --jobs 8

a study:
  name: digits                                  # its runs go to runs/digits
  question: Does attention help on digits?
  data: digits                                  # as for `kaconv train`; --data overrides it
  models: [resnet29_cifar, ka_resnet29_cifar_l] # the first is what the others are compared with
  seeds: [0, 1, 2]
  recipe: {epochs: 5, batch_size: 64, lr: 0.1}  # options of `kaconv train`, with _ for -
  variants:                                     # optional; each overrides the recipe
    plain: {}
    decay: {weight_decay: 0.001, models: [ka_resnet29_cifar_l]}  # for some models only

Every training is a folder as of `kaconv train`; all of one seed come before the next seed. The same command goes on
where a study was interrupted, by whatever, and never trains twice what is finished; where one training fails, the
others still run. With --results FILE.json, what that file holds as finished, from whichever machine, counts as well.
--jobs and --slurm need submitit: pip install 'kaconv[cluster]'.

Exit status: 0, or 1 if a training failed.
"""


def add_study_parser(subparsers: argparse._SubParsersAction) -> None:
    """`kaconv study`."""
    summary = "train several models from several seeds, as a YAML file says, and compare them"
    parser = add_command(subparsers, "study", run_study, summary, STUDY_EXAMPLES)
    parser.add_argument("spec", metavar="SPEC.yaml", help="the study")
    parser.add_argument("--data", help="a data spec instead of the study's")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="where the runs go (default: runs/NAME)")
    parser.add_argument(
        "--jobs", type=_at_least_one, default=1, metavar="N", help="trainings side by side (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=_at_least_one, metavar="N", help="of each training (default: its share of torch's)"
    )
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="submit to Slurm; repeatable: partition=NAME, gpus=N (of each training), timeout=MINUTES (default: a day)",
    )
    parser.add_argument("--status", action="store_true", help="show how far the study is, and train nothing")
    parser.add_argument("--merge", nargs="+", metavar="FILE", help="put results of several machines together")
    parser.add_argument(
        "--results",
        nargs="?",
        const="",
        metavar="FILE.json",
        help="go on from the results in this file, and write them here after each training (default: "
        "reports/studies/NAME.json)",
    )


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def run_study(args: argparse.Namespace) -> int:
    """Train what is left of a study, or show or merge what is there; 1 if a training failed."""
    from kaconv.training.study_jobs import parse_slurm_options
    from kaconv.training.study_results import (
        RESULT_KEYS,
        finished_trainings,
        format_results,
        format_status,
        merge_results,
        read_study_results,
        study_results,
        study_status,
    )
    from kaconv.training.study_spec import load_study, study_trainings
    from kaconv.utils.files import write_json

    spec = load_study(args.spec, args.data)
    trainings = study_trainings(spec, args.runs or Path("runs", spec.name))
    slurm = parse_slurm_options(args.slurm)
    out = None if args.results is None else Path(args.results or f"reports/studies/{spec.name}.json")
    if out is not None:
        check_result_path(out, "study", RESULT_KEYS)
    known = finished_trainings(spec, out) if out is not None and not args.merge else {}
    failed = False
    if args.merge:
        results, notes = merge_results(spec, [(name, read_study_results(name)) for name in args.merge])
        print("".join(f"{note}\n" for note in notes), end="")
    else:
        if args.status:
            print(format_status(study_status(trainings, known), args.jobs))
        else:
            failed = _train_study(args, spec, trainings, known, slurm, out)
        results = study_results(spec, trainings, known)
    print(format_results(results))
    if out is not None:
        write_json(out, results)
        print(out)
    return 1 if failed else 0


def _train_study(
    args: argparse.Namespace, spec: Any, trainings: list, known: dict, slurm: dict, out: Path | None
) -> bool:
    """Train what is finished neither here nor in `known`, with a line and new results for each that ends.

    Returns:
        Whether one failed.
    """
    from kaconv.training.study_jobs import check_before_training, run_here, run_locally, submit_to_slurm
    from kaconv.training.study_results import study_results, study_status, time_left
    from kaconv.utils.files import write_json

    left = check_before_training([training for training in trainings if training.key not in known])
    print(f"{spec.name}: {len(trainings)} trainings, {len(trainings) - len(left)} of them finished", flush=True)
    runs = args.runs or Path("runs", spec.name)
    if args.slurm and left:
        ids = submit_to_slurm(left, args.jobs, runs, slurm)
        print(f"submitted {', '.join(ids)}; --status says how far they are")
        return False
    ends = run_here(left, args.threads) if args.jobs == 1 else run_locally(left, args.jobs, runs, args.threads)
    failures = []
    for number, (training, error) in enumerate(ends, len(trainings) - len(left) + 1):
        if error is not None:
            failures.append(training)
            print(f"kaconv: {training} failed: {shortened(printable(error))}", file=sys.stderr, flush=True)
        if out is not None:
            write_json(out, study_results(spec, trainings, known))
        rest = time_left(study_status(trainings, known), args.jobs)
        print(f"{training}: {number} of {len(trainings)} {'failed' if error else 'done'}; {rest}", flush=True)
    return bool(failures)


DETECT_EXAMPLES = """\
examples:
  kaconv detect --data voc:/data/VOC2007 --backbone ka_mobilenetv2_050_l --detector ssdlite --out runs/voc-l
  kaconv detect --data coco:/data/coco --backbone ka_resnet50_l --weights ka_resnet50_l.safetensors \\
      --detector faster_rcnn --batch-size 16 --workers 8 --out runs/coco-l

The second line beside the same one with resnet50 and --weights torchvision would test the paper's claim of gains on
COCO: a Faster R-CNN with frozen batch norms on two backbones with ImageNet weights. It takes days of a GPU for each
seed, and was not measured; docs/detection.md says how to try it on a small extract.

Data are voc:PATH (JPEGImages/, Annotations/, ImageSets/Main/; or images/, annotations/, train.txt, val.txt) or
coco:PATH (annotations/instances_train*.json, instances_val*.json, train*/, val*/). OUT gets last.safetensors and
summary.json, with COCO's average precision of the test images; the same command goes on with a training that was
interrupted, and shows the result of a finished one.
"""


def add_detect_parser(subparsers: argparse._SubParsersAction) -> None:
    """`kaconv detect`."""
    summary = "train a detector on images with boxes and measure its average precision"
    parser = add_command(subparsers, "detect", run_detect, summary, DETECT_EXAMPLES)

    def add(name: str, help: str, kind: type = str, **options: Any) -> None:
        metavar = None if "choices" in options else "INT" if kind is int else "FLOAT" if kind is float else None
        options.setdefault("default", argparse.SUPPRESS)
        parser.add_argument(name, type=kind, help=help, metavar=metavar, **options)

    add("--data", "voc:PATH or coco:PATH", required=True)
    add("--backbone", "a name from `kaconv list`, but for the _cifar ones", required=True)
    add("--detector", "ssdlite (for MobileNetV2), faster_rcnn or retinanet (default: ssdlite)")
    add("--out", "the folder of the results: new, empty, or that of the same training", required=True)
    add("--epochs", "passes over the training images (default: 26)", int)
    add("--batch-size", "images of a step (default: 8)", int)
    add("--lr", "peak learning rate (default: torchvision's for COCO, in proportion to the batch)", float)
    add("--image-size", "in pixels: of SSDLite the side of a square, else the shorter side (default: 320; 800)", int)
    add("--weights", "of the backbone, as for `kaconv train` (default: new ones)")
    add("--norm", "batch, frozen or group (default: frozen with --weights, else batch)")
    add("--trainable-layers", "stages of the backbone to train, 0 to 5 (default: 3 with --weights, else 5)", int)
    parser.add_argument(
        "--crop",
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS,
        help="crop training images at random, as SSD is trained (default: for ssdlite; small data can do without)",
    )
    add("--seed", "of everything random (default: 0)", int)
    add("--workers", "processes that load images (default: 0)", int)


def run_detect(args: argparse.Namespace) -> None:
    """Train, and print the average precision."""
    from kaconv.training.detection import CHECKPOINT, DetectionConfig, train_detector

    options = {name: value for name, value in vars(args).items() if name != "run"}
    summary = train_detector(DetectionConfig(**options)).summary
    print(
        f"{Path(args.out, CHECKPOINT)}: average precision {summary['average_precision']:.1f} % "
        f"({summary['average_precision_50']:.1f} % at IoU 0.50), {summary['test_images']} test images"
    )


EVALUATE_EXAMPLES = """\
examples:
  kaconv evaluate --checkpoint runs/digits-l/best.safetensors --data digits
  kaconv evaluate --checkpoint ka_resnet50_l.safetensors --data imagenet:/data/imagenet --workers 8 --out result.json
  torchrun --nproc-per-node 8 -m kaconv evaluate --checkpoint ka_resnet50_l.safetensors \\
      --data imagenet:/data/imagenet --workers 4 --out reports/results/ka_resnet50_l.json --details details

Images are prepared as the checkpoint says; for ImageNet that is the paper's way (Resize 256 bicubic, CenterCrop 224)
unless it was trained in another. RESULT.json says which, and where its figures come from: the checkpoint's sha256, the
machine, the versions, kaconv's commit, the command and the date. `kaconv table` shows the results in reports/results.

Where statistics of batch norm that are recomputed from up to 500 training images (test images, without their labels,
where there are none) lower the error of up to 500 test images by 5 percentage points or more, and beyond chance, a
line on stderr says so.

DIR gets per_class.csv (index, class, n, top1_error and top5_error in percent, most_frequent_mistake, times) and
mistakes.csv, the 100 most confident ones (picture, index, class, predicted_index, predicted_class, probability,
class_probability).
"""


def add_evaluate_parser(subparsers: argparse._SubParsersAction) -> None:
    """`kaconv evaluate`."""
    summary = "measure a checkpoint's top-1 and top-5 error over a whole test set"
    parser = add_command(subparsers, "evaluate", run_evaluate, summary, EVALUATE_EXAMPLES)
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a safetensors file of `kaconv train`")
    parser.add_argument("--data", required=True, help="a data spec, as for `kaconv train`; its test split is used")
    parser.add_argument(
        "--data-root", default="data/cache", help="where downloaded data sets lie or go (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=256, metavar="INT", help="images at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=0, metavar="INT", help="processes that load images (default: %(default)s)"
    )
    parser.add_argument(
        "--max-broken",
        type=int,
        default=10,
        metavar="INT",
        help="unreadable images to pass over before giving up (default: %(default)s)",
    )
    parser.add_argument(
        "--fresh-statistics",
        metavar="FILE.safetensors",
        help="write the checkpoint with its batch norms' statistics recomputed from up to 2,000 training images, and "
        "measure the error with them, too",
    )
    parser.add_argument("--out", metavar="RESULT.json", help="write the result here, too")
    parser.add_argument("--details", metavar="DIR", help="write errors by class and the most confident mistakes here")


def run_evaluate(args: argparse.Namespace) -> None:
    """Evaluate, print the errors, write the result."""
    if args.out is not None:
        check_result_path(Path(args.out), "evaluate", {"top1_error", "provenance"})
    if args.fresh_statistics is not None:
        check_out_file(Path(args.fresh_statistics), ".safetensors")
    from accelerate import PartialState

    from kaconv.inference import evaluate_checkpoint
    from kaconv.utils.files import write_json

    result = evaluate_checkpoint(
        args.checkpoint,
        args.data,
        args.data_root,
        args.batch_size,
        args.workers,
        max_broken=args.max_broken,
        details=args.details,
        fresh_statistics=args.fresh_statistics,
    )
    if not PartialState().is_main_process:
        return
    top5 = "" if result["top5_error"] is None else f", top-5 error {result['top5_error']:.2f} %"
    print(
        f"{result['model']} on {result['data']}, {result['n']} images: top-1 error {result['top1_error']:.2f} %{top5}"
    )
    if args.fresh_statistics is not None:
        print(f"{args.fresh_statistics}: top-1 error {result['fresh_statistics']['top1_error']:.2f} %")
    if result["skipped"]:
        print(f"not counted, since unreadable: {printable(', '.join(result['skipped']))}")
    if args.out is not None:
        write_json(args.out, result)


PREDICT_EXAMPLES = """\
examples:
  kaconv predict --checkpoint ka_resnet50_l.safetensors cat.jpg dog.png
  kaconv predict --checkpoint runs/mine/best.safetensors my/holiday
  kaconv predict --checkpoint ka_resnet50_l.safetensors --topk 1 --format json pictures/*.webp

JPEG (CMYK, too), PNG (16-bit, palette, transparent: on white), WebP, GIF (the first frame) and whatever else Pillow
reads, upright as EXIF says. Of a folder, every image in it and in the folders below, sorted by name; other files and
hidden ones are left out. What cannot be read (.heic, for one) is named on stderr, and the others are still done.
JSON: a list of {"path", "topk": [{"class", "index", "probability"}, ...]}. Exit status: 0 if every image was read,
1 if one was not.
"""


def add_predict_parser(subparsers: argparse._SubParsersAction) -> None:
    """`kaconv predict`."""
    parser = add_command(subparsers, "predict", run_predict, "name what is in image files", PREDICT_EXAMPLES)
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a safetensors file of `kaconv train`")
    parser.add_argument(
        "--topk", type=int, default=5, metavar="INT", help="most probable classes to give (default: %(default)s)"
    )
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="what to print (default: %(default)s)"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")


def run_predict(args: argparse.Namespace) -> int:
    """Print the classes; 1 if an image could not be read."""
    import json

    from tqdm import tqdm

    from kaconv.inference.prediction import predict
    from kaconv.models.checkpoints import load_checkpoint

    errors = []

    def report(error: Exception) -> None:
        errors.append(error)
        tqdm.write(f"kaconv: {_message(error)}", file=sys.stderr)

    checkpoint = load_checkpoint(args.checkpoint)
    results = predict(checkpoint, args.images, topk=args.topk, on_error=report, progress=True)
    if args.format == "json":
        print(json.dumps(results, indent=2))
    else:
        for result in results:
            print(printable(result["path"]))
            for found in result["topk"]:
                print(f"  {100 * found['probability']:6.2f} %  {printable(found['class'])} ({found['index']})")
    return 1 if errors else 0


CONVERT_EXAMPLES = """\
examples:
  kaconv convert best_model.pkl ka_resnet50_l.safetensors
  kaconv evaluate --checkpoint ka_resnet50_l.safetensors --data imagenet:/data/imagenet

Reads a KAResNet-50 or -101, AG-L or AG-H, of either revision of the authors' code. Every key and shape is checked.
Nothing in the file is run: one that asks for more than tensors and the authors' record of metrics is refused.
"""


def add_convert_parser(subparsers: argparse._SubParsersAction) -> None:
    """`kaconv convert`."""
    summary = "turn the authors' pickled ImageNet checkpoint into one of kaconv"
    parser = add_command(subparsers, "convert", run_convert, summary, CONVERT_EXAMPLES)
    parser.add_argument("source", metavar="best_model.pkl", help="the authors' file")
    parser.add_argument("out", metavar="OUT.safetensors", help="the file to write")


def run_convert(args: argparse.Namespace) -> None:
    """Convert, and say what was found."""
    check_out_file(Path(args.out), ".safetensors")
    from kaconv.models.authors import convert

    checkpoint = convert(args.source, args.out)
    info = checkpoint.info
    epoch = f", epoch {info['epoch']}" if "epoch" in info else ""
    prefix = f", each after {info['prefix']!r}" if info["prefix"] else ""
    print(f"{args.out}: {checkpoint.name}{epoch}, from the authors' keys of revision {info['revision']!r}{prefix}")


EXPORT_EXAMPLES = """\
examples:
  kaconv export --checkpoint runs/first/best.safetensors --format onnx
  kaconv export --checkpoint runs/first/best.safetensors --format pt2 --out model.pt2

The exported model takes `images` (N, 3, S, S), any N, prepared as the preprocessing in the file says, and gives
`logits`. Model name, classes and preprocessing are JSON in the metadata property `kaconv` (onnx) or the extra file
kaconv.json (pt2). onnx needs more packages: pip install 'kaconv[export]'.

Both hold PyTorch's own operators and run without kaconv. In Python, compiled code with the fused kernels is had by
  program = torch.export.export(kaconv.optimize_for_inference(model), (images,))
  torch._inductor.aoti_compile_and_package(program, package_path="model.pt2")
and runs by torch._inductor.aoti_load_package("model.pt2") after `import kaconv`.
"""


def add_export_parser(subparsers: argparse._SubParsersAction) -> None:
    """`kaconv export`."""
    summary = "write a checkpoint's model as ONNX or as an exported PyTorch program"
    parser = add_command(subparsers, "export", run_export, summary, EXPORT_EXAMPLES)
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a safetensors file of `kaconv train`")
    parser.add_argument("--format", required=True, choices=("onnx", "pt2"), help="what to write")
    parser.add_argument("--out", metavar="PATH", help="the file to write (default: beside the checkpoint)")


def run_export(args: argparse.Namespace) -> None:
    """Export, and say where to."""
    suffix = f".{args.format}"
    out = Path(args.out) if args.out is not None else Path(args.checkpoint).with_suffix(suffix)
    check_out_file(out, suffix)
    from kaconv.models.checkpoints import load_checkpoint
    from kaconv.models.export import export

    checkpoint = load_checkpoint(args.checkpoint)
    print(f"exporting {checkpoint.name}: a deep model may take a minute", file=sys.stderr)
    export(checkpoint, out, args.format)
    print(out)


BENCH_EXAMPLES = """\
examples:
  kaconv bench
  kaconv bench --models ka_mobilenetv2_100_l --variants eager fused --image-size 96
  kaconv bench --variants fused-optimized --batch-size 1 --threads 1
  kaconv bench --device cuda --dtype bfloat16 --channels-last --out benchmarks/results/gpu.json
  kaconv bench --input imagenet:/data/imagenet --models ka_resnet50_l --workers 0 1 2 4 8 16

The plain twin of each model is always measured. Variants: the KAConv model with each backend (reference, eager, fused);
both models compiled (fused-compiled) and, at inference, optimized (fused-optimized); and the peers SE, SK and CondConv,
which need timm (pip install 'kaconv[bench]'). They take turns in every round.

With --input: how many images per second are decoded, prepared and augmented, by 0, 1, 2, 4 ... workers, beside what
the plain and the fused models take, and which of the two limits a training.

The times mean something only on a machine that does nothing else meanwhile; benchmarks/README.md says how to read them.
"""


def add_bench_parser(subparsers: argparse._SubParsersAction) -> None:
    """`kaconv bench`: what is not given is left to `run_benchmark`'s defaults."""
    summary = "measure time and memory of KAConv models beside their plain twins and their peers"
    parser = add_command(subparsers, "bench", run_bench, summary, BENCH_EXAMPLES)

    def add(name: str, help: str, **kwargs: Any) -> None:
        parser.add_argument(name, help=help, default=argparse.SUPPRESS, **kwargs)

    add("--models", "KAConv models (default: the -l forms of ResNet50, ResNeXt50 and MobileNetV2)", nargs="+")
    add(
        "--variants",
        "what to measure beside the plain model (default: all but the compiled and the optimized ones)",
        nargs="+",
    )
    add("--device", "cpu or cuda (default: cuda where there is one)")
    add("--dtype", "float32, or bfloat16: autocast (default: float32)")
    add("--batch-size", "images at a time (default: 4 on the CPU, 256 on CUDA)", type=int, metavar="INT")
    add("--image-size", "side of the images in pixels (default: 224)", type=int, metavar="INT")
    add("--channels-last", "lay out maps and weights with the channels last", action="store_true")
    add("--rounds", "how often each variant takes its turn (default: 7)", type=int, metavar="INT")
    add("--threads", "torch's threads on the CPU (default: as many as it takes by itself)", type=int, metavar="INT")
    add("--input", "measure the loading of these images, a data spec as for `kaconv train`", metavar="DATA")
    add("--workers", "numbers of loading processes, with --input (default: 0 1 2 4 ...)", nargs="+", type=int)
    parser.add_argument("--out", metavar="RESULT.json", help="write everything that was measured here, too")


def run_bench(args: argparse.Namespace) -> None:
    """Measure, print the tables, write the result."""
    from kaconv.bench.benchmark import RESULT_KEYS, format_benchmark, run_benchmark
    from kaconv.bench.input_speed import format_input_benchmark, run_input_benchmark
    from kaconv.utils.files import write_json

    if args.out is not None:
        check_result_path(Path(args.out), "bench", RESULT_KEYS)
    options = {name: value for name, value in vars(args).items() if name not in ("run", "out")}
    if data := options.pop("input", None):
        if "variants" in options:
            raise ValueError("--variants has no meaning with --input, which measures the plain and the fused models")
        result = run_input_benchmark(data, **options, progress=True)
        print(format_input_benchmark(result))
    elif "workers" in options:
        raise ValueError("--workers has a meaning only with --input DATA")
    else:
        result = run_benchmark(**options, progress=True)
        print(format_benchmark(result))
    if args.out is not None:
        write_json(args.out, result)


def check_out_file(path: Path, suffix: str) -> None:
    """ValueError if a file with this ending cannot be written there."""
    from kaconv.utils.checks import file_in_the_way

    if path.is_dir():
        raise ValueError(f"output {path} is a folder; give a file's name")
    if path.suffix != suffix:
        raise ValueError(f"output must end in {suffix}, got {str(path)!r}")
    if file := file_in_the_way(path.parent):
        raise ValueError(f"output {path} cannot be written: {file} is a file, not a folder")


def check_result_path(path: Path, command: str, keys: set[str]) -> None:
    """ValueError if `command`'s result, a dict with `keys`, cannot be written there, or would replace another file."""
    import json

    check_out_file(path, ".json")
    if not path.exists():
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        there = None
    if not isinstance(there, dict) or not keys <= there.keys():
        raise ValueError(f"--out {path} exists and is not a result of kaconv {command}; choose another name")
