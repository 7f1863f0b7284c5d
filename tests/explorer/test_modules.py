"""The front end's files are plain ES modules, and are delivered as one."""

import re
import shutil
import subprocess

import pytest

from kaviz.explorer.export import FRONT, front_end
from kaviz.explorer.modules import join_modules

FILES = sorted(FRONT.glob("*.js"))


def join(folder, **files):
    """Join `entry` with other files, given by their names without ".js"."""
    for name, text in files.items():
        (folder / f"{name}.js").write_text(text, encoding="utf-8")
    return join_modules(folder / "entry.js")


def test_a_file_comes_once_and_after_what_it_imports(tmp_path):
    joined = join(
        tmp_path,
        entry='import { a } from "./a.js";\nimport {\n  b,\n  c,\n} from "./b.js";\n\nexport default { a, b, c };\n',
        b='import { a } from "./a.js";\n\nexport async function b() { return a; }\nexport class c {}\n',
        a="// Of a.\nexport const a = 1;\nconst own = 2;\n",
    )
    assert joined == (
        "// Of a.\nconst a = 1;\nconst own = 2;\n\n"
        "async function b() { return a; }\nclass c {}\n\n"
        "export default { a, b, c };\n"
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('import { a as b } from "./a.js";\n', '"a as b" is imported'),
        ('import a from "./a.js";\n', 'cannot join "import a from "./a.js";"'),
        ('import * as a from "./a.js";\n', "cannot join"),
        ('import "./a.js";\n', "cannot join"),
        ('import { a } from "elsewhere";\n', "cannot join"),
        ('const a = await import("./a.js");\n', "cannot join"),
        ('import { gone } from "./a.js";\n', "entry.js imports gone, which a.js does not export"),
        ('import { own } from "./a.js";\n', "entry.js imports own, which a.js does not export"),
        ('import { a } from "./a.js";\nfunction own() {}\n', "entry.js and a.js both have the name own"),
        ('import { a } from "./a.js";\nexport { a };\n', 'cannot join "export { a };"'),
        ('import { a } from "./default.js";\n', "default.js: cannot join"),
        ('import { a } from "./round.js";\n', "entry.js imports itself, by way of entry.js and round.js"),
        ("const { a, b } = window;\n", "cannot join"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, entry, message):
    others = {
        "a": "export const a = 1;\nconst own = 2;\n",
        "default": "export const a = 1;\nexport default a;\n",
        "round": 'import { b } from "./entry.js";\nexport const a = b;\n',
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        join(tmp_path, entry=entry, **others)


def test_all_of_the_front_end_is_delivered_in_one_module_without_imports():
    script = front_end().script
    assert not re.search(r"^import\b|\bimport\(", script, re.MULTILINE)
    assert re.findall(r"^export .*", script, re.MULTILINE) == ["export default { render };"]
    for file in FILES:
        assert file.read_text(encoding="utf-8").partition("\n")[0] in script, file.name  # what the file is about


def test_a_file_is_a_few_hundred_lines():
    for file in FRONT.iterdir():
        lines = file.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 350, file.name
        assert max(map(len, lines)) <= 120, file.name


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js; in Chromium, `make test-ui` tests the same")
@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_each_file_is_a_module_by_itself(file, tmp_path):
    copy = shutil.copy(file, tmp_path / f"{file.stem}.mjs")
    done = subprocess.run(["node", "--check", copy], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
