"""Laying down a project folder: the notebooks, the report specs, what they read, and the photographs."""

import tomllib
from pathlib import Path

from kaconv.data.photos import FOLDER as PHOTOS
from kaconv.utils.files import replacing, write_text
from kaviz.reports.notebook import PROJECT_MARK

_PACKED = Path(__file__).with_name("project_files")  # in an installed wheel
_SOURCE = Path(__file__).parents[2]  # a clone
_MOST_NAMED = 3


def project_files() -> dict[str, Path]:
    """The files of a project folder: by their paths in it, where they are to be copied from."""
    root, patterns = _PACKED, ["**/*"]
    if not root.is_dir():
        root = _SOURCE
        settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
        patterns = settings["tool"]["kaviz"]["project-files"]
    found = (path for pattern in patterns for path in sorted(root.glob(pattern)) if path.is_file())
    photos = {f"data/photos/{path.name}": path for path in sorted(PHOTOS.iterdir()) if path.suffix in (".csv", ".jpg")}
    return {path.relative_to(root).as_posix(): path for path in found} | photos


def lay_down(folder: Path) -> list[Path]:
    """Write the project's files to `folder`, which becomes a project folder, and return the new ones.

    Files that are there already and equal are left alone.

    Raises:
        ValueError: before anything is written, if one is there and differs; it is never replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; notebooks are laid down in a folder")
    files = project_files()
    there = [name for name in files if (folder / name).exists()]
    changed = [name for name in there if not _is_equal(folder / name, files[name])]
    if changed:
        more = f" and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
        raise ValueError(
            f"{folder} holds other files of these names, which are not replaced: {', '.join(changed[:_MOST_NAMED])}"
            f"{more}; move them away or choose another folder"
        )
    new = [name for name in files if name not in there]
    for name in new:
        with replacing(folder / name) as temporary:
            temporary.write_bytes(files[name].read_bytes())
    write_text(folder / PROJECT_MARK, "A project folder of kaviz: paths in its notebooks and specs start here.\n")
    return [folder / name for name in new]


def _is_equal(path: Path, other: Path) -> bool:
    return path.is_file() and path.read_bytes() == other.read_bytes()
