"""The three studies as tasks, and their results as entries.

The one idea: what is run was settled before anything was looked at, and stands in
`Plan`; a study only multiplies it out, and every cell is reported.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from gains import Draw, Entry, compare, middle_and_best, pool, share_of_gain
from served import CapacityTask, DrawsTask, Setup, draws_of
from task_classes import MIXES

BASE = "fcfs"  # as vLLM orders by default, with which the paper compares itself
SORTED = "sjf"
SEARCHED = "annealing"
POLICIES = (
    BASE,
    SORTED,
    "edf",
    "laxity",
    "qoserve",
    "sliding",
    SEARCHED,
    "annealing+sliding",
)
NOT_ASKED = "-"  # by a policy that does not look at lengths
DECLARED_MAX_TOKENS = 2048  # where lengths must be learned
# The most by which attainment may be below `fcfs`'s, as a share of it.
MOST_BELOW = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What is known of answer lengths.

    Attributes:
      name: what tables call it.
      lengths: the estimator; see `simulated_lengths`.
      learns: whether it needs requests that have ended: then it is not asked about
        requests that all come at once.
    """

    name: str
    lengths: str
    learns: bool = False

    def setup(self, policy: str, max_num_seqs: int) -> Setup:
        """Returns a server with a policy that knows as much."""
        return Setup(
            policy=policy,
            max_num_seqs=max_num_seqs,
            lengths=self.lengths,
            declared_max_tokens=DECLARED_MAX_TOKENS,
        )


KNOWLEDGE = (
    *(
        Knowledge(name=f"error {100 * error:g} %", lengths=f"oracle:error={error}")
        for error in (0.0, 0.1, 0.25, 0.5, 1.0)
    ),
    Knowledge(name="factor 10", lengths="oracle:factor=10"),
    Knowledge(name="max_tokens", lengths="max_tokens"),
    *(
        Knowledge(name=name, lengths=name, learns=True)
        for name in ("mean", "gaussian", "quantile")
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run.

    Attributes:
      policies: who is compared; `fcfs` among them.
      one_shot: by mix, the numbers of requests that come at once.
      batch_limits: b_max of these.
      num_draws: of each such cell.
      loads: rates of Poisson arrivals, in capacities.
      arrival_limits: b_max of these; 0 is the machine's own.
      num_arrivals: requests of one run.
      num_seeds: runs of each rate.
      lengths_mixes: mixes of the study of lengths.
      lengths_requests: requests at once in it.
      lengths_limit: b_max of these.
      lengths_arrivals_limit: b_max of its Poisson arrivals, at load 1.
    """

    policies: Sequence[str] = POLICIES
    one_shot: dict[str, tuple[int, ...]]
    batch_limits: Sequence[int] = (1, 2, 4)
    num_draws: int
    loads: Sequence[float] = (0.6, 0.8, 1.0, 1.2, 1.4)
    arrival_limits: Sequence[int] = (4, 0)
    num_arrivals: int
    num_seeds: int
    lengths_mixes: Sequence[str] = ("azure", "long_code")
    lengths_requests: int = 20
    lengths_limit: int = 2
    lengths_arrivals_limit: int = 4


class Task(Protocol):
    """Something to run."""

    def run(self) -> dict[str, Any]:
        """Returns what came of it."""
        ...


class Studies:
    """Runs the studies of a plan."""

    def __init__(
        self, plan: Plan, run_all: Callable[[Sequence[Task]], Sequence[dict[str, Any]]]
    ):
        """Takes the plan and what runs tasks, in order."""
        self._plan = plan
        self._run_all = run_all

    def one_shot(self) -> list[Entry]:
        """Returns every cell of requests that come at once."""
        plan = self._plan
        cells = [
            (mix, num_requests, limit, policy)
            for mix, numbers in plan.one_shot.items()
            for num_requests in numbers
            for limit in plan.batch_limits
            for policy in plan.policies
        ]
        tasks = [
            DrawsTask(
                mix=MIXES[mix],
                num_requests=num_requests,
                setup=Setup(policy=policy, max_num_seqs=limit),
                num_draws=plan.num_draws,
            )
            for mix, num_requests, limit, policy in cells
        ]
        labels = [
            {"mix": mix, "num_requests": number, "max_num_seqs": limit}
            for mix, number, limit, _ in cells
        ]
        return self._entries(tasks, labels, [policy for *_, policy in cells])

    def arrivals(self) -> list[Entry]:
        """Returns Poisson arrivals on the first mix, at every load and limit."""
        plan = self._plan
        mix = next(iter(plan.one_shot))
        capacity = self._capacities(mix, plan.arrival_limits)
        cells = [
            (limit, load, policy)
            for limit in plan.arrival_limits
            for load in plan.loads
            for policy in plan.policies
        ]
        tasks = [
            DrawsTask(
                mix=MIXES[mix],
                num_requests=plan.num_arrivals,
                setup=Setup(policy=policy, max_num_seqs=limit),
                num_draws=plan.num_seeds,
                qps=load * capacity[limit],
            )
            for limit, load, policy in cells
        ]
        labels = [
            {
                "mix": mix,
                "max_num_seqs": limit,
                "load": load,
                "qps": load * capacity[limit],
            }
            for limit, load, _ in cells
        ]
        return self._entries(tasks, labels, [policy for *_, policy in cells])

    def lengths(self) -> list[Entry]:
        """Returns what wrong lengths cost; `fcfs`, which does not ask, is the base.

        Every request declares the same limit. Those that all come at once are not
        known by estimators that learn: nobody has ended before the first plan.
        """
        plan = self._plan
        limit = plan.lengths_arrivals_limit
        mix = plan.lengths_mixes[0]
        qps = self._capacities(mix, [limit])[limit]
        tasks: list[Task] = []
        labels: list[dict[str, Any]] = []
        policies: list[str] = []

        def add(policy: str, knowledge: Knowledge, label: str) -> None:
            for name in () if knowledge.learns else plan.lengths_mixes:
                policies.append(policy)
                labels.append({"mix": name, "come": "at once", "lengths": label})
                tasks.append(
                    DrawsTask(
                        mix=MIXES[name],
                        num_requests=plan.lengths_requests,
                        setup=knowledge.setup(policy, plan.lengths_limit),
                        num_draws=plan.num_draws,
                    )
                )
            policies.append(policy)
            labels.append({"mix": mix, "come": "one by one", "lengths": label})
            tasks.append(
                DrawsTask(
                    mix=MIXES[mix],
                    num_requests=plan.num_arrivals,
                    setup=knowledge.setup(policy, limit),
                    num_draws=plan.num_seeds,
                    qps=qps,
                )
            )

        add(BASE, KNOWLEDGE[0], NOT_ASKED)
        for knowledge in KNOWLEDGE:
            for policy in (SORTED, SEARCHED):
                add(policy, knowledge, knowledge.name)
        entries = self._entries(tasks, labels, policies)
        for one in entries:
            ratio = one.get("attainment_ratio")
            one["is_far_below"] = ratio is not None and ratio < 1 - MOST_BELOW
        return entries

    def _capacities(self, mix: str, limits: Sequence[int]) -> dict[int, float]:
        tasks = [
            CapacityTask(
                mix=MIXES[mix],
                num_requests=self._plan.num_arrivals,
                max_num_seqs=limit,
            )
            for limit in limits
        ]
        found = self._run_all(tasks)
        return {limit: one["qps"] for limit, one in zip(limits, found, strict=True)}

    def _entries(
        self,
        tasks: Sequence[Task],
        labels: Sequence[dict[str, Any]],
        policies: Sequence[str],
    ) -> list[Entry]:
        """Runs tasks; pools each, and compares it with `fcfs` on the same requests."""
        draws = [draws_of(one) for one in self._run_all(tasks)]
        base: dict[str, Sequence[Draw]] = {
            _requests(label): own
            for label, policy, own in zip(labels, policies, draws, strict=True)
            if policy == BASE
        }
        entries = []
        for label, policy, own in zip(labels, policies, draws, strict=True):
            entry = label | {"policy": policy} | pool(own)
            if policy != BASE:
                entry |= compare(own, base[_requests(label)])
            entries.append(entry)
        return entries


def _requests(label: Mapping[str, Any]) -> str:
    """Returns what tells requests apart, whatever is known of them."""
    return str({name: value for name, value in label.items() if name != "lengths"})


def claims_found(one_shot: Sequence[Entry]) -> list[Entry]:
    """Returns each policy's gain over `fcfs`, by mix: the median and the best cell.

    With the share of the search's gain that each policy has too, as the median over
    the cells in which the search gains.
    """
    found = []
    for mix in dict.fromkeys(one["mix"] for one in one_shot):
        own = [one for one in one_shot if one["mix"] == mix]
        by_cell: dict[tuple[int, int], dict[str, Entry]] = {}
        for one in own:
            key = (one["num_requests"], one["max_num_seqs"])
            by_cell.setdefault(key, {})[one["policy"]] = one
        for policy in dict.fromkeys(one["policy"] for one in own):
            if policy == BASE:
                continue
            cells = [one for one in own if one["policy"] == policy]
            shares = [
                share_of_gain(cell[policy], cell[BASE], cell[SEARCHED])
                for cell in by_cell.values()
                if SEARCHED in cell
            ]
            entry: Entry = {"mix": mix, "policy": policy, "num_cells": len(cells)}
            for name, is_high in (
                ("attainment_ratio", True),
                ("latency_change", False),
            ):
                entry[name] = middle_and_best(cells, name, is_high_best=is_high)
            for name in ("share_of_attainment", "share_of_latency"):
                known = sorted(one[name] for one in shares if one[name] is not None)
                entry[name] = _median(known)
                entry[f"{name}_cells"] = len(known)
            found.append(entry)
    return found


def _median(values: Sequence[float]) -> float | None:
    if not values:
        return None
    half = len(values) // 2
    return (values[half] + values[(len(values) - 1) // 2]) / 2
