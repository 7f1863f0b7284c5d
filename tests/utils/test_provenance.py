import sys

from kaconv.utils.provenance import provenance


def test_a_job_names_no_folder_of_its_machine(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/submitit/core/_submit.py", "/somewhere/runs/digits/jobs"])
    assert provenance()["command"] == "a job of kaconv study"
