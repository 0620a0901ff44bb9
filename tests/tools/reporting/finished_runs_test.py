import pathlib
import subprocess

import pytest

from jserve_tools.reporting import finished_runs
from jserve_tools.reporting.finished_runs import FinishedRuns


def test_a_later_call_finds_what_an_interrupted_one_finished(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "out" / "runs.jsonl"
    first = FinishedRuns(path, resumes=True)
    assert first.get({"policy": "edf", "seed": 1}) is None
    first.put({"policy": "edf", "seed": 1}, {"attainment": 0.5})
    with path.open("a") as file:
        file.write('{"key": "cut o')  # an interrupt
    later = FinishedRuns(path, resumes=True)
    assert later.get({"seed": 1, "policy": "edf"}) == {"attainment": 0.5}
    assert later.get({"policy": "edf", "seed": 2}) is None
    assert later.num_found == 1
    later.remove()
    assert not path.exists()


def test_other_code_and_a_fresh_start_measure_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, code = tmp_path / "runs.jsonl", tmp_path / "code.py"
    code.write_text("1")
    for command in ("init", "add code.py", "commit --message=first"):
        identity = ("-c", "user.name=a", "-c", "user.email=a")
        subprocess.run(
            ["git", *identity, *command.split()], cwd=tmp_path, check=True, stdout=-3
        )
    monkeypatch.setattr(finished_runs, "__file__", str(code))

    def find(version: str, *, resumes: bool = True) -> object:
        monkeypatch.setattr(finished_runs, "commit", lambda: version)
        return FinishedRuns(runs, resumes=resumes).get({"seed": 1})

    monkeypatch.setattr(finished_runs, "commit", lambda: "aaaa+")
    code.write_text("2")
    FinishedRuns(runs, resumes=True).put({"seed": 1}, 7)
    assert (find("aaaa+"), find("aaaa"), find("bbbb+")) == (7, None, None)
    code.write_text("3")
    assert find("aaaa+") is None
    code.write_text("2")
    assert find("aaaa+") == 7
    assert find("aaaa+", resumes=False) is None
    assert not runs.exists()
