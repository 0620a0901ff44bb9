import time

import pytest

from jserve import progress as progress_module
from jserve.progress import Progress, timed_lines


def test_a_line_comes_at_once_and_silence_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_module, "_POLL_S", 0.01)
    monkeypatch.setattr(progress_module, "_PERIOD_S", 0.1)
    lines: list[str] = []
    progress = Progress(lines.append)
    with progress.doing("loading"):
        assert lines == ["loading"]
        deadline_s = time.monotonic() + 20.0
        while len(lines) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.01)
    assert lines[1] == lines[2] == "loading (0 s)", "nothing is new, and it says so"
    num_lines, done = len(lines), [1]
    time.sleep(0.3)
    assert len(lines) == num_lines, "no stage, no line"
    progress.begin("compiling", 9, lambda: done[0])
    assert lines[-1] == "compiling: 1 of 9"
    done[0] = 9
    progress.close()
    assert lines[-1] == "compiling: 9 of 9 (0 s)"
    progress.begin("too late")
    assert lines[-1] == "compiling: 9 of 9 (0 s)"
    Progress(timed_lines()).note("alone")
    assert capsys.readouterr().err == "[   0 s] alone\n"
