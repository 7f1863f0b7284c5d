"""Every snippet of the documents and every example of a docstring, run; shell commands are parsed, not run."""

import argparse
import contextlib
import io
import re
import shlex
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import timm
import torch
import torchvision
import yaml
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser

import kaconv
import kaconv.cli
import kaconv.training
import kaviz
import kaviz.cli
from kaconv.cli import build_parser
from kaconv.data import IMAGENET, load_data
from kaconv.models.checkpoints import save_checkpoint
from kaconv.training import Run, TrainConfig
from kaconv.training.study_spec import parse_study
from kaconv.training.trainer import fit
from kaviz.reports.spec import declared_parameters, load_spec

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
IGNORED = {".venv", "build", "node_modules", "out", "runs", "site"}  # what is made, not written
DOCUMENTS = sorted(path for path in ROOT.rglob("*.md") if not IGNORED & set(path.relative_to(ROOT).parts))
PAGES = [path for path in DOCUMENTS if "\n```{code-cell}" in path.read_text(encoding="utf-8")]
MODULES = [
    path
    for package in ("kaconv", "kaviz")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
# Programs that are not ours, and that commands of ours do not hide behind.
OTHERS = {"cd", "conda", "git", "jupyter", "pre-commit", "source", "tensorboard"}
NETS = """
from kaconv import create_model


def ka_resnet18(num_classes):
    return create_model("ka_resnet11_cifar_l", num_classes)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A file as `kaconv convert` writes it, of a network that has learned nothing."""
    path = tmp_path_factory.mktemp("weights") / "ka_resnet50_l.safetensors"
    facts = {"name": "ka_resnet50_l", "classes": [str(number) for number in range(1000)]}
    save_checkpoint(path, kaconv.create_model("ka_resnet50_l"), preprocessing=IMAGENET.at(32), **facts)
    return path


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory) -> Path:
    """A cache in which torchvision finds weights for its ResNet-50, so that it downloads none."""
    home = tmp_path_factory.mktemp("torch")
    (home / "hub" / "checkpoints").mkdir(parents=True)
    file = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url.split("/")[-1]
    torch.save(torchvision.models.resnet50().state_dict(), home / "hub" / "checkpoints" / file)
    return home


def small(config: TrainConfig) -> TrainConfig:
    """The training that a snippet asks for, so short that it only shows that it runs."""
    return replace(config, model="ka_resnet11_cifar_l", data="fake", epochs=1, image_size=8)


def short_study(models: list[str], seeds: list[int], **options) -> list[Run]:
    """As `kaconv.training.train_study`, but short and silent."""
    with contextlib.redirect_stdout(io.StringIO()):
        return list(kaconv.training.train_study(models, seeds, data="fake", epochs=1, image_size=8, **options))


@pytest.fixture
def world(checkpoint, torch_home, tmp_path, monkeypatch):
    """The names that snippets take as given, and a folder with the files that they read."""
    torch.manual_seed(0)
    model = kaconv.create_model("ka_resnet11_cifar_l", num_classes=10)
    preprocessing, classes = IMAGENET.at(32), [f"class {number}" for number in range(10)]
    photos = load_data("photos", preprocessing=preprocessing).test
    images, labels = torch.stack([photos[number][0] for number in range(8)]), torch.arange(8) % 4
    model(images)
    model.eval()
    with torch.no_grad(), kaconv.AttentionCapture(model) as capture:
        model(images)
    record = capture.record(labels=labels.numpy())
    record.save(tmp_path / "maps.npz")
    (tmp_path / checkpoint.name).symlink_to(checkpoint)
    (tmp_path / "my" / "photos").mkdir(parents=True)
    for path in sorted((ROOT / "kaconv" / "data" / "photos").glob("*.jpg"))[:2]:
        (tmp_path / "my" / "photos" / path.name).symlink_to(path)
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (tmp_path / "coco" / f"annotations/instances_{split}.json").write_text('{"images": []}')
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    monkeypatch.setattr(kaconv.training, "fit", lambda config: fit(small(config)), raising=False)
    for name in ("display", "clear_output", "print"):
        monkeypatch.setattr(f"kaviz.live.{name}", lambda *_, **__: None, raising=False)
    names = [f"photo {number}" for number in range(8)]
    loader = [(images, labels)]
    yield {
        **{"torch": torch, "torchvision": torchvision, "kaconv": kaconv, "kaviz": kaviz, "model": model},
        **{"images": images, "labels": labels, "classes": classes, "names": names, "loader": loader},
        **{"preprocessing": preprocessing, "record": record, "cat": 0, "dog": 1},
        **{"timm": timm, "create_model": kaconv.create_model},
        **{"train_study": short_study, "models": ["resnet11_cifar"], "seeds": [0]},
    }
    for name in ("my_package", "my_package.nets"):
        sys.modules.pop(name, None)


def check_command(words: list[str]) -> None:
    """Fail unless the command is there and takes these arguments."""
    program, *arguments = words
    program = Path(program).name
    if program == "torchrun" and "-m" in arguments:  # what it runs
        program, *arguments = arguments[arguments.index("-m") + 1 :]
    if program == "kaconv":
        build_parser().parse_args(arguments)
    elif program == "kaviz":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kaviz.cli, "_notebooks", lambda *_: 0)
            patch.setattr(kaviz.cli, "_report", lambda *_: 0)
            patch.setattr(kaviz.cli, "_exit_on_signals", lambda: None)
            assert kaviz.cli.main(arguments) == 0
    elif program == "make":
        assert arguments[0] in TARGETS, f"there is no target {arguments[0]}"
    elif program == "python":
        assert (ROOT / arguments[0]).is_file(), f"there is no script {arguments[0]}"
    elif program == "pip":
        assert arguments[0] == "install"
        extras = re.findall(r"\[(.*)\]", arguments[-1])
        assert {extra for found in extras for extra in found.split(",")} <= EXTRAS.keys()
    elif program == "papermill":
        cells = nbformat.read(ROOT / arguments[0], as_version=4).cells
        (parameters,) = (cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
        given = {arguments[place + 1] for place, word in enumerate(arguments) if word == "-p"}
        assert given <= declared_parameters(parameters.source).keys()
    else:
        assert program in OTHERS, f"{program} is unknown here"


def check_shell(example) -> None:
    """Parse the commands of a shell snippet."""
    text = re.sub(r"\\\n\s*", "", example.parsed)
    for line in text.splitlines():
        for command in line.split("&&"):
            if words := shlex.split(command, comments=True):
                try:
                    check_command(words)
                except SystemExit:
                    raise AssertionError(f"{command.strip()} is no command of ours") from None


def examples_of_help(epilog: str) -> list[str]:
    """The commands that a help shows, each in one line, without what its output goes to."""
    _, _, shown = epilog.partition("examples:\n")
    lines = re.sub(r"\\\n\s*", "", shown.split("\n\n")[0]).splitlines()
    return [line.split(" | ")[0] for line in lines]


DOCUMENT = Sybil([PythonCodeBlockParser(), CodeBlockParser("bash", check_shell)], encoding="utf-8")
DOCSTRINGS = Sybil([DocTestParser()], document_types={".py": PythonDocStringDocument}, encoding="utf-8")


def run_examples(sybil: Sybil, path: Path, world: dict) -> None:
    document = sybil.parse(path)
    document.namespace.update(world)
    for example in document.examples():
        example.evaluate()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_snippets_of_a_document_run(path: Path, world: dict) -> None:
    run_examples(DOCUMENT, path, world)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_examples_of_a_module_run(path: Path, world: dict) -> None:
    run_examples(DOCSTRINGS, path, world)


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_cells_of_a_page_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that `make docs` runs, for networks that have hardly been trained."""
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("KACONV_DOCS_QUICK", "1")
    monkeypatch.setenv("KACONV_DOCS_RUNS", str(tmp_path))
    cells = re.findall(r"^```{code-cell} python\n(?::.*\n)*(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)
    names: dict[str, object] = {}
    for cell in cells:
        exec(compile(cell.replace("%matplotlib inline", ""), path, "exec"), names)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_snippet_escapes(path: Path) -> None:
    """`text` shows what is no code, and {} does what the site's build does."""
    text = path.read_text(encoding="utf-8")
    languages = re.findall(r"^ *(?:```|~~~)(.*)\n(?:.*\n)*?^ *(?:```|~~~)$", text, re.M)
    known = {"python", "bash", "text", "{code-cell} python", "{toctree}"}
    assert [language for language in languages if language not in known and not language.startswith("{include} ")] == []
    prose = re.sub(r"^```.*\n(?:.*\n)*?^```$", "", text, flags=re.M)
    assert re.findall(r"\n\n(?: {4}|\t)(?![ |*-]).*", prose) == [], "an indented block is code that no test sees"


def test_the_examples_of_every_commands_help_are_commands() -> None:
    parser = build_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in [("kaconv", parser), *commands.choices.items()]:
        examples = examples_of_help(command.epilog)
        assert examples, f"{name} --help has no examples"
        for example in examples:
            check_command(shlex.split(example))


def test_the_files_that_helps_show_are_read(tmp_path: Path) -> None:
    (study,) = re.findall(r"^a study:\n((?:  .*\n)+)", kaconv.cli.STUDY_EXAMPLES, re.M)
    assert parse_study(yaml.safe_load(study)).name == "digits"
    (report,) = re.findall(r"^A spec is a YAML file:\n\n((?:  .*\n)+)", kaviz.cli._REPORT_HELP, re.M)
    (tmp_path / "spec.yaml").write_text(report)
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    assert load_spec(tmp_path / "spec.yaml").entries[0].name == "training-smoke"


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("kaconv trian --model m", "kaconv trian --model m is no command"),
        ("kaconv table --formt json", "kaconv table --formt json is no command"),
        ("kaviz report --one-file", "kaviz report --one-file is no command"),
        ("make supper", "there is no target supper"),
        ("wget https://example.org", "wget is unknown here"),
        ("pip install 'kaconv[everything]'", "everything"),
        ("papermill notebooks/01_layer.ipynb out.ipynb -p kernel_sise 5", "kernel_sise"),
    ],
)
def test_a_wrong_command_is_found(command: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(f"```bash\n{command}\n```\n")
    (example,) = DOCUMENT.parse(tmp_path / "page.md").examples()
    with pytest.raises(AssertionError, match=re.escape(fault)):
        example.evaluate()
