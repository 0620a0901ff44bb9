"""How what a benchmark client saw is compared with the server's own metrics."""

import pytest

from benchmarks.peers.clients import CLIENTS, Seen, server_sums, summarise
from tests.fake_server import serve_fake


@pytest.mark.parametrize(
    ("server_s", "client_s", "agrees"),
    [(0.01, 0.0119, True), (0.01, 0.0121, False), (1, 1.04, True), (1, 1.06, False)],
)
def test_times_agree_within_two_milliseconds_or_a_twentieth(
    server_s: float, client_s: float, agrees: bool
) -> None:
    found = summarise([(Seen(client_s, 0.1, 4), Seen(server_s, 0.1, 4))])
    assert found["ttft"]["agrees"] == agrees and found["itl"]["agrees"]


def test_the_median_of_differences_counts() -> None:
    turns = [(1.0, 1.0), (5.0, 4.99), (9.0, 2.0)]
    found = summarise([(Seen(ours, 1, 1), Seen(its, 1, 1)) for ours, its in turns])
    assert found["ttft"]["difference_ms"] == pytest.approx(10)


def test_reports_are_read_in_their_unit() -> None:
    metrics = {
        "time_to_first_token_ms": {"successful": {"mean": 20.0}},
        "inter_token_latency_ms": {"successful": {"mean": 3.0}},
        "request_totals": {"successful": 8},
    }
    found = CLIENTS["guidellm"].read({"benchmarks": [{"metrics": metrics}]})
    assert tuple(found) == pytest.approx((0.02, 0.003, 8))


def test_the_servers_sums_are_those_of_its_metrics() -> None:
    with serve_fake() as served:
        names = sorted(server_sums(served.url))
    assert names == [
        f"{name} {kind}"
        for name in ("inter_token_latency", "time_to_first_token")
        for kind in ("count", "sum")
    ]
