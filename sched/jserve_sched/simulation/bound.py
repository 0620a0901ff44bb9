"""An upper bound on the number of requests that any schedule can attain.

Arrivals and lengths are known, and so is the machine: a `ClosedForm`, whose steps take
at least `max(floor, base + prefill_token P + decode D) + prefill_work A + context C`.
The bound is the optimum of a linear programme, for up to `_MOST_WHOLE` requests of one
with whole requests. No schedule does better, because:

1. Take any schedule, and let `x_i` be 1 for the requests that attain their objectives.
   Spread each step, with all that it computes, evenly over the time that it takes.
2. What such a request computes has a *window*, in which its steps start and end. It
   begins at the arrival, or for output token k after the least time of the prompt and
   of k - 1 steps more; it ends at the deadline, or earlier by the least time of steps
   that must follow before a later deadline.
3. Take any interval. The fixed parts of the steps in it, and all work of attained
   requests whose window lies inside it, take no longer than the interval: once with
   `base` and all work, once with `floor` and attention alone.
4. Let `N_w` be the number of steps in cell w of a grid, in parts. Tokens of one request
   come from different steps, so the cells between its arrival and a deadline have at
   least as many steps as it has tokens due by then; and the cells of an interval have
   a step for each `max_num_batched_tokens` of the windows inside it.
5. So `x` and `N` fulfil these inequalities, of which those are used that a solution
   without them breaks; the largest sum of `x` under them is no less than that of the
   schedule.

What is left out weakens the bound, and does not make it wrong: memory, padding, the
number of rows, what a step's end has to do with an interval's.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jserve_sched.simulation.cost_model import ClosedForm
from jserve_sched.simulation.workload import Arrival

_GROUP_TOKENS = 8  # consecutive tokens that are given one window
_NUM_MARKS = 9  # deadlines of a request by which steps are counted
_MOST_CELLS, _MOST_STARTS, _MOST_ENDS = 1500, 600, 4000
_MOST_NEW_CUTS = 400
_MOST_WHOLE = 50
_SLACK_S = 1e-6


class Bound(NamedTuple):
    """What no schedule exceeds.

    Attributes:
      num_attained: Most requests that can be attained.
      is_final: Whether no further inequality would have lowered it before its time
        was over.
    """

    num_attained: int
    is_final: bool


class _Machine(NamedTuple):
    """Least seconds of the parts of a step, of whatever kind."""

    base_s: float
    prefill_token_s: float
    prefill_work_s: float
    decode_s: float
    context_token_s: float
    floor_s: float
    max_tokens: int


class _Window(NamedTuple):
    """Work of one request that lies inside a window.

    Attributes:
      work_s: Seconds beside `base_s`.
      attention_s: Seconds beside `floor_s`.
    """

    request: int
    start_s: float
    end_s: float
    work_s: float
    attention_s: float
    num_tokens: int


class _Steps(NamedTuple):
    """Least number of steps that a request has in a span."""

    request: int
    start_s: float
    end_s: float
    num_steps: int


def attained_bound(
    arrivals: Sequence[Arrival],
    cost_model: ClosedForm,
    *,
    clock: Callable[[], float],
    time_limit_s: float = 100.0,
) -> Bound:
    """Returns a bound on the attained requests of any schedule; see the module.

    Requests without an objective count as attained.

    Args:
      clock: Real time, seconds, for the limit.
      time_limit_s: Seconds after which no further inequality is looked for.
    """
    formulas = (cost_model.decode, cost_model.prefill, cost_model.mixed)
    least = np.min([dataclasses.astuple(one) for one in formulas], axis=0) * 1e-3
    machine = _Machine._make([*least.tolist(), cost_model.max_num_batched_tokens])
    machine = machine._replace(floor_s=max(machine.floor_s, machine.base_s))
    needs = [_needs(index, one, machine) for index, one in enumerate(arrivals)]
    programme = _Programme(needs, machine)
    stop_s = clock() + time_limit_s
    while True:
        most, counts = programme.solve()
        is_final = not programme.tighten(counts)
        if is_final or clock() >= stop_s:
            break
    if len(arrivals) <= _MOST_WHOLE:
        most = programme.solve_whole(max(stop_s - clock(), 1.0))
    return Bound(math.floor(most + 1e-6), is_final)


def _needs(
    index: int, arrival: Arrival, machine: _Machine
) -> tuple[list[_Window], list[_Steps]] | None:
    """Returns what an attained request takes of the machine; None if none can be."""
    if arrival.slo.is_best_effort:
        return [], []
    prompt_tokens, start_s = arrival.num_prompt_tokens, arrival.arrival_s
    # Least time of each token's step or, for the first, of the prompt's.
    tokens = np.arange(arrival.max_tokens)
    contexts = prompt_tokens + tokens
    shortest_s = max(machine.floor_s, machine.base_s + machine.decode_s)
    step_s = shortest_s + machine.context_token_s * contexts
    num_chunks = math.ceil(prompt_tokens / machine.max_tokens)
    attention_s = machine.prefill_work_s * prompt_tokens**2 / 2
    matmul_s = machine.prefill_token_s * prompt_tokens
    step_s[0] = attention_s + max(
        num_chunks * machine.base_s + matmul_s, num_chunks * machine.floor_s
    )
    # Windows: the end of a token's leaves time for those after it.
    passed_s = np.cumsum(step_s)
    dues_s = [arrival.slo.deadline_s(start_s, token) for token in tokens.tolist()]
    slacks_s = np.minimum.accumulate((np.array(dues_s) - passed_s)[::-1])[::-1]
    ends_s = slacks_s + passed_s
    if slacks_s[0] < start_s - _SLACK_S:
        return None
    starts_s = start_s + passed_s - step_s
    work = (matmul_s + attention_s, attention_s, prompt_tokens)
    windows = [_Window(index, start_s, ends_s[0], *work)]
    for first in range(1, len(tokens), _GROUP_TOKENS):
        group = slice(first, first + _GROUP_TOKENS)
        attention_s = machine.context_token_s * float(contexts[group].sum())
        size = len(tokens[group])
        work = (machine.decode_s * size + attention_s, attention_s, size)
        windows.append(_Window(index, starts_s[first], ends_s[group][-1], *work))
    # Steps, up to some of the deadlines; of decodes alone too.
    marks = np.unique(np.linspace(0, len(tokens) - 1, _NUM_MARKS).astype(int)).tolist()
    steps = [_Steps(index, start_s, ends_s[one], one + num_chunks) for one in marks]
    steps += [_Steps(index, starts_s[1], ends_s[one], one) for one in marks if one]
    return (
        [one for one in windows if one.end_s < math.inf],
        [one for one in steps if one.end_s < math.inf],
    )


def _spread(values: np.ndarray, most: int) -> np.ndarray:
    """Returns distinct values, at most about `most` of them, and the largest."""
    found = np.unique(values)
    return np.union1d(found[:: len(found) // most + 1], found[-1:])


_Cut = tuple[float, float, int]  # start, end, and the kind of inequality


class _Programme:
    """The linear programme: `x` of each request, then `N` of each cell."""

    def __init__(
        self,
        needs: Sequence[tuple[list[_Window], list[_Steps]] | None],
        machine: _Machine,
    ):
        self._num_requests = len(needs)
        windows = [one for some in needs if some for one in some[0]]
        windows.sort(key=lambda one: one.start_s)
        columns = np.array(windows, np.float64).reshape(-1, len(_Window._fields)).T
        self._request = columns[0].astype(np.int64)
        self._start_s, self._end_s = columns[1:3]
        # By kind of inequality: what each window takes, and the part of each step.
        self._loads = [*columns[3:5], columns[5] / machine.max_tokens]
        self._fixed = (machine.base_s, machine.floor_s, -1.0)
        points_s = np.concatenate((self._start_s, self._end_s, [0.0, 1.0]))
        self._cells_s = np.unique(points_s)
        if len(self._cells_s) > _MOST_CELLS:
            self._cells_s = np.linspace(points_s.min(), points_s.max(), _MOST_CELLS)
        self._starts_s = _spread(np.append(self._start_s, 0.0), _MOST_STARTS)
        self._ends_s = _spread(np.append(self._end_s, 1.0), _MOST_ENDS)
        possible = [float(some is not None) for some in needs]
        most_steps = np.diff(self._cells_s) / machine.floor_s
        self._upper = np.concatenate((possible, most_steps))
        self._cuts: set[_Cut] = set()
        # Places and weights of variables, and what their sum is at most.
        nothing = (np.zeros(1, np.int64), np.zeros(1), 0.0)
        self._rows: list[tuple[np.ndarray, np.ndarray, float]] = [nothing]
        for one in (one for some in needs if some for one in some[1]):
            cells = self._cells(one.start_s, one.end_s, touching=True)
            weights = np.append(np.full(len(cells), -1.0), one.num_steps)
            self._rows.append((np.append(cells, one.request), weights, 0.0))

    def _cells(self, start_s: float, end_s: float, *, touching: bool) -> np.ndarray:
        """Returns the variables of the cells that touch a span, or lie inside it."""
        first, stop = self._cell_range(start_s, np.array(end_s), touching=touching)
        return self._num_requests + np.arange(first, max(int(stop), first))

    def _cell_range(
        self, start_s: float, ends_s: np.ndarray, *, touching: bool
    ) -> tuple[int, np.ndarray]:
        """Returns the first cell of spans, and one past the last of each."""
        cells_s = self._cells_s
        if touching:
            first = int(np.searchsorted(cells_s, start_s, side="right")) - 1
            return first, np.minimum(np.searchsorted(cells_s, ends_s), len(cells_s) - 1)
        first = int(np.searchsorted(cells_s, start_s))
        return first, np.searchsorted(cells_s, ends_s, side="right") - 1

    def solve(self) -> tuple[float, np.ndarray]:
        """Returns the optimum under the inequalities so far, and its variables."""
        from scipy.optimize import linprog

        matrix, right = self._matrix()
        bounds = np.column_stack((np.zeros(len(self._upper)), self._upper))
        found = linprog(
            self._costs, A_ub=matrix, b_ub=right, bounds=bounds, method="highs"
        )
        if not found.success:
            raise RuntimeError(f"HiGHS found no bound: {found.message}")
        return -float(found.fun), found.x

    def solve_whole(self, time_limit_s: float) -> float:
        """Returns a bound under the same inequalities for whole requests."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        matrix, right = self._matrix()
        found = milp(
            self._costs,
            constraints=LinearConstraint(matrix, -np.inf, right),
            integrality=-self._costs,
            bounds=Bounds(0.0, self._upper),
            options={"time_limit": time_limit_s},
        )
        return -float(found.mip_dual_bound)

    @property
    def _costs(self) -> np.ndarray:
        costs = np.zeros(len(self._upper))
        costs[: self._num_requests] = -1.0
        return costs

    def _matrix(self) -> tuple[object, np.ndarray]:
        from scipy.sparse import csr_matrix

        places, weights, right = zip(*self._rows, strict=True)
        matrix = csr_matrix(
            (
                np.concatenate(weights),
                np.concatenate(places),
                np.cumsum([0, *(len(some) for some in places)]),
            ),
            shape=(len(self._rows), len(self._upper)),
        )
        return matrix, np.array(right)

    def tighten(self, variables: np.ndarray) -> bool:
        """Adds inequalities that a solution breaks; returns whether there are any."""
        found = [one for one in self._broken(variables) if one[1] not in self._cuts]
        found.sort(reverse=True)
        for _, cut in found[:_MOST_NEW_CUTS]:
            self._cuts.add(cut)
            start_s, end_s, kind = cut
            is_inside = (self._start_s >= start_s) & (self._end_s <= end_s)
            loads = np.bincount(
                self._request[is_inside],
                self._loads[kind][is_inside],
                minlength=self._num_requests,
            )
            requests = np.flatnonzero(loads)
            cells = self._cells(start_s, end_s, touching=kind == 2)
            weights = np.append(loads[requests], np.full(len(cells), self._fixed[kind]))
            right = 0.0 if kind == 2 else end_s - start_s
            self._rows.append((np.append(requests, cells), weights, right))
        return bool(found)

    def _broken(self, variables: np.ndarray) -> Iterator[tuple[float, _Cut]]:
        """Yields by how much, and which, for each start and kind the worst."""
        num_ends = len(self._ends_s)
        share = variables[self._request]
        steps = np.append(0.0, np.cumsum(variables[self._num_requests :]))
        place = np.searchsorted(self._ends_s, self._end_s)
        for start_s in self._starts_s.tolist():
            later = slice(int(np.searchsorted(self._start_s, start_s)), None)
            for kind, loads in enumerate(self._loads):
                is_tokens = kind == 2
                load = np.bincount(
                    place[later], loads[later] * share[later], minlength=num_ends
                )
                first, stops = self._cell_range(
                    start_s, self._ends_s, touching=is_tokens
                )
                inside = np.maximum(steps[stops] - steps[first], 0.0)
                excess = np.cumsum(load) + self._fixed[kind] * inside
                if not is_tokens:
                    excess -= self._ends_s - start_s
                excess[self._ends_s <= start_s] = 0.0
                worst = int(np.argmax(excess))
                if excess[worst] > _SLACK_S * (1000 if is_tokens else 10):
                    cut = (start_s, float(self._ends_s[worst]), kind)
                    yield float(excess[worst]), cut
