import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import kaconv

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
    """notebooks -> kaviz -> kaconv, never back; kaconv knows no pictures."""
    for path in (ROOT / "kaconv").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) (kaviz|matplotlib|seaborn|IPython)", path.read_text(), re.M), path


def test_local_links_in_documents_lead_somewhere():
    documents = [path for path in ROOT.glob("**/*.md") if not {".venv", "out", "cache"} & set(path.parts)]
    assert len(documents) >= 7
    for document in documents:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
            assert "://" in target or (document.parent / target).exists(), f"{document}: {target}"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A new virtual environment with the wheel and what it needs, and no extra: its folder of programs."""
    folder = tmp_path_factory.mktemp("base")
    uv = Path(sys.executable).with_name("uv")
    environment = os.environ | {"VIRTUAL_ENV": str(folder / "venv")}

    def run(*command):
        done = subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run(uv, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder / "dist", ROOT)
    run(uv, "venv", "--python", sys.executable, folder / "venv")
    (wheel,) = (folder / "dist").glob("*.whl")
    run(uv, "pip", "install", "--constraint", ROOT / "requirements.lock", wheel)
    return folder / "venv" / "bin"


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
