import pathlib

import pytest

from jserve_tools import finished_runs
from jserve_tools.finished_runs import FinishedRuns


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
    path = tmp_path / "runs.jsonl"
    monkeypatch.setattr(finished_runs, "commit", lambda: "aaaa")
    FinishedRuns(path, resumes=True).put({"seed": 1}, 7)
    assert FinishedRuns(path, resumes=True).get({"seed": 1}) == 7
    monkeypatch.setattr(finished_runs, "commit", lambda: "bbbb")
    assert FinishedRuns(path, resumes=True).get({"seed": 1}) is None
    monkeypatch.setattr(finished_runs, "commit", lambda: "aaaa")
    assert FinishedRuns(path, resumes=False).get({"seed": 1}) is None
    assert not path.exists()
