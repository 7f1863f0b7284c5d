"""Report specs: which notebooks run with which parameters, checked in full before anything runs."""

import ast
import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from reprlib import Repr

import nbformat
import yaml

from kaviz.reports.notebook import find_project
from kaviz.reports.static import unreadable_maths

_SPEC_KEYS = ("title", "description", "parameters", "entries")
_ENTRY_KEYS = ("notebook", "name", "title", "parameters", "timeout")
_TYPES = {"bool", "int", "float", "str", "list", "tuple", "dict", "None"}
DEFAULT_TIMEOUT = 600
LONGEST_TIMEOUT = 1_000_000  # seconds, eleven days
_MOST_VALUES = 10_000  # in a spec; aliases of aliases make billions
_short = Repr()
_short.maxstring = _short.maxother = 80  # characters


class SpecError(ValueError):
    """A spec that cannot run, with all of its problems."""

    def __init__(self, path: Path, problems: list[str]):
        self.problems = problems
        text = f" {problems[0]}" if len(problems) == 1 else "".join(f"\n  - {problem}" for problem in problems)
        super().__init__(f"{path}:{text}")


@dataclass(frozen=True)
class Entry:
    """One run of one notebook. `given` is what papermill injects, `parameters` every parameter at its final value."""

    name: str
    title: str | None
    notebook: Path
    given: dict
    parameters: dict
    timeout: float


@dataclass(frozen=True)
class Spec:
    """A checked spec; `root` is the project folder, in which every notebook runs."""

    name: str
    title: str
    description: str
    root: Path
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Parameter:
    """A parameter as its notebook declares it; `types` holds type names, or is None where any value will do."""

    default: object
    types: frozenset[str] | None


@dataclass(frozen=True)
class Outcome:
    """The end of a run. `status` is "done", "failed" or "timed out"; `error` is one line, empty when done."""

    status: str
    error: str
    seconds: float


def load_spec(path: str | Path) -> Spec:
    """Read and check the spec at `path`.

    The project folder is the one that the spec is in (`find_project`), else the one that the current folder is in, else
    the spec's own. A notebook is named by its path from the spec or from the project folder, or by its name in the
    project's notebooks folder. Parameters at the top level go to every notebook that declares
    them; an entry's own take precedence.

    Raises FileNotFoundError, and SpecError with everything that is wrong with the spec.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no report spec at {path}")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SpecError(path, [f"not valid YAML: {_yaml_problem(error)}"]) from None
    except ValueError as error:  # not UTF-8, or a date that no calendar has
        raise SpecError(path, [f"cannot be read: {error}"]) from None
    except RecursionError:
        raise SpecError(path, ["cannot be read: it is nested too deeply"]) from None
    if not isinstance(raw, dict):
        raise SpecError(path, [f"a spec is a mapping with the keys {', '.join(_SPEC_KEYS)}"])

    if _is_too_large(raw):
        raise SpecError(path, [f"holds more than {_MOST_VALUES:,} values, counting what its aliases stand for"])

    folder = path.resolve().parent
    root = find_project(folder) or find_project() or folder
    problems = _unknown(raw, _SPEC_KEYS, "the spec")
    problems += [
        f"{key} must be text, not {_shown(raw[key])}"
        for key in ("title", "description")
        if not isinstance(raw.get(key, ""), str)
    ]
    shared = _mapping(raw, "parameters", "the spec", problems)
    items = raw.get("entries")
    if not isinstance(items, list) or not items:
        problems.append("entries must be a list with at least one notebook")
        items = []
    entries = []
    for number, item in enumerate(items, 1):
        if isinstance(item, dict) and isinstance(item.get("notebook"), str):
            entries.append(_check_entry(item, shared, (folder, root), problems))
        else:
            problems.append(f"entry {number} must be a mapping with a notebook, not {_shown(item)}")
    if not problems:  # else a notebook that could not be read may declare them
        used = {name for entry in entries for name in entry.parameters}
        problems += [f"no notebook declares the shared parameter {name!r}" for name in shared if name not in used]
    names = [entry.name for entry in entries]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"{names.count(name)} entries are called {_shown(name)}; give each a name of its own")
    if problems:
        raise SpecError(path, list(dict.fromkeys(problems)))
    return Spec(path.stem, raw.get("title", path.stem), raw.get("description", ""), root, tuple(entries))


def _yaml_problem(error: yaml.YAMLError) -> str:
    """One line for an error that PyYAML tells in several."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


def _is_too_large(raw: object) -> bool:
    """Whether a spec holds too many values; one that holds itself has infinitely many."""
    count, waiting = 0, [raw]
    while waiting and count <= _MOST_VALUES:
        value = waiting.pop()
        waiting += value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else ()
        count += 1
    return count > _MOST_VALUES


def _shown(value: object) -> str:
    """A value on one short line; Python refuses to write integers of more than 4,300 digits."""
    try:
        return _short.repr(value)
    except ValueError:
        return "a number of thousands of digits"


def _check_entry(item: dict, shared: dict, folders: tuple[Path, Path], problems: list[str]) -> Entry:
    notebook = _find_notebook(item["notebook"], *folders)
    name = item.get("name", notebook.stem)
    where = f"entry {_shown(name)}"
    problems += _unknown(item, _ENTRY_KEYS, where)
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]{0,99}", name):
        problems.append(f"{where}: a name has letters, digits, '_' and '-' only, 100 at most")
    if not isinstance(item.get("title", ""), str):
        problems.append(f"{where}: title must be text, not {_shown(item['title'])}")
    timeout = item.get("timeout", DEFAULT_TIMEOUT)
    if type(timeout) not in (int, float) or not 0 < timeout <= LONGEST_TIMEOUT:
        allowed = f"a number of seconds above 0 and at most {LONGEST_TIMEOUT:,}"
        problems.append(f"{where}: timeout must be {allowed}, not {_shown(timeout)}")
    given, parameters = _mapping(item, "parameters", where, problems), {}
    try:
        content = _read_notebook(notebook)
        cell = next((cell for cell in content.cells if "parameters" in cell.metadata.get("tags", [])), None)
        declared = declared_parameters(cell.source) if cell else {}
    except FileNotFoundError:
        looked = " and ".join(map(str, dict.fromkeys(folders)))
        problems.append(f"{where}: no notebook {_shown(item['notebook'])} in {looked}, or in a notebooks folder there")
    except (ValueError, SyntaxError) as error:
        problems.append(f"{where}: {notebook.name} cannot be read: {error}")
    else:
        problems += [f"{notebook.name}: {problem}" for problem in unreadable_maths(content)]
        given = {key: value for key, value in shared.items() if key in declared} | given
        if given and not cell:
            problems.append(f"{where}: {notebook.name} has no cell with the tag 'parameters', so it takes none")
        else:
            problems += [f"{where}: {problem}" for problem in _wrong_parameters(given, declared)]
        parameters = {key: parameter.default for key, parameter in declared.items()} | given
    return Entry(str(name), item.get("title"), notebook, given, parameters, timeout)


def _wrong_parameters(given: dict, declared: dict[str, Parameter]) -> list[str]:
    problems = []
    for key, value in given.items():
        if key not in declared:
            problems.append(f"no parameter is called {_shown(key)}{_suggest(key, declared)}")
        elif problem := _mismatch(value, declared[key]):
            problems.append(f"parameter {key!r} is {_shown(value)}, {problem}")
    return problems


def declared_parameters(source: str) -> dict[str, Parameter]:
    """The parameters that a `parameters` cell assigns.

    Read from the syntax tree: `papermill.inspect_notebook` goes by a pattern that overlooks `x: int | None = None`.
    """
    declared = {}
    for statement in ast.parse(source).body:
        targets: list[ast.expr]
        if isinstance(statement, ast.Assign):
            targets, annotation, value = statement.targets, None, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value:
            targets, annotation, value = [statement.target], ast.unparse(statement.annotation), statement.value
        else:
            continue
        try:
            default = ast.literal_eval(value)
            inferred = None if default is None else type(default).__name__
        except (ValueError, TypeError):  # an expression: known only once the notebook runs
            default, inferred = ast.unparse(value), None
        names = re.split(r"\s*\|\s*", annotation.strip("'\"")) if annotation else [inferred]
        types = frozenset(name.split("[")[0] for name in names if name)
        for target in targets:
            if isinstance(target, ast.Name):
                declared[target.id] = Parameter(default, types if types and types <= _TYPES else None)
    return declared


def _mismatch(value: object, parameter: Parameter) -> str | None:
    """What is wrong with `value`, else None."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return "which is neither text, a finite number, a list nor a mapping of these (quote dates)"
    if parameter.types is None:
        return None
    if not _fits(value, parameter.types):
        expected = " or ".join(sorted(parameter.types))
        hint = ""
        if "float" in parameter.types and isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value):
            hint = " (YAML takes 1e-3 for text: write 1.0e-3)"
        return f"a {_type_name(value)}, where the notebook expects {expected}{hint}"
    if isinstance(value, list) and isinstance(parameter.default, (list, tuple)) and parameter.default:
        kinds = {_type_name(item) for item in parameter.default}
        if wrong := [item for item in value if not _fits(item, kinds)]:
            return f"whose item {_shown(wrong[0])} is a {_type_name(wrong[0])}, not {' or '.join(sorted(kinds))}"
    return None


def _fits(value: object, types: set[str] | frozenset[str]) -> bool:
    name = _type_name(value)
    return name in types or (name == "int" and "float" in types) or (name == "list" and "tuple" in types)


def _type_name(value: object) -> str:
    return "None" if value is None else type(value).__name__


def _read_notebook(path: Path) -> nbformat.NotebookNode:
    """The valid notebook at `path`; FileNotFoundError, or ValueError with one line."""
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat stumbles over wrong JSON in many ways, each with its own exception
        raise ValueError(str(error).strip().partition("\n")[0] or type(error).__name__) from None
    return notebook


def _find_notebook(name: str, *folders: Path) -> Path:
    """The file that a spec means by `name`; where there is none, the path that it would have in the first folder."""
    names = [Path(name).expanduser(), Path(f"{name}.ipynb").expanduser()]
    places = [place for folder in folders for place in (folder, folder / "notebooks")]
    candidates = [place / path for place in places for path in names]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _mapping(raw: dict, key: str, where: str, problems: list[str]) -> dict:
    value = raw.get(key)
    if value is None:
        return {}
    if isinstance(value, dict):
        return value
    problems.append(f"{where}: {key} must be a mapping, not {_shown(value)}")
    return {}


def _unknown(raw: dict, allowed: tuple[str, ...], where: str) -> list[str]:
    return [f"{where} has an unknown key {_shown(key)}{_suggest(key, allowed)}" for key in raw if key not in allowed]


def _suggest(name: object, allowed) -> str:
    close = get_close_matches(str(name), allowed, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; it takes {', '.join(allowed)}"
