import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower()


def test_environment_yml_is_in_step_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert f"python{PROJECT['requires-python']}" in conda
    assert [line for line in pip["pip"] if not line.startswith("--")] == PROJECT["dependencies"]
    assert "--constraint requirements.lock" in pip["pip"]
    assert "--editable ." in pip["pip"]


def test_the_lock_pins_every_dependency():
    pinned = {name_of(line) for line in LOCK.splitlines() if re.match(r"[\w.-]+==", line)}
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    assert {name_of(requirement) for requirement in wanted} <= pinned


def test_the_lock_holds_no_download_address():
    assert "://" not in LOCK
    assert " @ " not in LOCK
    assert "index-url" not in LOCK


def test_libraries_do_not_import_what_stands_above_them():
    """notebooks -> kaviz -> kaconv, never back; kaconv knows no pictures."""
    for path in (ROOT / "kaconv").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) (kaviz|matplotlib|seaborn|IPython)", path.read_text(), re.M), path


def test_local_links_in_documents_lead_somewhere():
    documents = [path for path in ROOT.glob("**/README.md") if not {".venv", "out", "cache"} & set(path.parts)]
    assert len(documents) >= 4
    for document in documents:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
            assert "://" in target or (document.parent / target).exists(), f"{document}: {target}"
