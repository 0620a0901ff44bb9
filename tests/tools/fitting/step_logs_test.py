import json
import logging
import pathlib
from typing import Any

import pytest

from jserve_sched.buckets.table import BucketTable
from jserve_sched.requests.slo import Slo
from jserve_sched.simulation.cost_model import CLOSED_FORMS
from jserve_sched.simulation.workload import Arrival
from jserve_tools.fitting.step_logs import read_step_logs, write_simulated_log
from tests.fakes import make_step

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


def test_steps_are_read_in_order_with_what_held_for_them(
    tmp_path: pathlib.Path,
) -> None:
    wider = HEADER | {"buckets": WIDER}
    write(tmp_path / "one.1", HEADER, row(0), row(1))  # what `one` was rotated to
    one = write(tmp_path / "one", HEADER, row(2), wider, row(3))
    steps = read_step_logs([one, write(tmp_path / "other", HEADER, row(4))])
    assert [step.end_s for _, step in steps] == [0, 1, 2, 3, 4]
    header, step = steps[3]
    assert [getattr(step, name) for name in HEADER["fields"]] == row(3)
    edges = [header["table"].row_edges for header, _ in steps]
    assert edges == [(2, 8), (2, 8), (2, 8), (2, 4, 8), (2, 8)]
    assert header["policy"] == "fcfs"


def test_a_last_line_cut_short_is_left_out_with_a_warning(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "log", HEADER, ROW, ROW, ROW)
    path.write_bytes(path.read_bytes()[:-5])
    with caplog.at_level(logging.WARNING, logger="jserve"):
        assert len(read_step_logs([path])) == 2
    assert caplog.messages == [f"{path}: line 4 was cut short; it is left out"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no step was recorded"),
        ([HEADER], "no step was recorded"),
        ([ROW], "line 1: a step log begins with a header"),
        ([HEADER | {"version": 2}], "line 1: this is not a header of .* version 1"),
        ([HEADER | {"fields": ["end_s"]}], "line 1: this is not a header"),
        ([HEADER | {"page_size": 0}], "line 1: page_size=0 is not a whole number"),
        ([HEADER | {"max_num_seqs": None}], "max_num_seqs=None is not a whole"),
        ([HEADER | {"buckets": None}], "line 1: a bucket file is a JSON object"),
        ([HEADER | {"block_tokens": 16}], "the buckets are of another block_tokens"),
        ([HEADER, ROW, "[1, 2"], "line 3: "),
        ([HEADER, ROW[:-1]], "line 2: "),
        ([HEADER, [*ROW[:-1], "text"]], "line 2: .*'?text"),
        ([HEADER, [*ROW[:-1], -1]], "line 2: duration_s=-1 is not a number of 0"),
        ([HEADER, [*ROW[:-1], float("nan")]], "line 2: duration_s=nan is not a number"),
        (
            [HEADER, [1.0, 8.5, *ROW[2:]]],
            r"line 2: num_rows=8.5 is not a whole number: \[1.0, 8.5",
        ),
        ([HEADER, [1.0, 9, *ROW[2:]]], "line 2: this is not a step"),
        ([HEADER, [1.0, 2, 4, 3, *ROW[4:]]], "line 2: this is not a step"),
        ([HEADER, ROW, HEADER | {"page_size": 64}, ROW], "line 3: .* cannot be mixed"),
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
    with pytest.raises(ValueError, match=r"log: line 3: .*: \[1, 2"):
        read_step_logs([path])


def test_a_simulation_is_logged_as_a_server_would(tmp_path: pathlib.Path) -> None:
    table = BucketTable((2, 256), (0, 1, 4))
    arrivals = [
        Arrival(
            request_id=str(k),
            arrival_s=0.0,
            num_prompt_tokens=9,
            max_tokens=2,
            service_class="chat",
            slo=Slo(ttft_s=1.0, tbt_s=tbt_s),
        )
        for k, tbt_s in enumerate((None, 0.05, 0.05, 0.05))
    ]
    ran = make_step(256, 4, leaves_work=True, bucket_s=0.5, plan_s=0.125)
    path = tmp_path / "log"
    write_simulated_log(
        path, [ran], cost_model=A100, buckets=table, policy="edf", arrivals=arrivals
    )
    ((header, step),) = read_step_logs([path])
    assert step == ran
    assert header["table"] == table
    assert header["max_num_batched_tokens"] == A100.max_num_batched_tokens
    assert header["service_classes"] == [{"tbt_s": 0.05, "share": 0.75}]
