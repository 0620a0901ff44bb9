"""Goodput search against servers whose goodput is known."""

import statistics

import pytest

from jserve_sched.goodput import (
    Goodput,
    RateGrid,
    SeedGoodput,
    most_violations,
    num_warmup,
    pool,
    search,
    search_seed,
)

GRID = RateGrid(lowest_qps=0.1, highest_qps=100.0)


class Server:
    """Keeps all promises up to an edge that depends on the seed."""

    def __init__(self, *edges_qps: float):
        self.edges_qps = edges_qps
        self.calls: list[tuple[float, int]] = []

    def probe(self, qps: float, seed: int) -> tuple[int, int]:
        assert (qps, seed) not in self.calls, "the same probe twice"
        self.calls.append((qps, seed))
        return (9 if qps <= self.edges_qps[seed] else 10, 900)


@pytest.mark.parametrize("edge_qps", [0.11, 0.9, 3.3, 40.0, 98.0])
@pytest.mark.parametrize("start_qps", [0.01, 1.0, 3.3, 500.0])
def test_the_edge_is_found_to_the_grids_resolution(
    edge_qps: float, start_qps: float
) -> None:
    server = Server(edge_qps)
    found = search_seed(server.probe, 0, grid=GRID, start_qps=start_qps)
    assert found.qps <= edge_qps < found.qps * 1.02 * (1 + 1e-9)
    assert (found.num_violations, found.num_requests) == (9, 900)
    assert found.num_probes == len(server.calls) <= 16
    assert not found.is_unbounded


def test_the_ends_of_the_grid_are_told() -> None:
    none = search_seed(Server(0.01).probe, 0, grid=GRID, start_qps=3.0)
    assert (none.qps, none.num_violations, none.is_unbounded) == (0.0, 10, False)
    every = search_seed(Server(1e9).probe, 0, grid=GRID, start_qps=3.0)
    assert every.is_unbounded
    assert every.qps == pytest.approx(100.0, rel=0.02)


def test_a_nearby_start_saves_probes() -> None:
    far, near = Server(50.0), Server(50.0)
    search_seed(far.probe, 0, grid=GRID, start_qps=0.2)
    search_seed(near.probe, 0, grid=GRID, start_qps=48.0)
    assert len(near.calls) <= 5 < len(far.calls)


def test_seeds_are_pooled() -> None:
    server = Server(4.0, 5.0, 6.0)
    found = search(server.probe, (0, 1, 2), grid=GRID, start_qps=4.0)
    rates = [one.qps for one in found.seeds]
    assert found.qps == pytest.approx(statistics.fmean(rates))
    assert found.qps == pytest.approx(5.0, rel=0.02)
    # Student's t at 2 degrees of freedom is 4.303.
    spread = 4.303 * statistics.stdev(rates) / 3**0.5
    assert found.ci95_qps == pytest.approx((found.qps - spread, found.qps + spread))
    assert found.violation_share == 27 / 2700
    low, high = found.violation_ci95
    assert 0.006 < low < 0.01 < high < 0.015


def entry(qps: float) -> SeedGoodput:
    return SeedGoodput(
        seed=0,
        qps=qps,
        num_violations=0,
        num_requests=100,
        num_probes=1,
        is_unbounded=False,
    )


def test_one_seed_has_no_interval_and_many_have_a_narrow_one() -> None:
    assert pool([entry(3.0)]).ci95_qps is None
    many: Goodput = pool([entry(3.0), entry(3.2)] * 20)
    assert many.ci95_qps is not None
    # Student's t at 39 degrees of freedom is 2.0227.
    spread = 2.0227 * statistics.stdev([3.0, 3.2] * 20) / 40**0.5
    assert many.ci95_qps[1] - many.qps == pytest.approx(spread, rel=1e-4)


def test_what_counts() -> None:
    assert (num_warmup(1000), num_warmup(5)) == (100, 0)
    assert (most_violations(900), most_violations(899)) == (9, 8)
    assert most_violations(300) == 3  # although 300 * 0.01 may round below 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lowest_qps": 0.0}, "lowest_qps=0"),
        ({"highest_qps": 0.01}, r"highest_qps=0\.01"),
        ({"resolution": 0.0}, "resolution=0"),
    ],
)
def test_a_grid_without_sense_is_refused(
    fields: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RateGrid(**fields)


def test_bad_searches_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        search(Server(1.0).probe, (), grid=GRID, start_qps=1.0)
    with pytest.raises(ValueError, match="start_qps=0"):
        search(Server(1.0).probe, (0,), grid=GRID, start_qps=0.0)
    with pytest.raises(ValueError, match="counted no request"):
        search(lambda qps, seed: (0, 0), (0,), grid=GRID, start_qps=1.0)
