"""Turns and seeds become cells, with what is sure about them."""

import math
from typing import Any

import pytest

from jserve_tools.reporting.cells import Estimate, cells, difference
from tests.fake_report import small_report as report
from tests.fake_report import small_run


def run(num_attained: int = 9, num: int = 10, **fields: Any) -> dict[str, Any]:
    return small_run(num_attained, num, **fields)


def test_turns_pool_requests_and_take_the_mean_of_the_rest() -> None:
    (cell,) = cells(
        report(
            run(ttft_s={"p50": 1.0}, by_class={"a": run(6)}),
            run(23, 30, ttft_s={"p50": 3.0}),
            run(),
        )
    )
    share = cell.attainment()
    assert share is not None and share.low < share.value == 41 / 50 < share.high
    of_class = cell.attainment("a")
    assert of_class is not None and of_class.value == 0.6
    assert cell.attainment("b") is None
    assert cell.mean("ttft_s", "p50") == cell.percentile_s("ttft_s", 50) == 2.0
    assert cell.mean("ttft_s", "p50", "deeper") is None
    assert cell.name == "fcfs / pow2 @ 0.9x"


def test_percentiles_are_of_all_requests_where_every_run_lists_them() -> None:
    first = run(requests=[{"ttft_s": 1.0, "service_class": "a"}, {"ttft_s": 3.0}])
    second = run(requests=[{"ttft_s": 8.0}, {}], ttft_s={"p50": 9.0})
    (cell,) = cells(report(first, second))
    assert cell.percentile_s("ttft_s", 50) == 3.0
    assert cell.percentile_s("ttft_s", 50, "a") == 1.0
    (cell,) = cells(report(first, run(ttft_s={"p50": 9.0})))
    assert cell.percentile_s("ttft_s", 50) == 9.0


def test_what_tells_cells_apart() -> None:
    runs = [
        *(run(), run(policy="edf"), run(bucket_strategy="linear"), run(load=1.2)),
        *(run(goodput_qps=3.0), {"policy": "fcfs", "qps": 2.0}, run()),
        *({"is_one_shot": True}, {}),
    ]
    found = cells(report(*runs))
    assert [(cell.labels["setting"], cell.labels["load"]) for cell in found] == [
        *(("fcfs / pow2", "0.9x"), ("edf / pow2", "0.9x"), ("fcfs / linear", "0.9x")),
        *(("fcfs / pow2", "1.2x"), ("fcfs / pow2", "goodput"), ("fcfs / pow2", "2/s")),
        *(("server / pow2", "all at once"), ("server / pow2", "one load")),
    ]
    assert len(found[0].runs) == 2
    assert cells(report(run()))[0].labels["setting"] == "fcfs"


def test_token_limits_are_named_only_where_they_differ() -> None:
    limits = (("fcfs", 512), ("fcfs", 2048), ("edf", 512))
    runs = [run(policy=policy, max_num_batched_tokens=one) for policy, one in limits]
    names = [cell.labels["policy"] for cell in cells(report(*runs))]
    assert names == ["fcfs@512", "fcfs@2048", "edf"]


def test_modules_of_classes_are_named_only_where_their_names_are_equal() -> None:
    for policies, names in (
        (("sliding:alpha=0.2", "a.b.Mine:x=0.5"), ["sliding:alpha=0.2", "Mine:x=0.5"]),
        (("a.Mine", "b.Mine"), ["a.Mine", "b.Mine"]),
    ):
        found = cells(report(*(run(policy=one) for one in policies)))
        assert [cell.labels["policy"] for cell in found] == names


def test_other_schemas_and_empty_reports_are_refused_by_name() -> None:
    for version in (0, 3, None, "2", True):
        with pytest.raises(ValueError, match=r"schema_version is .*schema 1 and 2"):
            cells(report(run(), **{"schema_version": version}))
    with pytest.raises(ValueError, match="no runs"):
        cells(report())


@pytest.mark.parametrize(
    ("sources", "is_cold"),
    [(["compiled", "compiled"], True), (["compiled", "cache"], False), ([], False)],
)
def test_a_start_is_cold_only_if_nothing_was_cached(
    sources: list[str], is_cold: bool
) -> None:
    start = {"warm_s": 8.0, "programs": [{"source": one} for one in sources]}
    (cell,) = cells(report(run(start_up=start)))
    assert cell.mean("start_up_cold", "warm_s") == (8.0 if is_cold else None)
    assert cell.mean("start_up", "warm_s") == (None if is_cold else 8.0)


def test_the_interval_of_a_difference_mirrors() -> None:
    before, after = Estimate(0.5, 0.4, 0.7), Estimate(0.8, 0.7, 0.85)
    value, low, high = difference(before, after)
    assert low < value < high and value == pytest.approx(0.3)
    assert difference(after, before) == pytest.approx((-value, -high, -low))
    assert math.isnan(difference(before, Estimate(1.0)).low)
