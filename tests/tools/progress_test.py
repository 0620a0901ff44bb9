import re
import time

import pytest

from jserve_tools.progress import Progress


def test_long_work_is_noted_again_and_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = Progress(period_s=0.02)
    with progress.doing("sending", lambda: "3 of 4 requests"):
        time.sleep(0.2)
    progress.say("done")
    out, err = capsys.readouterr()
    assert out == "done\n"
    first, *others = err.splitlines()
    assert re.fullmatch(r"\[   0 s\] sending", first)
    assert len(others) >= 2
    assert {one.split("] ")[1] for one in others} == {"sending: 3 of 4 requests"}
