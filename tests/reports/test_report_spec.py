import pytest

from kaviz.reports.spec import SpecError, declared_parameters, load_spec

PARAMETERS = """
epochs = 5  # passes over the data
rate: float = 0.1
seeds = [0, 1]
smoke = False
limit: int | None = None
anything = None
note = "a = b # no comment"
runs = "runs"
"""


@pytest.fixture
def study(project):
    project.notebook("train", "# Does it learn?", parameters=PARAMETERS)
    project.notebook("plain", "# No parameters")
    return project


def problems_of(study, text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load_spec(study.spec(text))
    return caught.value.problems


def entry(parameters: str) -> str:
    return f"entries:\n  - notebook: train\n    parameters: {{{parameters}}}"


def test_a_spec_gives_each_entry_its_notebook_and_final_parameters(study):
    spec = load_spec(
        study.spec("""
title: A study
parameters: {runs: elsewhere, epochs: 3}
entries:
  - notebook: train
    parameters: {epochs: 1, rate: 1}
    timeout: 30
  - notebook: notebooks/train.ipynb
    name: again
  - notebook: plain.ipynb
""")
    )
    assert [entry.name for entry in spec.entries] == ["train", "again", "plain"]
    assert (spec.name, spec.root) == ("study", study.root)
    first, again, plain = spec.entries
    assert first.given == {"runs": "elsewhere", "epochs": 1, "rate": 1}
    assert first.parameters["seeds"] == [0, 1]
    assert first.timeout == 30
    assert again.parameters["epochs"] == 3
    assert (plain.given, plain.parameters) == ({}, {})


@pytest.mark.parametrize(
    "parameters",
    ["rate: 1", "rate: 1.0e-3", "limit: null", "limit: 3", "anything: [x]", "seeds: []", "smoke: true", "note: 'no'"],
)
def test_values_of_the_right_type_pass(study, parameters):
    assert load_spec(study.spec(entry(parameters)))


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ("epoch: 1", "did you mean 'epochs'"),
        ("epochs: '5'", "a str, where the notebook expects int"),
        ("epochs: 1.5", "a float, where the notebook expects int"),
        ("epochs: true", "a bool, where the notebook expects int"),
        ("epochs: null", "a None, where the notebook expects int"),
        ("smoke: 1", "a int, where the notebook expects bool"),
        ("smoke: 'false'", "a str, where the notebook expects bool"),
        ("rate: 1e-3", "write 1.0e-3"),
        ("limit: x", "expects None or int"),
        ("seeds: 3", "expects list"),
        ("seeds: [0, '1']", "item '1' is a str, not int"),
        ("anything: 2022-10-17", "quote dates"),
        ("rate: .nan", "finite"),
    ],
)
def test_a_wrong_parameter_is_refused(study, parameters, said):
    (problem,) = problems_of(study, entry(parameters))
    assert said in problem
    assert problem.startswith("entry 'train': ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("entries: []", "at least one notebook"),
        ("- notebook: train", "a spec is a mapping"),
        ("entries: [", "not valid YAML: line 1: "),
        ("title: x\nentries: {a: b: c}", "not valid YAML: line 2: "),
        ("title: \x07", "not valid YAML: "),
        ("title: 2022-99-99", "cannot be read: "),
        ("titel: x\nentries: [{notebook: train}]", "did you mean 'title'"),
        ("title: 3\nentries: [{notebook: train}]", "title must be text"),
        ("entries: [{notebook: train, time: 3}]", "did you mean 'timeout'"),
        ("entries: [{notebook: train, timeout: 0}]", "timeout must be a number of seconds"),
        ("entries: [{notebook: train, timeout: .inf}]", "timeout must be a number of seconds"),
        ("entries: [{notebook: train, timeout: 1%s}]" % ("0" * 400), "at most 1,000,000, not 10000"),
        ("entries: [{notebook: train, timeout: 0x1%s}]" % ("0" * 4000), "not a number of thousands of digits"),
        ("entries: [{notebook: train, timeout: .nan}]", "timeout must be a number of seconds"),
        ("entries: [{notebook: train, parameters: []}]", "parameters must be a mapping, not []"),
        ("parameters: 0\nentries: [{notebook: train}]", "parameters must be a mapping, not 0"),
        ("entries: [{notebook: '', name: x}]", "entry 'x': no notebook ''"),
        ("entries: [{notebook: notebooks}]", "entry 'notebooks': no notebook 'notebooks'"),
        ("entries: [{notebook: train, name: ../up}]", "letters, digits"),
        ("entries: [{notebook: trian}]", "no notebook 'trian'"),
        ("entries: [{notebook: train}, {notebook: train}]", "2 entries are called 'train'"),
        ("entries: [{notebook: plain, parameters: {x: 1}}]", "no cell with the tag 'parameters'"),
        ("parameters: {rums: x}\nentries: [{notebook: train}]", "shared parameter 'rums'"),
        ("entries: [{notebook: train, name: %s}]" % ("x" * 101), "100 at most"),
        ("title: " + "[" * 2000 + "]" * 2000, "nested too deeply"),
        ("entries: [{notebook: train, parameters: {epochs: %s}}]" % ("[" * 90 + "]" * 90), "a list, where"),
        ("entries: &all [*all]", "more than 10,000 values"),
        ("entries: &all {notebook: train, parameters: *all}", "more than 10,000 values"),
        (
            "\n".join(["a: &a0 [x, x]", *(f"{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))]),
            "10,000",
        ),
        ("entries: [train]", "must be a mapping with a notebook"),
    ],
)
def test_a_wrong_spec_is_refused(study, text, said):
    problems = problems_of(study, text)
    assert any(said in problem for problem in problems)
    assert not any("\n" in problem or len(problem) > 400 for problem in problems)


def test_a_spec_may_lie_anywhere_and_name_notebooks_by_path(study, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "own.ipynb").write_bytes((study.root / "notebooks" / "plain.ipynb").read_bytes())
    path = elsewhere / "mine.yaml"
    path.write_text(
        f"entries: [{{notebook: {study.root}/notebooks/train.ipynb}}, {{notebook: own}}, {{notebook: plain}}, "
        "{notebook: ../project/notebooks/plain.ipynb, name: again}]"
    )
    monkeypatch.chdir(study.root / "notebooks")
    spec = load_spec(path)
    assert spec.root == study.root  # that of the current folder, as the spec is in no project
    assert [entry.notebook.resolve() for entry in spec.entries] == [
        study.root / "notebooks" / "train.ipynb",
        elsewhere / "own.ipynb",
        study.root / "notebooks" / "plain.ipynb",
        study.root / "notebooks" / "plain.ipynb",
    ]
    monkeypatch.chdir(tmp_path)
    path.write_text("entries: [{notebook: own}]")
    assert load_spec(path).root == elsewhere


def test_a_spec_without_utf_8_is_refused_by_name(study):
    path = study.spec("")
    path.write_bytes(b"title: \xe9t\xe9")
    with pytest.raises(SpecError, match=r"study\.yaml: cannot be read: .*utf-8"):
        load_spec(path)


def test_empty_parameters_are_none(study):
    assert load_spec(study.spec("parameters:\nentries: [{notebook: train, parameters: }]")).entries[0].given == {}


def test_all_problems_are_told_at_once(study):
    told = problems_of(study, "colour: red\nentries: [{notebook: nowhere}, {notebook: train, parameters: {epoch: 1}}]")
    assert len(told) == 3


def test_formulas_that_no_page_can_draw_are_refused(study):
    study.notebook("maths", "# Fine: $A_p$\n\n$$\\sum_p A_p = 1$$", "# Not: $\\begin{cases}1\\end{cases}$")
    (problem,) = problems_of(study, "entries: [{notebook: maths}]")
    assert problem.startswith("maths.ipynb: cell 2")
    assert "cases" in problem


V4 = '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}'


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "{}",
        "[]",
        "null",
        V4 + "}",
        V4 + ', "cells": 3}',
        V4 + ', "cells": [{"cell_type": "markdown", "id": "a", "source": ""}]}',
        V4 + ', "cells": [{"cell_type": "markdown", "id": "a", "metadata": {}}]}',
    ],
)
def test_a_notebook_that_is_none_is_refused(study, content):
    (study.root / "notebooks" / "broken.ipynb").write_text(content)
    (problem,) = problems_of(study, "entries: [{notebook: broken}]")
    assert problem.startswith("entry 'broken': broken.ipynb cannot be read: ")
    assert "\n" not in problem


def test_parameters_are_read_from_the_syntax_tree():
    declared = declared_parameters(PARAMETERS + "where = Path('x')\nlist_: list[int] = [\n  1,  # one\n  2,\n]\n")
    assert declared["limit"].types == {"int", "None"}
    assert declared["anything"].types is None
    assert declared["note"].default == "a = b # no comment"
    assert declared["where"].types is None
    assert (declared["list_"].default, declared["list_"].types) == ([1, 2], {"list"})
