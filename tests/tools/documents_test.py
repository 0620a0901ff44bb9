import json
import pathlib

import numpy as np
import pytest

from jserve_sched.report import Failure, Outcome
from jserve_sched.slo import Slo
from jserve_tools.documents import (
    device_name,
    document,
    one_line,
    outcome_rows,
    plain,
    write_whole,
)


def test_a_file_is_whole_or_the_old_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "report.json"
    write_whole(path, b"one")
    assert path.read_bytes() == b"one"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(path.parent.iterdir()) == [path]


def test_plain_values() -> None:
    value = {"a": np.float64(1.23456789), "b": (1, True, None), "c": Failure.ERROR}
    assert plain(value) == {"a": 1.234568, "b": [1, True, None], "c": "error"}
    assert plain(0.000123456) == 0.0001235
    assert plain(Slo(ttft_s=2.0))["ttft_s"] == 2.0
    with pytest.raises(ValueError, match="inf has no place"):
        plain(float("inf"))


def test_device_name() -> None:
    card = {"platform": "gpu", "kind": "X1", "count": 2}
    assert device_name({"device": card}) == "gpu X1 x2"
    assert device_name({"device": card | {"kind": "gpu", "count": 1}}) == "gpu"
    assert device_name({"device": "fake"}) == "fake"
    assert device_name({}) is None


def test_document_leaves_out_what_is_unknown() -> None:
    outcome = Outcome(
        service_class="a",
        slo=Slo(ttft_s=1.0),
        arrival_s=5.0,
        num_prompt_tokens=3,
        max_tokens=2,
        token_times_s=(5.5, 5.75),
    )
    rows = outcome_rows([outcome])
    assert rows == [
        {
            "arrival_s": 0.0,
            "service_class": "a",
            "prompt_tokens": 3,
            "output_tokens": 2,
            "slo": {"ttft_s": 1.0},
            "ttft_s": 0.5,
            "tbt_p99_s": 0.25,
            "e2e_s": 0.75,
        }
    ]
    report = document(
        command=["jserve-bench"],
        facts={"versions": {"jax": "1"}, "stats": {}, "model": "m"},
        workload={"trace": "t"},
        runs=[{"policy": "edf", "requests": rows}],
        extra={"capacity": None},
    )
    assert report["schema_version"] == 2
    assert report["jax"] == "1"
    assert report["server"] == {"model": "m", "versions": {"jax": "1"}}
    assert "device" not in report and "capacity" not in report
    line = one_line(report)
    assert "\n" not in line
    assert json.loads(line)["runs"] == [{"policy": "edf"}]
    assert report["runs"][0]["requests"]  # the file keeps them


@pytest.mark.parametrize(
    ("times_s", "wanted"), [((1.0,), None), ((), None), ((1.0, 1.5, 3.5), 1.985)]
)
def test_a_request_has_times_between_tokens_from_two_tokens_on(
    times_s: tuple[float, ...], wanted: float | None
) -> None:
    outcome = Outcome(
        service_class="a",
        slo=Slo(ttft_s=1.0),
        arrival_s=0.0,
        num_prompt_tokens=3,
        max_tokens=9,
        token_times_s=times_s,
    )
    (row,) = outcome_rows([outcome])
    assert row.get("tbt_p99_s") == pytest.approx(wanted)
