import pytest

from kaviz.cli import main


def test_a_wrong_spec_is_one_line_and_exit_code_2(project, capsys):
    project.notebook("fails", "# It fails")
    assert main(["report", str(project.root / "nowhere.yaml")]) == 2
    assert main(["report", str(project.spec("entries: [{notebook: fail}]"))]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("kaviz: error: no report spec at")
    assert second.startswith("kaviz: error:")
    assert "no notebook 'fail'" in second


def test_help_shows_a_spec(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["report", "--help"])
    assert caught.value.code == 0
    assert "entries:" in capsys.readouterr().out
