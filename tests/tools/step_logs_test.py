import json
import logging
import pathlib
from typing import Any

import pytest

from jserve_sched import features
from jserve_sched.bucket_strategies import PowersOfTwo
from jserve_sched.buckets import BucketTable
from jserve_sched.cost_model import CLOSED_FORMS, OraclePredictor
from jserve_sched.policies import make_policy
from jserve_sched.predictor import StepSample
from jserve_sched.simulator import make_scheduler, simulate
from jserve_sched.slo import Slo
from jserve_sched.table_predictor import TablePredictor
from jserve_sched.workload import Arrival
from jserve_tools.step_logs import (
    RecordedStep,
    read_step_logs,
    tbt_budgets,
    write_simulated_log,
)

A100 = CLOSED_FORMS["a100-llama3-8b"]
# The format as it was first written: logs of earlier servers stay readable.
HEADER: dict[str, Any] = {
    "format": "jserve-step-log",
    "version": 1,
    "fields": [
        *("end_s", "num_rows", "num_blocks", "used_rows", "used_blocks"),
        *("decode_pages", "block_pages", "leaves_work", "bucket_s", "used_s"),
        "duration_s",
    ],
    "block_tokens": 32,
    "page_size": 128,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 136,
    "policy": "fcfs",
    "buckets": {"row_edges": [2, 8], "block_edges": [0, 1, 4], "block_tokens": 32},
}
ROW = [0.25, 8, 4, 7, 3, 2, 1, 0, 0.03, 0.02, 0.031]
WIDER = {"row_edges": [2, 4, 8], "block_edges": [0, 1, 2, 4], "block_tokens": 32}


def write(path: pathlib.Path, *lines: Any) -> pathlib.Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def row(number: int) -> list[float]:
    return [float(number), *ROW[1:]]


def test_a_log_and_what_it_was_rotated_to_are_one_stretch(
    tmp_path: pathlib.Path,
) -> None:
    write(tmp_path / "log.1", HEADER, row(0), row(1))
    log = read_step_logs([write(tmp_path / "log", HEADER, row(2))])
    (stretch,) = log.stretches
    assert stretch.steps == [RecordedStep._make(row(number)) for number in range(3)]
    assert stretch.steps[0].leaves_work is False
    assert stretch.table.block_edges == (0, 1, 4)
    assert (log.limits["max_num_seqs"], log.limits["page_size"]) == (8, 128)


def test_other_shapes_make_another_stretch(tmp_path: pathlib.Path) -> None:
    classes = [{"name": "chat", "tbt_s": 0.04}, {"name": "batch", "tbt_s": None}]
    one = write(
        tmp_path / "one", HEADER, row(0), HEADER | {"buckets": WIDER}, row(1), row(2)
    )
    other = write(tmp_path / "other", HEADER | {"service_classes": classes}, row(3))
    log = read_step_logs([one, other])
    assert [len(one.steps) for one in log.stretches] == [1, 2, 1]
    assert [one.table.row_edges for one in log.stretches] == [(2, 8), (2, 4, 8), (2, 8)]
    assert log.tbt_budgets == [(0.04, 1.0)]
    parts = [(0, 2), (2, 4), (0, None), (1, 2)]
    found = [log.demand(lambda matrix: matrix[:, 0], *part) for part in parts]
    assert [demand.num_steps for demand in found] == [2, 2, 4, 1]


def test_steps_are_priced_by_the_newest_measured_times(tmp_path: pathlib.Path) -> None:
    table = BucketTable((2, 8), (0, 1, 4))
    times = []
    for base_s in (2e-3, 1e-3):
        predictor = TablePredictor(table, max_pages_per_row=8)
        samples = {}
        for bucket in table.buckets:
            samples[bucket] = features.uniform_features(
                bucket, decode_pages=1, block_pages=1, page_size=128
            )
        predictor.fit(
            StepSample(one, base_s + 1e-4 * bucket.num_tokens)
            for bucket, one in samples.items()
        )
        times.append(predictor.to_json())
    headers = [HEADER | {"step_times": one} for one in (*times, None)]
    lines = [line for header in headers for line in (header, ROW)]
    log = read_step_logs([write(tmp_path / "log", *lines)])
    step_s = log.measured()
    full = samples[table.fit(8, 4)]
    assert step_s(full[None])[0] == pytest.approx(1e-3 + 1e-4 * 136)
    broken = HEADER | {"step_times": times[0] | {"base_s": [[1.0]]}}
    log = read_step_logs([write(tmp_path / "log", broken, ROW)])
    with pytest.raises(ValueError, match="the step times in the step log"):
        log.measured()


def test_a_last_line_cut_short_is_left_out_with_a_warning(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "log", HEADER, ROW, ROW, ROW)
    path.write_bytes(path.read_bytes()[:-5])
    with caplog.at_level(logging.WARNING, logger="jserve"):
        assert len(read_step_logs([path]).steps) == 2
    assert caplog.messages == [f"{path}: line 4 was cut short; it is left out"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "there is no step in it"),
        ([HEADER], "there is no step in it"),
        ([ROW], "line 1: a step log begins with a header"),
        ([HEADER | {"format": "other"}], "line 1 is not a header of jserve-step-log"),
        ([HEADER | {"version": 2}], "line 1 is not a header of .* version 1"),
        ([HEADER | {"fields": ["end_s"]}], "line 1 is not a header"),
        ([HEADER | {"page_size": 0}], "line 1: page_size=0 is not a whole number"),
        ([HEADER | {"max_num_seqs": None}], "max_num_seqs=None is not a whole"),
        ([HEADER | {"buckets": None}], "line 1: a bucket file is a JSON object"),
        ([HEADER | {"block_tokens": 16}], "block_tokens=16, 32 in buckets"),
        ([HEADER | {"max_num_seqs": 4}], "max_num_seqs=4, 8 in buckets"),
        ([HEADER, ROW, "[1, 2"], "line 3 is not a step in the buckets"),
        ([HEADER, ROW[:-1]], "line 2 is not a step"),
        ([HEADER, [*ROW[:-1], "text"]], "line 2 is not a step .*'text'"),
        ([HEADER, [*ROW[:-1], -1]], "line 2 is not a step"),
        ([HEADER, [*ROW[:-1], float("nan")]], "line 2 is not a step"),
        ([HEADER, [1.0, 8.5, *ROW[2:]]], "line 2 is not a step"),
        ([HEADER, [1.0, 9, *ROW[2:]]], "line 2 is not a step"),
        ([HEADER, [1.0, 2, 4, 3, *ROW[4:]]], "line 2 is not a step"),
        ([HEADER, ROW, HEADER | {"page_size": 64}, ROW], "cannot be mixed"),
    ],
)
def test_an_invalid_log_is_refused_by_line(
    lines: list[Any], message: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ValueError, match=message):
        read_step_logs([write(tmp_path / "log", *lines)])


def test_a_line_that_is_not_json_is_refused(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "log", HEADER, ROW)
    path.write_text(path.read_text() + "[1, 2\n")
    with pytest.raises(ValueError, match="log: line 3 is not JSON"):
        read_step_logs([path])


def test_a_simulation_is_logged_as_a_server_would(tmp_path: pathlib.Path) -> None:
    table = PowersOfTwo().table(
        max_num_seqs=256, max_num_batched_tokens=2048, block_tokens=32
    )
    arrivals = [
        Arrival(
            request_id=str(k),
            arrival_s=0.02 * k,
            num_prompt_tokens=1000,
            max_tokens=20,
            service_class="chat",
            slo=Slo(ttft_s=1.0, tbt_s=0.05 if k % 4 else None),
        )
        for k in range(8)
    ]
    scheduler = make_scheduler(
        policy=make_policy("fcfs"),
        cost_model=A100,
        buckets=table,
        predictor=OraclePredictor(A100, 32),
        max_model_len=4096,
    )
    steps = simulate(scheduler, A100, arrivals, records_steps=True).steps
    assert steps
    path = tmp_path / "log"
    write_simulated_log(
        path, steps, cost_model=A100, buckets=table, policy="fcfs", arrivals=arrivals
    )
    log = read_step_logs([path])
    (stretch,) = log.stretches
    assert stretch.table == table
    assert log.limits["max_num_batched_tokens"] == 2048
    assert log.tbt_budgets == tbt_budgets(arrivals) == [(0.05, 0.75)]
    assert len(log.steps) == len(steps)
    for read, ran in zip(log.steps, steps, strict=True):
        assert (read.used_blocks, read.leaves_work) == (
            ran.used_blocks,
            ran.leaves_work,
        )
        assert read.bucket_s == pytest.approx(ran.bucket_s, abs=1e-7)
        assert read.end_s == pytest.approx(ran.start_s + ran.duration_s, abs=1e-7)
    assert any(one.leaves_work for one in log.steps)
