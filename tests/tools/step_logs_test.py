import json
import logging
import pathlib
from typing import Any

import pytest

from jserve.step_recorder import MIN_MAX_BYTES, StepRecorder, rotated
from jserve_sched.bucket_strategies import PowersOfTwo
from jserve_sched.cost_model import CLOSED_FORMS, OraclePredictor
from jserve_sched.policies import make_policy
from jserve_sched.simulator import make_scheduler, simulate
from jserve_sched.slo import Slo
from jserve_sched.workload import Arrival
from jserve_tools.step_logs import (
    RecordedStep,
    read_step_logs,
    tbt_budgets,
    write_simulated_log,
)

A100 = CLOSED_FORMS["a100-llama3-8b"]
HEADER: dict[str, Any] = {
    "block_tokens": 32,
    "page_size": 128,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 136,
    "policy": "fcfs",
    "buckets": {"row_edges": [2, 8], "block_edges": [0, 1, 4], "block_tokens": 32},
}


def step(number: int = 0, **others: Any) -> RecordedStep:
    found = RecordedStep(
        end_s=0.25 * number,
        num_rows=8,
        num_blocks=4,
        used_rows=7,
        used_blocks=3,
        decode_pages=2,
        block_pages=1,
        leaves_work=number % 2 == 1,
        bucket_s=0.03,
        used_s=0.02,
        duration_s=0.031,
    )
    return found._replace(**others)


def record(path: pathlib.Path, num_steps: int, **others: Any) -> pathlib.Path:
    recorder = StepRecorder(path, HEADER | others, MIN_MAX_BYTES)
    for number in range(num_steps):
        recorder.append(step(number))
    recorder.close()
    return path


def test_what_was_recorded_is_read_back(tmp_path: pathlib.Path) -> None:
    log = read_step_logs([record(tmp_path / "log", 3)])
    assert log.num_steps == 3
    (stretch,) = log.stretches
    assert stretch.steps == [step(0), step(1), step(2)]
    assert stretch.steps[1].leaves_work is True
    assert stretch.table.block_edges == (0, 1, 4)
    assert (log.limits.max_num_seqs, log.limits.page_size) == (8, 128)
    assert log.step_times is None


def test_the_older_half_comes_first_and_is_one_stretch_with_the_newer(
    tmp_path: pathlib.Path,
) -> None:
    path = record(tmp_path / "log", 1500)
    assert rotated(path).exists()
    (stretch,) = read_step_logs([path]).stretches
    numbers = [round(4 * one.end_s) for one in stretch.steps]
    assert numbers == list(range(numbers[0], 1500))
    assert len(numbers) > 700


def test_other_shapes_make_another_stretch(tmp_path: pathlib.Path) -> None:
    wider = {"row_edges": [2, 4, 8], "block_edges": [0, 1, 2, 4], "block_tokens": 32}
    times = {"base_s": [[0.01]]}
    classes = [{"name": "chat", "tbt_s": 0.04}, {"name": "batch", "tbt_s": None}]
    path = tmp_path / "log"
    recorder = StepRecorder(path, HEADER, MIN_MAX_BYTES)
    recorder.append(step(0))
    recorder.use_header(HEADER | {"buckets": wider, "step_times": times})
    recorder.append(step(1))
    recorder.append(step(2))
    recorder.close()
    other = record(tmp_path / "other", 2, service_classes=classes)
    log = read_step_logs([path, other])
    assert [len(one.steps) for one in log.stretches] == [1, 2, 2]
    assert [one.table.row_edges for one in log.stretches] == [(2, 8), (2, 4, 8), (2, 8)]
    assert log.step_times == times
    assert log.tbt_budgets == [(0.04, 1.0)]
    first, second = log.halves()
    assert [len(one.steps) for one in first] == [1, 1]
    assert [len(one.steps) for one in second] == [1, 2]
    assert second[0].steps == [step(2)]
    assert second[0].table.row_edges == (2, 4, 8)


def test_a_last_line_cut_short_is_left_out_with_a_warning(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = record(tmp_path / "log", 3)
    path.write_bytes(path.read_bytes()[:-5])
    with caplog.at_level(logging.WARNING, logger="jserve"):
        assert read_step_logs([path]).num_steps == 2
    (warning,) = caplog.messages
    assert warning == f"{path}: line 4 was cut short; it is left out"


ROW = [1.0, 8, 4, 7, 3, 2, 1, 0, 0.03, 0.02, 0.03]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "is empty"),
        (['{"format": "other"}'], "line 1 is no header of a step log"),
        ([ROW], "line 1 is no header of a step log"),
        ([HEADER | {"version": 2}], "line 1: the log is of version 2"),
        ([HEADER | {"page_size": 0}], "line 1: page_size=0 is not a whole number"),
        ([HEADER | {"block_tokens": 16}], "block_tokens is 32 in the buckets, 16 in"),
        ([HEADER | {"max_num_seqs": 4}], "largest row edge is 8 in the buckets, 4"),
        ([HEADER], "there is no step in it"),
        ([HEADER, ROW, "[1, 2"], "line 3 is not JSON"),
        ([HEADER, ROW[:-1]], "line 2 is not a list of 11 numbers"),
        ([HEADER, [*ROW[:-1], "text"]], "line 2: duration_s='text' is not a number"),
        ([HEADER, [*ROW[:-1], -1]], "line 2: duration_s=-1 is not a number from 0"),
        ([HEADER, [1.0, 8.5, *ROW[2:]]], "line 2: num_rows=8.5 is not a whole number"),
        ([HEADER, [1.0, 9, *ROW[2:]]], "line 2: num_rows=9 is over 8"),
        ([HEADER, [1.0, 2, 4, 3, *ROW[4:]]], "line 2: used_rows=3 is over 2"),
    ],
)
def test_a_log_that_is_no_good_is_told_by_line(
    lines: list[Any], message: str, tmp_path: pathlib.Path
) -> None:
    path = record(tmp_path / "good", 0)
    begin = json.loads(path.read_text())
    texts = []
    for line in lines:
        if isinstance(line, dict):
            line = begin | line
        texts.append(line if isinstance(line, str) else json.dumps(line))
    path = tmp_path / "log"
    path.write_text("".join(f"{text}\n" for text in texts))
    with pytest.raises(ValueError, match=message) as caught:
        read_step_logs([path])
    assert str(path) in str(caught.value)


def test_a_header_that_lacks_something_is_told(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "log"
    StepRecorder(path, {"block_tokens": 32}, MIN_MAX_BYTES).close()
    with pytest.raises(ValueError, match=r"lacks \['page_size', 'max_num_seqs'"):
        read_step_logs([path])


def test_logs_of_servers_with_other_limits_do_not_mix(tmp_path: pathlib.Path) -> None:
    paths = [
        record(tmp_path / "one", 2),
        record(tmp_path / "two", 2, max_num_batched_tokens=544),
    ]
    with pytest.raises(ValueError, match="max_num_batched_tokens=544 cannot be mixed"):
        read_step_logs(paths)


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
        path,
        steps,
        cost_model=A100,
        buckets=table,
        policy="fcfs",
        arrivals=arrivals,
    )
    log = read_step_logs([path])
    (stretch,) = log.stretches
    assert stretch.table == table
    assert log.limits.max_num_batched_tokens == 2048
    assert log.tbt_budgets == tbt_budgets(arrivals) == [(0.05, 0.75)]
    assert len(stretch.steps) == len(steps)
    for read, ran in zip(stretch.steps, steps, strict=True):
        assert read.used_blocks == ran.used_blocks
        assert read.leaves_work == ran.leaves_work
        assert read.bucket_s == pytest.approx(ran.bucket_s, abs=1e-7)
    assert any(one.leaves_work for one in stretch.steps)
