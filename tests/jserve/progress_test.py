import io
import sys
import time

import pytest

from jserve import progress as progress_module
from jserve.progress import Progress


def test_a_line_comes_at_once_and_silence_is_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress_module, "_POLL_S", 0.01)
    monkeypatch.setattr(progress_module, "_BRIEF_S", 0.05)
    monkeypatch.setattr(progress_module, "_SILENT_S", 0.2)
    lines: list[str] = []
    progress = Progress(lines.append)
    progress.begin("loading")
    assert lines == ["loading"]
    deadline_s = time.monotonic() + 20.0
    while len(lines) < 3 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert lines[1] == lines[2] == "loading (0 s)", "nothing is new, and it says so"
    done = [1]
    progress.begin("compiling", 9, lambda: done[0])
    assert lines[-1] == "compiling: 1 of 9"
    done[0] = 9
    progress.close()
    assert lines[-1] == "compiling: 9 of 9 (0 s)"
    progress.begin("too late")
    time.sleep(0.3)
    assert lines[-1] == "compiling: 9 of 9 (0 s)"


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    lines: list[str] = []
    progress = Progress(lines.append, is_bar=True)
    progress.begin("loading")
    progress.begin("compiling", 9, lambda: 4)
    progress.close()
    assert lines == []
    assert "loading" in shown.getvalue()
    assert "compiling:  44%" in shown.getvalue() and "4/9" in shown.getvalue()
