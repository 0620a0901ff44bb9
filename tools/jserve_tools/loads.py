"""How requests come in a benchmark: at a trace's times, or as clients finish."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from jserve_tools.workload import Answers, Workload
from jserve_tools.workload_trace import mean_rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """An open loop at the trace's times, stretched to each of some rates.

    Or at no time at all: every request is due at once.

    Attributes:
      is_one_shot: whether it is that, so that there is no rate.
      loads: rates as shares of the measured capacity.
      qps: rates in requests per second.
      capacity_s: how long capacity is measured, if `loads` need it.
      capacity_slots: requests that fill the server; 0 asks the server.
    """

    is_one_shot: bool = False
    loads: Sequence[float] = ()
    qps: Sequence[float] = ()
    capacity_s: float = 10.0
    capacity_slots: int = 0

    def __post_init__(self) -> None:
        if sum(map(bool, (self.is_one_shot, self.loads, self.qps))) != 1:
            raise ValueError(
                f"give one of load, qps and one_shot: load={list(self.loads)}, "
                f"qps={list(self.qps)}, one_shot={self.is_one_shot}"
            )
        for name in ("loads", "qps"):
            for rate in getattr(self, name):
                if not 0 < rate < 1e6:
                    raise ValueError(f"{name}: {rate} is not in 0..1000000")
        if not 1 <= self.capacity_s <= 3600:
            raise ValueError(f"capacity_s={self.capacity_s} is not in 1..3600")

    @property
    def num_runs(self) -> int:
        """Runs against each server."""
        return len(self.loads) + len(self.qps) + self.is_one_shot


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """Some numbers of clients, each sending its next request when one ends.

    Attributes:
      num_clients: one run for each.
      num_requests: of one run; 0 for eight a client.
    """

    num_clients: Sequence[int]
    num_requests: int = 0

    def __post_init__(self) -> None:
        for clients in self.num_clients:
            if not 1 <= clients <= 4096:
                raise ValueError(f"clients={clients} is not in 1..4096")

    @property
    def num_runs(self) -> int:
        """Runs against each server."""
        return len(self.num_clients)


def describe(workload: Workload, trace: str) -> dict[str, Any]:
    """Returns what was sent, for the report."""
    rows = workload.rows
    found: dict[str, Any] = {
        "trace": trace,
        "num_rows": len(rows),
        "seed": workload.seed,
        "prompt_tokens_mean": statistics.fmean(row.prompt_tokens for row in rows),
        "prompt_tokens_max": max(row.prompt_tokens for row in rows),
        "output_tokens_mean": statistics.fmean(row.output_tokens for row in rows),
        "output_tokens_max": max(row.output_tokens for row in rows),
        "service_classes": [
            {
                name: value
                for name, value in dataclasses.asdict(one).items()
                if value is not None
            }
            for one in workload.classes
        ],
    }
    if workload.answers != Answers():
        found["answers"] = dataclasses.asdict(workload.answers)
    if rows[-1].arrival_s > rows[0].arrival_s:
        found["trace_qps"] = mean_rate(list(rows))
    return found
