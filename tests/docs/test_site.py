"""The documentation site: it builds without a warning, its links are good, and it needs no network."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import kaconv
from kaviz import plots

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "docs" / "_ext"


@pytest.fixture
def check_site(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    import check_site

    return check_site


@pytest.fixture
def check_release(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    import check_release

    return check_release


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_needs_no_network(check_site, tmp_path):
    """Without the pages' cells: `make docs` runs those."""
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-D", "nb_execution_mode=off"]
    command += ["-D", "suppress_warnings=misc.highlighting_failure,myst-nb.lexer"]  # a kernel would name the language
    done = subprocess.run(
        [*command, "-d", tmp_path / "doctrees", ROOT / "docs", tmp_path / "html"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not check_site.faults(tmp_path / "html")
    assert "<math" in (tmp_path / "html" / "inside.html").read_text()
    assert 'id="kaconv.layers.KAConv2d"' in (tmp_path / "html" / "api" / "layers.html").read_text()


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<a href="gone.html">x</a>', "gone.html leads nowhere"),
        ('<a href="other.html#nowhere">x</a>', "there is no such place"),
        ('<a href="../outside.html">x</a>', "leads nowhere"),
        ('<img src="https://example.org/a.png">', "<img> loads https://example.org/a.png"),
        ('<script src="//example.org/a.js"></script>', "<script> loads"),
        ('<link rel="stylesheet" href="https://example.org/a.css">', "<link> loads"),
        ('<a href="other.html#there">x</a> <a href="https://example.org">x</a> <a href="mailto:a@b.c">x</a>', ""),
    ],
)
def test_a_bad_link_and_a_foreign_file_are_found(check_site, tmp_path, html, fault):
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "outside.html").write_text("<p>")
    (site / "other.html").write_text('<p id="there">')
    (site / "index.html").write_text(html)
    found = check_site.faults(site)
    assert fault in "\n".join(found)
    assert bool(found) == bool(fault)


def test_the_gallery_has_every_figure():
    gallery = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    figures = [name for name in plots.__all__ if name.startswith("plot_")]
    assert [name for name in figures if gallery.count(f"\nplots.{name}(") != 1] == []


def test_every_public_package_is_in_the_reference():
    documented = {
        name
        for page in (ROOT / "docs" / "api").glob("*.rst")
        for name in re.findall(r"automodule:: (\S+)", page.read_text(encoding="utf-8"))
    }
    public = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in ("kaconv", "kaviz")
        for path in (ROOT / package).glob("*/__init__.py")
        if "__all__" in path.read_text(encoding="utf-8")
    }
    assert public <= documented


def test_the_documents_are_those_of_this_version(check_release, monkeypatch, tmp_path):
    version = kaconv.__version__
    assert check_release.faults_of_documents(version, "") == []
    assert "CITATION.cff says" in "\n".join(check_release.faults_of_documents("9.9.9", ""))
    assert "CHANGELOG.md has no heading '## 9.9.9 (date)'" in check_release.faults_of_documents("9.9.9", "")
    (tmp_path / "CHANGELOG.md").write_text(f"## {version} (2027-01-31)\n")
    (tmp_path / "CITATION.cff").write_text(f"version: {version}\n")
    monkeypatch.setattr(check_release, "ROOT", tmp_path)
    monkeypatch.setattr(check_release, "REPOSITORY", "https://github.com/somebody/kaconv")
    assert check_release.faults_of_documents(version, f"v{version}") == []
    assert check_release.faults_of_documents(version, "v9.9.9") == [
        f"the tag is v9.9.9, the package's version {version}"
    ]
    (tmp_path / "CHANGELOG.md").write_text(f"## {version} (unreleased)\n")
    monkeypatch.setattr(check_release, "REPOSITORY", "https://github.com/OWNER/kaconv")
    assert len(check_release.faults_of_documents(version, f"v{version}")) == 2


def test_the_workflow_checks_a_release_as_make_does():
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make release-check TAG=${{ github.ref_name }}"]
    said = subprocess.run(
        ["make", "--dry-run", "--old-file", ".venv/.ready", "release-check", "TAG=v1.2.3"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "check_release.py v1.2.3" in said
    assert said.count("-m sphinx") == said.count("check_site.py") == 1


def test_the_address_of_the_project_is_said_once():
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    owner = repository.removesuffix("/kaconv")
    files = [path for path in ROOT.glob("docs/**/*") if path.suffix in (".md", ".py", ".rst")]
    assert [path for path in (*files, ROOT / "README.md") if owner in path.read_text(encoding="utf-8")] == []
