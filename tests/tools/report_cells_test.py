"""Turns and seeds become cells."""

from typing import Any

import pytest

from jserve_tools.report_cells import START_KINDS, cells


def run(**fields: Any) -> dict[str, Any]:
    return {
        "policy": "fcfs",
        "bucket_strategy": "pow2",
        "load": 0.9,
        "num_requests": 10,
        "num_violations": 1,
        **fields,
    }


def report(*runs: dict[str, Any], schema_version: Any = 2) -> dict[str, Any]:
    return {"schema_version": schema_version, "runs": list(runs)}


def test_turns_pool_requests_and_mean_the_rest() -> None:
    (cell,) = cells(
        report(
            run(seed=1, ttft_s={"p50": 1.0}, by_class={"a": run(num_violations=4)}),
            run(seed=0, num_requests=30, num_violations=7, ttft_s={"p50": 3.0}),
            run(seed=2),
        )
    )
    share = cell.share()
    assert share is not None and (share.num_met, share.num_requests) == (41, 50)
    low, high = share.ci95
    assert low < share.value == 0.82 < high
    of_class = cell.share("a")
    assert of_class is not None and of_class.num_met == 6
    assert cell.share("b") is None
    assert cell.mean("ttft_s", "p50") == 2.0
    assert cell.mean("ttft_s", "p99") is None and cell.first("ttft_s", "p99") is None
    assert cell.mean("ttft_s", "p50", "deeper") is None
    assert cell.seeds == (0, 1, 2)
    assert cell.name == "fcfs / pow2 @ 0.9x"


def test_what_tells_cells_apart() -> None:
    found = cells(
        report(
            run(),
            run(policy="edf"),
            run(bucket_strategy="linear"),
            run(load=1.2),
            run(goodput_qps=3.0),
            {"policy": "fcfs", "qps": 2.0},
            {"levels_qps": [1, 2.5], "qps": 2.0},
            {"num_clients": 8},
            {"is_one_shot": True},
            run(),
        )
    )
    assert [(cell.policy, cell.bucket_strategy, cell.load) for cell in found] == [
        ("fcfs", "pow2", "0.9x"),
        ("edf", "pow2", "0.9x"),
        ("fcfs", "linear", "0.9x"),
        ("fcfs", "pow2", "1.2x"),
        ("fcfs", "pow2", "goodput"),
        ("fcfs", "pow2", "2/s"),
        ("server", "pow2", "1/2.5/s"),
        ("server", "pow2", "8 clients"),
        ("server", "pow2", "all at once"),
    ]
    assert len(found[0].runs) == 2
    assert [cell.is_goodput for cell in found].count(True) == 1


def test_token_limits_are_named_only_where_they_differ() -> None:
    runs = [
        run(max_num_batched_tokens=512),
        run(max_num_batched_tokens=2048),
        run(policy="edf", max_num_batched_tokens=512),
    ]
    names = [cell.policy for cell in cells(report(*runs))]
    assert names == ["fcfs@512", "fcfs@2048", "edf"]


@pytest.mark.parametrize("version", [0, 3, None, "2", True])
def test_other_schemas_are_refused_by_name(version: Any) -> None:
    with pytest.raises(ValueError, match=r"schema_version is .*schema 1 and 2"):
        cells(report(run(), schema_version=version))


def test_a_report_without_runs_is_refused() -> None:
    with pytest.raises(ValueError, match="no runs"):
        cells(report())


def start(warm_s: float, *sources: str) -> dict[str, Any]:
    return {"warm_s": warm_s, "programs": [{"source": one} for one in sources]}


def test_starts_of_different_kinds_are_never_put_together() -> None:
    (cell,) = cells(
        report(
            run(start_up=start(8.0, "compiled", "compiled")),
            run(start_up=start(1.0, "stored", "cache")),
            run(start_up=start(3.0, "compiled", "cache")),
            run(start_up=start(6.0), start_up_warm=start(0.5)),
            run(start_up=start(2.0)),
            run(),
        )
    )
    kinds = {kind: cell.start_mean(kind, "warm_s") for kind in START_KINDS}
    assert kinds == {"cold": 7.0, "cached": 0.5, "other": 2.0}
    assert cell.start_mean("cold", "ready_s") is None


def test_what_should_not_be_adds_up() -> None:
    (cell,) = cells(report(run(bugs=0), run(bugs=1), run(bugs=0), run()))
    assert cell.total("bugs") == 1
    assert cell.total("more") is None
