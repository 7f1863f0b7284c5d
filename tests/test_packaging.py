import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import kaconv
from kaviz.cli import main
from kaviz.reports.project import project_files
from kaviz.reports.spec import load_spec

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
LAYER = """
import torch
import kaconv

model = kaconv.create_model("ka_resnet11_cifar_l", num_classes=3)
with kaconv.AttentionCapture(model) as capture:
    model(torch.randn(2, 3, 16, 16)).sum().backward()
assert all(parameter.grad is not None for parameter in model.parameters())
assert capture.record().entropy("layer1.0.conv2").max() <= 1.0001
"""


@pytest.fixture(scope="module")
def editable(tmp_path_factory) -> Path:
    """What an editable installation of a clone named kaconv puts into site-packages; the clone is beside it."""
    folder = tmp_path_factory.mktemp("above")
    clone, wheel, installed = (folder / name for name in ("kaconv", "wheel", "site-packages"))
    for package in ("kaconv", "kaviz"):
        shutil.copytree(ROOT / package, clone / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    wheel.mkdir()
    build = "import sys; from setuptools.build_meta import build_editable; build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, wheel], cwd=clone, check=True, capture_output=True)
    (built,) = wheel.glob("*.whl")
    zipfile.ZipFile(built).extractall(installed)
    return installed


def test_an_editable_installation_is_found_from_the_folder_above_the_clone(editable):
    """There, the clone itself would do as a package without a name in it."""
    code = f"""
import site, sys
sys.path.insert(0, "")
site.addsitedir({str(editable)!r})
import kaconv, kaviz
print(kaconv.__version__, kaconv.__file__)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=editable.parent, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == [kaconv.__version__, str(editable.parent / "kaconv" / "kaconv" / "__init__.py")]


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower()


def test_environment_yml_installs_everything_at_the_locked_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert f"python{PROJECT['requires-python']}" in conda
    assert pip["pip"] == ["--constraint requirements.lock", "--editable .[all]"]


def test_the_lock_pins_every_dependency():
    pinned = {name_of(line) for line in LOCK.splitlines() if re.match(r"[\w.-]+==", line)}
    wanted = PROJECT["dependencies"] + [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    assert {name_of(requirement) for requirement in wanted} - {"kaconv"} <= pinned


def test_the_lock_holds_no_download_address():
    assert "://" not in LOCK
    assert " @ " not in LOCK
    assert "index-url" not in LOCK


def test_the_version_is_said_once():
    assert "version" in PROJECT["dynamic"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == kaconv.__version__
    assert f"## {kaconv.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_libraries_do_not_import_what_stands_above_them():
    """notebooks -> kaviz -> kaconv, never back; kaconv knows no images."""
    for path in (ROOT / "kaconv").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) (kaviz|matplotlib|seaborn|IPython)", path.read_text(), re.M), path


def test_local_links_in_documents_lead_somewhere():
    written = {".venv", "build", "cache", "out", "runs", "site"}  # by commands
    documents = [path for path in ROOT.glob("**/*.md") if not written & set(path.relative_to(ROOT).parts)]
    assert len(documents) >= 7
    for document in documents:
        text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)#]+)", text):
            assert "://" in target or (document.parent / target).exists(), f"{document}: {target}"


def run_uv(*command, environment=None):
    uv = Path(sys.executable).with_name("uv")
    environment = os.environ | {"VIRTUAL_ENV": str(environment)}
    done = subprocess.run([str(uv), *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run_uv("build", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def base(wheel, tmp_path_factory):
    """A new virtual environment with the wheel and what it needs, and no extra: its folder of programs."""
    venv = tmp_path_factory.mktemp("base") / "venv"
    run_uv("venv", "--python", sys.executable, venv)
    run_uv("pip", "install", "--constraint", ROOT / "requirements.lock", wheel, environment=venv)
    return venv / "bin"


@pytest.fixture(scope="module")
def everything(wheel, tmp_path_factory):
    """A new virtual environment with the wheel, which sees the packages of this one: its folder of programs."""
    venv = tmp_path_factory.mktemp("everything") / "venv"
    run_uv("venv", "--python", sys.executable, venv)
    run_uv("pip", "install", "--no-deps", wheel, environment=venv)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # but not its editable kaconv
    (venv / "share").symlink_to(Path(sys.prefix, "share"))  # nbconvert's templates
    return venv / "bin"


@pytest.mark.slow
def test_the_base_installation_is_light_and_works(base, tmp_path):
    def run(*command):
        return subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True)

    done = run(base / "python", "-c", LAYER)
    assert done.returncode == 0, done.stderr
    table = run(base / "kaconv", "table")
    assert table.returncode == 0, table.stderr
    assert "ka_resnet50_l" in run(base / "kaconv", "list").stdout.split()
    for command, extra in (
        (["kaconv", "train", "--model", "ka_resnet11_cifar_l", "--out", "run"], "train"),
        (["kaviz", "report", "spec.yaml"], "notebooks"),
    ):
        done = run(base / command[0], *command[1:])
        assert done.returncode == 2, done.stdout
        (line,) = done.stderr.splitlines()
        assert re.search(rf"needs \w+, .*pip install 'kaconv\[{extra}\]'", line), line
    assert not any(tmp_path.iterdir())
    installed = run(
        base / "python", "-c", "import importlib.metadata as m; print(*[d.name for d in m.distributions()])"
    )
    assert not {"accelerate", "scikit-learn", "jupyterlab", "matplotlib", "scipy"} & set(installed.stdout.split())


@pytest.mark.slow
def test_an_installed_wheel_lays_down_the_notebooks_and_reports_on_them(everything, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command, folder=tmp_path):
        done = subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    project = tmp_path / "project"
    assert "written to project" in run(everything / "kaviz", "notebooks", "project")
    for name, source in project_files().items():
        assert (project / name).read_bytes() == source.read_bytes()
    assert len(list((project / "notebooks").glob("*.ipynb"))) == len(list((ROOT / "notebooks").glob("*.ipynb")))
    for spec in sorted((project / "reports" / "specs").glob("*.yaml")):  # all of them are ready to run there
        assert load_spec(spec).root == project.resolve()

    spec = project / "reports" / "specs" / "one.yaml"
    spec.write_text("entries: [{notebook: 01_layer, timeout: 300, parameters: {image_width: 96, draws: 1}}]")
    said = run(everything / "kaviz", "report", "reports/specs/one.yaml", folder=project)
    assert "done in" in said
    assert "What was found" in (project / "reports" / "out" / "one" / "01_layer" / "index.html").read_text()
    executed = (project / "reports" / "out" / "one" / "01_layer" / "01_layer.ipynb").read_text()
    assert str(ROOT) not in executed  # neither the notebook nor the packages came from here
    assert [path.name for path in tmp_path.iterdir()] == ["project"]


def test_laying_down_notebooks_never_replaces_a_changed_file(tmp_path, capsys):
    project = tmp_path / "project"
    assert main(["notebooks", str(project)]) == 0
    assert main(["notebooks", str(project)]) == 0
    changed = project / "notebooks" / "01_layer.ipynb"
    changed.write_text("mine")
    (project / "notebooks" / "02_training.ipynb").unlink()
    capsys.readouterr()
    assert main(["notebooks", str(project)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "which are not replaced: notebooks/01_layer.ipynb; move them away" in line
    assert changed.read_text() == "mine"
    assert not (project / "notebooks" / "02_training.ipynb").exists()
    assert main(["notebooks", str(changed)]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_root_may_start_jupyterlab():
    command = ["make", "--dry-run", "--old-file", ".venv/.ready", "lab"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ("--allow-root" in said) == (os.getuid() == 0)
