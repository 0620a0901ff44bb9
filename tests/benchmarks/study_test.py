"""What studies share: calls that are made once, intervals and tables."""

import pathlib

import pytest

from benchmarks.study import grid, interval, mean, simulate


def test_a_call_is_made_once(tmp_path: pathlib.Path) -> None:
    call = {"workload": "chat", "num_requests": 4, "policies": ("fcfs", "edf")}
    call |= {"one_shot": True, "bucket_strategies": "none"}
    ((fcfs, edf),) = simulate(tmp_path, [call])
    assert (fcfs["policy"], edf["policy"]) == ("fcfs", "edf")
    (report,) = tmp_path.glob("*/report.json")
    before_ns = report.stat().st_mtime_ns
    assert simulate(tmp_path, [call]) == [[fcfs, edf]]
    assert report.stat().st_mtime_ns == before_ns
    with pytest.raises(RuntimeError, match="num_requests=0"):
        simulate(tmp_path, [call | {"num_requests": 0}])


def test_seeds_have_a_mean_and_an_interval() -> None:
    runs = [{"ttft_s": {"p99": 1.0}}, {"ttft_s": {"p99": 2.0}}]
    assert mean(runs, "ttft_s", "p99") == 1.5
    middle, low, high = interval([0.9, 1.0, 1.1])
    half = 4.302653 * 0.1 / 3**0.5  # Student's t, of three seeds that scatter by 0.1
    assert [middle, high - low] == pytest.approx([1.0, 2 * half])
    assert interval([2.0]) == (2.0, 2.0, 2.0)


def test_a_table_has_its_rows_and_columns_in_the_order_of_the_cells() -> None:
    cells = {("chat", "fcfs"): "1", ("tight", "edf"): "2", ("chat", "edf"): "3"}
    assert grid("kind", cells).splitlines() == [
        "| kind | fcfs | edf |",
        "| --- | --: | --: |",
        "| chat | 1 | 3 |",
        "| tight | - | 2 |",
    ]
