"""The benchmark of padding's share: its arithmetic, one small run, its results."""

import json
import re

import numpy as np
import pytest

from benchmarks.buckets import pad_share, pad_share_tables
from jserve_sched.steps.record import StepRecord, recorded_sizes
from jserve_tools.load.workload_trace import DEFAULT_TRACE, read_trace
from tests import ROOT
from tests.fakes import make_features

FOLDER = ROOT / "benchmarks" / "buckets"


def features_of(rows: int, num_blocks: int, tokens: int) -> np.ndarray:
    sizes = {"NUM_ROWS": rows, "NUM_DECODES": rows, "NUM_BLOCKS": num_blocks}
    return make_features(**sizes, PREFILL_TOKENS=tokens)[0]


def step(used_blocks: int, row: np.ndarray, end_s: float = 1.0) -> StepRecord:
    return StepRecord(
        end_s=end_s,
        duration_s=1.0,
        used_blocks=used_blocks,
        leaves_work=False,
        **recorded_sizes(row),
    )


MATRIX = np.stack((features_of(0, 110, 3170), features_of(200, 0, 0)))
STEPS = [step(100, MATRIX[0]), step(0, MATRIX[1])]
# The machine: 7.51 ms and 0.06551 ms a position, and 8.415e-5 ms for each decode's KV.
BLOCK_S = 32 * 0.06551e-3
DECODE_S = 7.51e-3 + 200 * (0.06551e-3 + 8.415e-8)


@pytest.mark.parametrize(("edges", "charged"), [((0, 128, 256), 128), (None, 110)])
def test_padding_is_what_the_edge_costs_more(edges, charged: int) -> None:
    found = pad_share.judge(STEPS, MATRIX, edges)
    bucket_s = 7.51e-3 + charged * BLOCK_S
    padding_s = (charged - 100) * BLOCK_S
    assert found["pad_share_time"] == pytest.approx(padding_s / bucket_s)
    assert found["pad_share_time_all_steps"] == pytest.approx(
        padding_s / (bucket_s + DECODE_S)
    )
    inside_s = (100 - 3170 / 32) * BLOCK_S
    assert found["block_pad_share_time"] == pytest.approx(inside_s / bucket_s)
    assert found["busy_s"] == pytest.approx(bucket_s + DECODE_S)
    assert (found["num_steps"], found["num_prefill_steps"]) == (2, 1)


def test_steps_are_parted_where_half_of_the_requests_have_come() -> None:
    rows = read_trace(DEFAULT_TRACE, num_requests=5)
    arrivals = pad_share.arrivals_of(rows, 2.0)
    assert arrivals[-1].arrival_s == pytest.approx(4 / 2.0)
    assert {one.arrival_s for one in pad_share.arrivals_of(rows, None)} == {0.0}
    middle_s = arrivals[2].arrival_s
    steps = [
        step(0, MATRIX[1], end_s=start_s + 1.0)
        for start_s in (0.0, middle_s - 1e-6, middle_s + 1e-6, middle_s + 1)
    ]
    assert pad_share.num_earlier(steps, arrivals) == 2


@pytest.fixture(scope="module")
def small_runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    path = tmp_path_factory.mktemp("traces") / "small.csv"
    lines = DEFAULT_TRACE.read_text().splitlines()[:161]
    path.write_text("\n".join(lines) + "\n")
    return [
        {"traces": "committed", **run}
        for policy in ("fcfs", "sliding")
        for run in pad_share.judge_trace(path, policy)
    ]


def test_a_small_trace_is_judged(small_runs) -> None:
    by_name = {
        run["bucket_strategy"]: run for run in small_runs if run["policy"] == "fcfs"
    }
    assert set(by_name) == {
        "pow2",
        "two_bit",
        "linear",
        "pad_limit",
        *(
            f"fitted {n}{end}"
            for n in (10, 16)
            for end in ("", pad_share_tables.NO_PRIOR)
        ),
    }
    shares = {name: run["pad_share_time"] for name, run in by_name.items()}
    assert shares["linear"] < shares["two_bit"] < shares["pow2"]
    assert shares["fitted 16"] < shares["fitted 10"]
    assert by_name["pow2"]["num_edges"] == by_name["fitted 10"]["num_edges"] == 10
    assert by_name["fitted 16"]["target"] == 0.5
    assert by_name["fitted 16"]["is_target_met"]
    sliding = [run for run in small_runs if run["policy"] == "sliding"]
    assert len(sliding) == 6
    assert not any("target" in run for run in sliding)


def test_tables_and_picture_show_every_run(small_runs) -> None:
    text = pad_share_tables.tables(small_runs)
    assert text.count("| small |") == 2
    cells = [line for line in text.splitlines() if line.startswith("| small |")]
    for line, policy in zip(cells, ("fcfs", "sliding"), strict=True):
        shares = [
            100 * run["pad_share_time"] for run in small_runs if run["policy"] == policy
        ]
        found = re.findall(r"([\d.]+) % \(", line)
        assert [float(one) for one in found] == pytest.approx(shares, abs=0.06)
    assert pad_share_tables.picture(small_runs).startswith(b"\x89PNG")


def test_the_committed_result_meets_its_targets() -> None:
    document = json.loads((FOLDER / "pad_share.json").read_text())
    judged = [run for run in document["runs"] if "target" in run]
    assert len({run["trace"] for run in judged if run["traces"] == "full"}) == 8
    for run in judged:
        assert run["share_of_pow2"] <= pad_share.TARGETS[run["bucket_strategy"]]
