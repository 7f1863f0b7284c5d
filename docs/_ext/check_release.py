"""Checks that a release is ready, in new environments: what `make release-check` runs.

python docs/_ext/check_release.py           # any commit
python docs/_ext/check_release.py v0.1.0    # the commit with this tag: also what only a release must have
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from repository_links import REPOSITORY, ROOT

import kaconv

SMOKE = {
    "": """
import torch, kaconv
model = kaconv.create_model("ka_resnet11_cifar_l", num_classes=3)
model(torch.randn(2, 3, 16, 16)).sum().backward()
kaconv.create_model("ka_mobilenetv2_050_l", weights="imagenette")
""",
    "all": """
import torch, kaconv, kaviz.reports, kaviz.explorer
from kaviz import plots
model = kaconv.create_model("ka_resnet11_cifar_l", num_classes=3).eval()
with kaconv.AttentionCapture(model) as capture:
    model(torch.randn(2, 3, 16, 16))
plots.plot_entropy(capture.record())
""",
}


def faults_of_documents(version: str, tag: str) -> list[str]:
    """What the documents lack for this version, and for its tag, if there is one."""
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = re.search(rf"^## {re.escape(version)} \((.*)\)$", changes, re.M)
    found = [] if heading else [f"CHANGELOG.md has no heading '## {version} (date)'"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    if citation["version"] != version:
        found.append(f"CITATION.cff says {citation['version']}, the package {version}")
    if tag:
        if tag != f"v{version}":
            found.append(f"the tag is {tag}, the package's version {version}")
        if heading and not re.fullmatch(r"\d{4}-\d\d-\d\d", heading[1]):
            found.append(f"CHANGELOG.md says {version} ({heading[1]}), not its date")
        if "OWNER" in REPOSITORY:
            found.append(f"pyproject.toml's Repository is still {REPOSITORY}")
    return found


def run(*command: str | Path, **options: object) -> None:
    """Run a command; its failure ends the check."""
    print("$", *command, flush=True)
    subprocess.run([str(word) for word in command], check=True, **options)  # type: ignore[call-overload]


def check_packages(folder: Path) -> None:
    """Build the wheel and the source archive, and install each where nothing else is, bare and with all extras."""
    tools = Path(sys.executable).parent
    run(tools / "uv", "build", "--python", sys.executable, "--out-dir", folder, ROOT)
    packages = [*folder.glob("*.whl"), *folder.glob("*.tar.gz")]
    run(sys.executable, "-m", "twine", "check", "--strict", *packages)
    for package, extra in [(packages[0], ""), (packages[0], "all"), (packages[1], "")]:
        venv = folder / f"{package.suffix}-{extra or 'base'}"
        run(tools / "uv", "venv", "--quiet", "--python", sys.executable, venv)
        environment = os.environ | {"VIRTUAL_ENV": str(venv)}
        wanted = f"{package}[{extra}]" if extra else str(package)
        lock = ROOT / "requirements.lock"
        run(tools / "uv", "pip", "install", "--quiet", "--constraint", lock, wanted, env=environment)
        run(venv / "bin" / "python", "-c", SMOKE[extra], cwd=folder)
        run(venv / "bin" / "kaconv", "list", cwd=folder, stdout=subprocess.DEVNULL)


def main(tag: str = "") -> int:
    """Check the documents, then the packages; 0 if all is well."""
    if found := faults_of_documents(kaconv.__version__, tag):
        print("\n".join(found), file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        check_packages(Path(folder))
    print(
        f"kaconv {kaconv.__version__} is ready" + ("" if tag else "; a release has a tag, which wants more: TAG=v...")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
