"""A Chrome trace: its format, which steps it calls slow, and why."""

import itertools
import json
import pathlib
import sys
from typing import Any

import pytest

from jserve.records import chrome_trace as chrome_trace_module
from jserve.records.chrome_trace import chrome_trace
from jserve.records.events import ProgramStart
from jserve.records.step_log import StepRecorder
from tests.fakes import make_step

STEP: dict[str, Any] = {
    "num_blocks": 4,
    "predicted_s": 0.01,
    "bucket_s": 0.01,
    "used_s": 0.008,
}


def tracks(trace: dict) -> dict[str, list[dict]]:
    names = {
        one["tid"]: one["args"]["name"].partition(":")[0]
        for one in trace["traceEvents"]
        if one["name"] == "thread_name"
    }
    found: dict[str, list[dict]] = {name: [] for name in names.values()}
    for one in trace["traceEvents"]:
        if one["ph"] != "M":
            found[names[one["tid"]]].append(one)
    return found


def test_every_step_is_a_slice_above_what_the_host_did_for_it() -> None:
    host: dict[str, Any] = {"plan_s": 2e-4, "transfer_s": 1e-4, "launch_s": 3e-4}
    steps = [
        make_step(
            step_id=number,
            launched_s=99.989 + 0.01 * number,
            end_s=100.0 + 0.01 * number,
            wait_s=0.009,
            apply_s=1e-4,
            **STEP,
            **host,
        )
        for number in range(3)
    ]
    trace = json.loads(json.dumps(chrome_trace(steps, name="jserve toy")))
    process, *_ = trace["traceEvents"]
    assert (process["ph"], process["args"]) == ("M", {"name": "jserve toy"})
    found = tracks(trace)
    assert [one["args"]["step_id"] for one in found["device steps"]] == [0, 1, 2]
    first = found["device steps"][0]
    assert (first["ph"], first["name"]) == ("X", "B8xNB4")
    assert (first["ts"], first["dur"]) == (99_990_000, 10_000)  # microseconds
    assert first["args"]["measured_to_predicted"] == 1.0
    assert first["args"]["padding_share_of_time"] == 0.2
    host_names = [one["name"] for one in found["host"][:5]]
    assert host_names == ["plan", "pack", "launch", "wait", "apply"]
    for slices in (found["device steps"], found["host"][:5]):
        for one, after in itertools.pairwise(slices):
            assert one["ts"] + one["dur"] <= after["ts"]
    assert found["slow steps"] == found["compilations"] == []


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        (
            {"num_compiling": 2, "decode_pages": 9},
            "programs being compiled: 2; decodes read",
        ),
        ({"decode_pages": 9}, "decodes read 9 KV pages, the median is 1"),
        ({"predicted_s": 0.001}, "predicted too low: its bucket's median is 10.0 ms"),
        ({"predicted_s": 0.0, "block_pages": 9}, "blocks read 9 KV pages"),
        ({"launched_s": 9.9}, "the host was busy and saw its end late"),
        ({}, "no cause on record: other load?"),
    ],
)
def test_a_slow_step_says_why(fields: dict, cause: str) -> None:
    usual = [make_step(step_id=number, **STEP) for number in range(4)]
    late = {"step_id": 4, "end_s": 10.0, "duration_s": 0.03}
    slow = make_step(**STEP | late | fields)
    program = ProgramStart("B8xNB8", 1.0, 2.0, None, "compiled", end_s=6.0)
    found = tracks(chrome_trace([*usual, slow], name="toy", programs=[program]))
    (shown,) = found["slow steps"]
    assert shown["args"]["step_id"] == 4
    assert shown["args"]["slow_because"].startswith(cause)
    begin, end = found["compilations"]
    assert (begin["ph"], end["ph"], begin["id"]) == ("b", "e", end["id"])
    assert (begin["ts"], end["ts"]) == (3_000_000, 6_000_000)
    assert begin["name"] == "compiled B8xNB8"


def test_a_step_log_is_shown_too(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = StepRecorder(tmp_path / "steps.jsonl", dict, 2**16)
    recorder.append(make_step(step_id=7, **STEP))
    recorder.end()
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "steps.jsonl")])
    chrome_trace_module.main()
    (step,) = tracks(json.loads(capsys.readouterr().out))["device steps"]
    assert step["args"]["step_id"] == 7
