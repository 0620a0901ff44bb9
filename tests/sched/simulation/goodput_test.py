"""Goodput search against servers whose goodput is known."""

import statistics

import pytest

from jserve_sched.simulation.goodput import (
    RateGrid,
    SeedGoodput,
    most_violations,
    num_warmup,
    pool,
    search_seed,
)

GRID = RateGrid(lowest_qps=0.1, highest_qps=100.0)


class Server:
    """Attains all SLOs up to an edge."""

    def __init__(self, edge_qps: float):
        self.edge_qps = edge_qps
        self.calls: list[float] = []

    def probe(self, qps: float, seed: int) -> tuple[int, int]:
        assert qps not in self.calls, "the same probe twice"
        self.calls.append(qps)
        return (9 if qps <= self.edge_qps else 10, 900)


@pytest.mark.parametrize("edge_qps", [0.11, 3.3, 98.0])
@pytest.mark.parametrize("start_qps", [0.01, 3.3, 500.0])
def test_the_edge_is_found_to_the_grids_resolution(
    edge_qps: float, start_qps: float
) -> None:
    server = Server(edge_qps)
    found = search_seed(server.probe, 0, grid=GRID, start_qps=start_qps)
    assert found.qps <= edge_qps < found.qps * 1.02 * (1 + 1e-9)
    assert (found.num_violations, found.num_requests) == (9, 900)
    assert found.num_probes == len(server.calls) <= 16
    assert not found.is_unbounded
    near = Server(edge_qps)
    search_seed(near.probe, 0, grid=GRID, start_qps=edge_qps)
    assert len(near.calls) <= 5


def test_the_ends_of_the_grid_are_reported() -> None:
    none = search_seed(Server(0.01).probe, 0, grid=GRID, start_qps=3.0)
    assert (none.qps, none.num_violations, none.is_unbounded) == (0.0, 10, False)
    every = search_seed(Server(1e9).probe, 0, grid=GRID, start_qps=3.0)
    assert every.is_unbounded
    assert every.qps == pytest.approx(100.0, rel=0.02)


def entry(qps: float) -> SeedGoodput:
    return SeedGoodput(
        seed=0,
        qps=qps,
        num_violations=1,
        num_requests=100,
        num_probes=1,
        is_unbounded=False,
    )


@pytest.mark.parametrize(("num_pairs", "student_t"), [(1, 12.706), (20, 2.0227)])
def test_seeds_are_pooled(num_pairs: int, student_t: float) -> None:
    rates = [3.0, 3.2] * num_pairs
    found = pool([entry(qps) for qps in rates])
    assert found.qps == pytest.approx(3.1)
    spread = student_t * statistics.stdev(rates) / len(rates) ** 0.5
    low, high = found.qps - spread, found.qps + spread
    assert found.ci95_qps == pytest.approx((low, high), rel=1e-4)
    assert found.violation_share == 0.01
    assert found.violation_ci95[0] < 0.01 < found.violation_ci95[1]
    assert pool([entry(3.0)]).ci95_qps is None


def test_what_counts() -> None:
    assert (num_warmup(1000), num_warmup(5)) == (100, 0)
    assert (most_violations(900), most_violations(899)) == (9, 8)
    assert most_violations(300) == 3  # although 300 * 0.01 may round below 3
