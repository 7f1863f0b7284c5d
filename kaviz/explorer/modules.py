"""The front end's files, which import each other, as the one module that a page or a notebook is given."""

import re
from pathlib import Path

_IMPORT = re.compile(r'^import \{([^{}]*)\} from "\./([\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?function |class |const |let )", re.MULTILINE)
_EXPORT_DEFAULT = re.compile(r"^export default .*$", re.MULTILINE)
_NAME = re.compile(r"^(export )?(?:(?:async )?function|class|const|let) (\w+)\b", re.MULTILINE)
# Whatever else begins a line at the left edge and might give a name, or has to do with modules.
_LEFT_OVER = re.compile(
    r"^(?:import|export|function|async function|class|const|let|var)\b.*|^.*\bimport\s*[(.].*", re.M
)


def join_modules(entry: Path) -> str:
    """Join an ES module with the modules that it imports, each after what it imports, into one that imports nothing.

    The files lie in one folder and import names from each other as `import { a, b } from "./file.js";`. What they
    export begins a line: `export const`, `let`, `function`, `async function` or `class`. The entry alone may have an
    `export default`, which is kept. Names at the left edge are one file's alone.

    Args:
        entry: the file that nobody imports.

    Raises:
        ValueError: if a file has imports or exports of other kinds, if it names what a file does not export, if files
            import each other in a circle, or if two have a name in common.
    """
    exports: dict[str, set[str]] = {}  # of each file that has been taken in
    owners: dict[str, str] = {}  # of each name at the left edge
    parts: list[str] = []

    def take_in(path: Path, on_the_way: tuple[str, ...]) -> None:
        if path.name in on_the_way:
            raise ValueError(f"{path.name} imports itself, by way of {' and '.join(on_the_way)}")
        if path.name in exports:
            return
        text = path.read_text(encoding="utf-8")
        for names, file in _IMPORT.findall(text):
            take_in(path.with_name(file), (*on_the_way, path.name))
            _check_imported(path.name, names, file, exports[file])
        body = _IMPORT.sub("", text)
        exports[path.name] = set()
        for exported, name in _NAME.findall(body):
            if name in owners:
                raise ValueError(f"{path.name} and {owners[name]} both have the name {name}")
            owners[name] = path.name
            if exported:
                exports[path.name].add(name)
        _check_left_over(path.name, body, may_default=not on_the_way)
        parts.append(_EXPORT.sub("", body).strip() + "\n")

    take_in(entry, ())
    return "\n".join(parts)


def _check_imported(importer: str, names: str, file: str, exported: set[str]) -> None:
    for name in filter(None, map(str.strip, names.split(","))):
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f'{importer}: "{name}" is imported; names are imported as they are: import {{ a, b }}')
        if name not in exported:
            raise ValueError(f"{importer} imports {name}, which {file} does not export")


def _check_left_over(file: str, body: str, may_default: bool) -> None:
    """Complain of what is neither a name that was found nor a default that may be there."""
    rest = _NAME.sub("", body)
    if may_default:
        rest = _EXPORT_DEFAULT.sub("", rest)
    if unknown := _LEFT_OVER.search(rest):
        raise ValueError(f'{file}: cannot join "{unknown[0].strip()}"')
