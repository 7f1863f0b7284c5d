import sys

import pytest

from kaconv.models import registry
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


def test_notebooks_build_the_models_of_builders_that_the_command_names(project, monkeypatch, capsys):
    monkeypatch.setattr(registry, "OWN_BUILDERS", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv(registry.BUILDERS_VARIABLE, raising=False)
    monkeypatch.chdir(project.root)
    (project.root / "own_nets.py").write_text("from torch import nn\n\ndef net(num_classes): return nn.Flatten()\n")
    project.notebook("own", "# A model", "import kaconv", "kaconv.create_model('own_nets:net', 3)")
    spec = str(project.spec("entries: [{notebook: own}]"))
    assert main(["report", spec, "--builder", "own_nets:nothing"]) == 2
    assert "cannot import the builder own_nets:nothing" in capsys.readouterr().err
    assert main(["report", spec]) == 1  # nothing is imported that was not named
    assert main(["report", spec, "--builder", "own_nets:net"]) == 0
