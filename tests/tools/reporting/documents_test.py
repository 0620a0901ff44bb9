import json
import pathlib

import numpy as np
import pytest

from jserve_sched.outcomes import Failure
from jserve_sched.requests.slo import Slo
from jserve_tools.reporting.documents import (
    device_name,
    document,
    one_line,
    outcome_rows,
    plain,
    write_whole,
)
from tests.fakes import make_outcome


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
    with pytest.raises(ValueError, match="inf cannot be written"):
        plain(float("inf"))


def test_device_name() -> None:
    card = {"platform": "gpu", "kind": "X1", "count": 2}
    assert device_name({"device": card}) == "gpu X1 x2"
    assert device_name({"device": card | {"kind": "gpu", "count": 1}}) == "gpu"
    assert device_name({"device": "fake"}) == "fake"
    assert device_name({}) is None


def test_a_row_has_what_a_request_experienced_and_no_more() -> None:
    outcomes = make_outcome(10.5, 10.75), make_outcome(10.5), make_outcome()
    whole, one_token, none = outcome_rows(outcomes)
    same = {"arrival_s": 0.0, "service_class": "tight", "prompt_tokens": 8}
    same |= {"slo": {"ttft_s": 1.0, "tbt_s": 0.5}}
    times = {"ttft_s": 0.5, "tbt_p99_s": 0.25, "e2e_s": 0.75}
    assert whole == same | times | {"output_tokens": 2}
    assert one_token == same | {"output_tokens": 1, "ttft_s": 0.5, "e2e_s": 0.5}
    assert none.keys() == same.keys() | {"output_tokens", "violation"}


def test_document_leaves_out_what_is_unknown() -> None:
    report = document(
        command=["jserve-bench"],
        facts={"versions": {"jax": "1"}, "stats": {}, "model": "m"},
        workload={"trace": "t"},
        runs=[{"policy": "edf", "requests": [1]}],
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
