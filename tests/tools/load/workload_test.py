import dataclasses
import json
import pathlib

import pytest

from jserve_sched.requests.service_class import ServiceClass
from jserve_sched.requests.slo import Slo
from jserve_sched.simulation.workload import Yardstick
from jserve_tools.load.config import LoadConfig, ReplayConfig
from jserve_tools.load.workload import (
    DEFAULT_SERVICE_CLASSES,
    Workload,
    read_workload,
)
from jserve_tools.load.workload_trace import TraceRow

ROWS = [TraceRow(float(i), 10 + i, 1 + i) for i in range(5)]
YARDSTICK = Yardstick(prompt_tokens=(10, 20), ttft_s=(0.1, 0.3), step_s=0.01)
SEVEN = LoadConfig(seed=7)


def test_prompts_are_distinct_per_seed_run_and_row_and_never_special() -> None:
    def prompt(seed: int, run: int, row: int) -> tuple[int, ...]:
        workload = Workload(rows=ROWS, config=LoadConfig(seed=seed))
        request = workload.request(run, row, prompt_tokens=64, max_tokens=1)
        return tuple(request.prompt.tolist())

    first = prompt(0, 0, 0)
    assert len(first) == 64 and min(first) >= 4 and max(first) <= 255
    assert first == prompt(0, 0, 0)
    assert len({first, prompt(1, 0, 0), prompt(0, 1, 0), prompt(0, 0, 1)}) == 4


def test_requests_keep_lengths_classes_and_slos_across_runs() -> None:
    workload = Workload(rows=ROWS, config=SEVEN)
    one, two = (workload.requests(run, YARDSTICK, qps=2.0) for run in range(2))
    assert len({request.request_id for request in one + two}) == 10
    assert [request.arrival_s for request in one] == [0.0, 0.5, 1.0, 1.5, 2.0]
    for row, a, b in zip(ROWS, one, two, strict=True):
        assert len(a.prompt) == len(b.prompt) == row.prompt_tokens
        assert a.max_tokens == b.max_tokens == row.output_tokens
        assert (a.arrival_s, a.slo) == (b.arrival_s, b.slo)
        assert a.service_class == b.service_class
        assert (a.prompt != b.prompt).any()


def test_a_row_may_name_its_class() -> None:
    rows = [TraceRow(0.0, 10, 1, "batch"), TraceRow(1.0, 10, 1, "interactive")]
    unshared = [dataclasses.replace(one, share=0.0) for one in DEFAULT_SERVICE_CLASSES]
    workload = Workload(rows=rows, classes=unshared)
    requests = workload.requests(0, YARDSTICK, qps=1.0)
    assert [one.service_class for one in requests] == ["batch", "interactive"]


def test_relative_objectives_become_absolute() -> None:
    tight = ServiceClass(name="t", share=1, ttft_slowdown=5, tbt_step_multiple=3)
    workload = Workload(rows=ROWS, classes=(tight,))
    assert workload.slo(0, YARDSTICK) == ("t", Slo(ttft_s=0.5, tbt_s=0.03))
    _, slo = Workload(rows=[TraceRow(0, 15, 1)], classes=(tight,)).slo(0, YARDSTICK)
    assert slo.ttft_s == pytest.approx(5 * 0.2)  # half way along the curve
    assert YARDSTICK.isolated_ttft_s(99) == 0.3  # flat beyond it
    with pytest.raises(ValueError, match="ttft_slowdown=5 needs a measured time"):
        workload.slo(0, None)


def test_a_workload_is_read_and_described(tmp_path: pathlib.Path) -> None:
    trace = tmp_path / "mine.csv"
    rows = "".join(f"{i},8,4\n" for i in range(3))
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps([{"name": "lax", "share": 1.0, "ttlt_s": 60}]))
    replay = ReplayConfig(trace=trace, service_classes=classes, length_scale=0.5)
    workload = read_workload(LoadConfig(replay=replay))
    assert workload.rows == [TraceRow(float(i), 4, 2) for i in range(3)]
    assert [one.name for one in workload.classes] == ["lax"]
    found = workload.describe()
    assert (found["trace"], found["trace_qps"], found["num_rows"]) == ("mine.csv", 1, 3)
    assert read_workload(LoadConfig()).describe()["num_rows"] == 200
