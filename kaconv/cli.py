"""The `kaconv` command. A subcommand is `add_x_parser`, which says what it takes, and `run_x`, which does it.

What needs torch is imported where it runs.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

EXAMPLES = """\
examples:
  kaconv table
  kaconv list 'ka_*'
  kaconv train --model ka_resnet29_cifar_l --data digits --epochs 5 --out runs/first
  kaconv evaluate --checkpoint runs/first/best.safetensors --data digits
  kaconv bench --models ka_mobilenetv2_100_l --image-size 96

`kaconv COMMAND --help` says more about each command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: that of the process) and return its exit status.

    2: wrong arguments, missing files or data, a training that diverged; 130: interrupted.
    """
    args = build_parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        print("kaconv: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"kaconv: error: {_message(error)}", file=sys.stderr)
        return 2


def _message(error: Exception) -> str:
    message = str(error)
    if message.startswith("Caught "):  # torch puts the whole traceback of a loading process into the message
        return message.splitlines()[-1].removeprefix(f"{type(error).__name__}: ")
    return message


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `args.run(args)` does what was asked for."""
    parser = argparse.ArgumentParser(
        prog="kaconv",
        description="Kernel attention convolutions: models, training, evaluation.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_parser in (add_table_parser, add_list_parser, add_train_parser, add_evaluate_parser, add_bench_parser):
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

    from kaconv.table import all_agree, format_table, table_rows

    rows = table_rows(args.results, progress=True)
    print(format_table(rows) if args.format == "text" else json.dumps(rows, indent=2))
    return 0 if all_agree(rows) else 1


LIST_EXAMPLES = """\
examples:
  kaconv list
  kaconv list 'ka_resnet*'
"""


def add_list_parser(subparsers: argparse._SubParsersAction) -> None:
    """`kaconv list`."""
    parser = add_command(subparsers, "list", run_list, "list the models by name", LIST_EXAMPLES)
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern of names (default: all)")


def run_list(args: argparse.Namespace) -> None:
    """Print the names, one on a line."""
    from kaconv import list_models

    names = list_models(args.pattern)
    if not names:
        raise ValueError(f"no model matches {args.pattern!r}; there are {', '.join(list_models())}")
    print("\n".join(names))


TRAIN_EXAMPLES = """\
examples:
  kaconv train --model ka_resnet29_cifar_l --data digits --epochs 5 --out runs/digits-l
  kaconv train --model resnet29_cifar --data folder:my/pictures --image-size 32 --workers 2 --out runs/mine
  torchrun --nproc-per-node 8 -m kaconv train --model ka_resnet50_l --data imagenet:/data/imagenet --epochs 100 \\
      --batch-size 256 --lr 0.1 --schedule step --weight-decay 1e-4 --label-smoothing 0.1 --workers 8 --out runs/r50-l

OUT gets config.yaml, metrics.jsonl, TensorBoard's events, last.safetensors, best.safetensors (by test error) and, at
the end, summary.json. The same command does nothing where OUT is finished; a training that was interrupted starts
again from the first epoch.
"""


def add_train_parser(subparsers: argparse._SubParsersAction) -> None:
    """`kaconv train`: one option for each field of TrainConfig."""
    from kaconv.training.config import TrainConfig

    parser = add_command(subparsers, "train", run_train, "train a model into a folder", TRAIN_EXAMPLES)
    types = get_type_hints(TrainConfig)
    for field in fields(TrainConfig):
        kind = types[field.name]
        kind = get_args(kind)[0] if isinstance(kind, UnionType) else kind  # int | None: an int, or not given
        required = field.default is MISSING
        default = "" if required or field.default is None else f" (default: {field.default})"
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=kind,
            required=required,
            default=argparse.SUPPRESS,
            metavar=kind.__name__.upper() if kind is not str else field.name.upper(),
            help=field.metadata["help"] + default,
        )


def run_train(args: argparse.Namespace) -> None:
    """Train, and say where the best weights are."""
    from accelerate import PartialState

    from kaconv.training import TrainConfig, fit

    run = fit(TrainConfig(**{name: value for name, value in vars(args).items() if name != "run"}))
    if PartialState().is_main_process:  # under torchrun there are others
        best = run.summary["best"]
        print(f"{run.checkpoint_path('best')}: test error {best['test_error']:.2f} % (epoch {best['epoch']})")


EVALUATE_EXAMPLES = """\
examples:
  kaconv evaluate --checkpoint runs/digits-l/best.safetensors --data digits
  kaconv evaluate --checkpoint ka_resnet50_l.safetensors --data imagenet:/data/imagenet --workers 8 --out result.json

Pictures are prepared as the checkpoint says. RESULT.json also says where its figures come from: the checkpoint's
sha256, the machine, the versions, kaconv's commit, the command and the date.
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
        "--batch-size", type=int, default=256, metavar="INT", help="pictures at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=0, metavar="INT", help="processes that load pictures (default: %(default)s)"
    )
    parser.add_argument("--out", metavar="RESULT.json", help="write the result here, too")


def run_evaluate(args: argparse.Namespace) -> None:
    """Evaluate, print the errors, write the result."""
    if args.out is not None:
        check_result_path(Path(args.out), "evaluate", {"top1_error", "provenance"})
    from accelerate import PartialState

    from kaconv.files import write_json
    from kaconv.training import evaluate_checkpoint

    result = evaluate_checkpoint(args.checkpoint, args.data, args.data_root, args.batch_size, args.workers)
    if not PartialState().is_main_process:
        return
    print(
        f"{result['model']} on {result['data']}, {result['n']} images: "
        f"top-1 error {result['top1_error']:.2f} %, top-5 error {result['top5_error']:.2f} %"
    )
    if args.out is not None:
        write_json(args.out, result)


BENCH_EXAMPLES = """\
examples:
  kaconv bench
  kaconv bench --models ka_mobilenetv2_100_l --variants eager fused --image-size 96
  kaconv bench --device cuda --dtype bfloat16 --channels-last --out benchmarks/results/gpu.json

The plain twin of each model is always measured. Variants: the KAConv model with each backend (reference, eager, fused),
and its peers SE, SK and CondConv, which need timm (pip install 'kaconv[bench]'). They take turns in every round. The
times mean something only on a machine that does nothing else meanwhile; benchmarks/README.md says how to read them.
"""


def add_bench_parser(subparsers: argparse._SubParsersAction) -> None:
    """`kaconv bench`: what is not given is left to `run_benchmark`'s defaults."""
    summary = "measure time and memory of KAConv models beside their plain twins and their peers"
    parser = add_command(subparsers, "bench", run_bench, summary, BENCH_EXAMPLES)

    def add(name: str, help: str, **kwargs: Any) -> None:
        parser.add_argument(name, help=help, default=argparse.SUPPRESS, **kwargs)

    add("--models", "KAConv models (default: the -l forms of ResNet50, ResNeXt50 and MobileNetV2)", nargs="+")
    add("--variants", "what to measure beside the plain model (default: all)", nargs="+")
    add("--device", "cpu or cuda (default: cuda where there is one)")
    add("--dtype", "float32, or bfloat16: autocast (default: float32)")
    add("--batch-size", "pictures at a time (default: 4 on the CPU, 256 on CUDA)", type=int, metavar="INT")
    add("--image-size", "side of the pictures in pixels (default: 224)", type=int, metavar="INT")
    add("--channels-last", "lay out maps and weights with the channels last", action="store_true")
    add("--rounds", "how often each variant takes its turn (default: 7)", type=int, metavar="INT")
    add("--threads", "torch's threads on the CPU (default: as many as it takes by itself)", type=int, metavar="INT")
    parser.add_argument("--out", metavar="RESULT.json", help="write everything that was measured here, too")


def run_bench(args: argparse.Namespace) -> None:
    """Measure, print the tables, write the result."""
    from kaconv.benchmark import RESULT_KEYS, format_benchmark, run_benchmark
    from kaconv.files import write_json

    if args.out is not None:
        check_result_path(Path(args.out), "bench", RESULT_KEYS)
    options = {name: value for name, value in vars(args).items() if name not in ("run", "out")}
    result = run_benchmark(**options, progress=True)
    print(format_benchmark(result))
    if args.out is not None:
        write_json(args.out, result)


def check_result_path(path: Path, command: str, keys: set[str]) -> None:
    """ValueError if `command`'s result, a dict with `keys`, cannot be written there, or would replace another file."""
    import json

    from kaconv.training.config import file_in_the_way

    if path.is_dir():
        raise ValueError(f"--out {path} is a folder; give a file's name")
    if path.suffix != ".json":
        raise ValueError(f"--out must end in .json, got {str(path)!r}")
    if file := file_in_the_way(path.parent):
        raise ValueError(f"--out {path} cannot be written: {file} is a file, not a folder")
    if not path.exists():
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        there = None
    if not isinstance(there, dict) or not keys <= there.keys():
        raise ValueError(f"--out {path} exists and is not a result of kaconv {command}; choose another name")
