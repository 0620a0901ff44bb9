"""The bound on attainment is above every schedule, and close to the best of a few."""

import dataclasses
import itertools
import time

import numpy as np
import pytest

from jserve_sched.buckets.strategies import SIMULATED_STRATEGIES, make_strategy
from jserve_sched.policies.registry import make_policy
from jserve_sched.requests.slo import Slo
from jserve_sched.simulation.bound import attained_bound
from jserve_sched.simulation.cost_model import ClosedForm, Formula, OraclePredictor
from jserve_sched.simulation.simulator import make_scheduler, simulate
from jserve_sched.simulation.workload import Arrival

_FORMULA = Formula(
    base_ms=8.0,
    prefill_token_ms=0.06,
    prefill_work_ms=4e-6,
    decode_ms=0.06,
    context_token_ms=1e-4,
    floor_ms=10.0,
)
BLOCK_TOKENS = 512
MACHINE = ClosedForm(
    name="small",
    decode=_FORMULA,
    prefill=_FORMULA,
    mixed=_FORMULA,
    num_kv_tokens=400_000,
    page_size=BLOCK_TOKENS,
    max_num_seqs=64,
    max_num_batched_tokens=2 * BLOCK_TOKENS,
)


def draw(seed: int, num_requests: int) -> list[Arrival]:
    """Requests of whole blocks that come faster than they can be served."""
    rng = np.random.default_rng(seed)
    times_s = np.sort(rng.uniform(0.0, 0.03 * num_requests, num_requests)).tolist()
    arrivals = []
    for index, time_s in enumerate(times_s):
        num_blocks = int(rng.integers(1, 3))
        slo = Slo(
            ttft_s=0.05 * num_blocks * rng.uniform(1.0, 4.0),
            tbt_s=rng.uniform(0.02, 0.1),
        )
        arrivals.append(
            Arrival(
                request_id=str(index),
                arrival_s=time_s,
                num_prompt_tokens=num_blocks * BLOCK_TOKENS,
                max_tokens=int(rng.integers(1, 3)),
                slo=slo,
            )
        )
    return arrivals


def best_of_all(arrivals: list[Arrival]) -> int:
    """Returns the most requests that a schedule attains, by trying all.

    For each number of blocks and then tokens that every request has, all of them in
    time, it finds the least time at which this can be reached. A step computes at most
    two blocks, and a token of any request whose prompt is done.
    """
    num_requests = len(arrivals)
    blocks = np.array([one.num_prompt_tokens for one in arrivals]) // BLOCK_TOKENS
    lengths = blocks + np.array([one.max_tokens for one in arrivals]) - 1
    begin_s = np.array([one.arrival_s for one in arrivals])
    # Due times by the place that is reached; blocks before the last have none.
    dues_s = np.full((num_requests, lengths.max() + 3), np.inf)
    for index, one in enumerate(arrivals):
        for token in range(one.max_tokens):
            place = blocks[index] + token
            dues_s[index, place] = one.slo.deadline_s(one.arrival_s, token)
        dues_s[index, lengths[index] + 1 :] = -np.inf
    choices = np.array(list(itertools.product((0, 1, 2), repeat=num_requests)))
    choices = choices[((choices == 2).sum(1) <= 1) & (choices.sum(1) > 0)]
    strides = np.cumprod([1, *(lengths + 1)[:-1]])
    least_s = np.full(np.prod(lengths + 1), np.inf)
    least_s[0] = 0.0
    base, prefill, work, decode, context, floor = (
        value * 1e-3 for value in vars(_FORMULA).values()
    )
    best = 0
    shape = tuple(lengths + 1)
    order = np.stack(np.unravel_index(np.arange(len(least_s)), shape, "F"), 1)
    for place in np.argsort(order.sum(1), kind="stable").tolist():
        now_s, state = least_s[place], order[place]
        if now_s == np.inf:
            continue
        if np.all((state == 0) | (state == lengths)):
            best = max(best, int(np.sum(state == lengths)))
        is_prompt = state < blocks
        reached = state + choices
        prompt = choices * is_prompt
        fits = (prompt.sum(1) <= 2) & np.all(
            np.where(is_prompt, reached <= blocks, choices <= 1), axis=1
        )
        taken, reached, prompt = choices[fits], reached[fits], prompt[fits]
        tokens = BLOCK_TOKENS * prompt
        decodes = taken * ~is_prompt
        contexts = BLOCK_TOKENS * blocks + state - blocks + 1
        attention = work * (tokens * (BLOCK_TOKENS * state + tokens / 2)).sum(1)
        attention += context * decodes @ contexts
        matmul = base + prefill * tokens.sum(1) + decode * decodes.sum(1)
        starts_s = np.maximum(now_s, ((taken > 0) * begin_s).max(1))
        ends_s = starts_s + np.maximum(floor, matmul) + attention
        due_s = np.where(taken, dues_s[np.arange(num_requests), reached], np.inf)
        in_time = ends_s <= due_s.min(1)
        np.minimum.at(least_s, place + (taken @ strides)[in_time], ends_s[in_time])
    return best


@pytest.mark.parametrize("seed", range(8))
def test_it_is_no_less_than_the_best_schedule_and_seldom_more(seed: int) -> None:
    arrivals = draw(seed, 6)
    best = best_of_all(arrivals)
    found = attained_bound(arrivals, MACHINE, clock=time.monotonic)
    assert found.is_final
    assert best <= found.num_attained <= best + (seed == 4)


@pytest.mark.parametrize("seed", [100, 101])
def test_no_policy_beats_it(seed: int) -> None:
    arrivals = draw(seed, 16)
    buckets = make_strategy("none", SIMULATED_STRATEGIES).table(
        max_num_seqs=MACHINE.max_num_seqs,
        max_num_batched_tokens=MACHINE.max_num_batched_tokens,
        block_tokens=BLOCK_TOKENS,
    )
    attained = []
    for policy in ("fcfs", "edf", "qoserve", "sliding", "laxity", "annealing"):
        scheduler = make_scheduler(
            policy=make_policy(policy),
            cost_model=MACHINE,
            buckets=buckets,
            predictor=OraclePredictor(MACHINE, BLOCK_TOKENS),
            max_model_len=4096,
        )
        outcomes = simulate(scheduler, MACHINE, arrivals).outcomes
        attained.append(sum(one.is_attained for one in outcomes))
    found = attained_bound(arrivals, MACHINE, clock=time.monotonic)
    assert 0 < max(attained) <= found.num_attained < len(arrivals)


def test_what_has_no_objective_counts_and_what_cannot_be_in_time_does_not() -> None:
    one = draw(0, 1)[0]
    arrivals = [
        dataclasses.replace(one, slo=Slo()),
        dataclasses.replace(one, slo=Slo(ttft_s=0.03)),  # its prompt takes longer
        dataclasses.replace(one, slo=Slo(ttlt_s=9.0)),
    ]
    assert one.num_prompt_tokens > BLOCK_TOKENS
    assert attained_bound(arrivals, MACHINE, clock=time.monotonic) == (2, True)
    assert attained_bound(arrivals[:1], MACHINE, clock=time.monotonic) == (1, True)


def test_time_may_run_out() -> None:
    arrivals = draw(1, 20)
    found = attained_bound(arrivals, MACHINE, clock=time.monotonic, time_limit_s=0.0)
    best = attained_bound(arrivals, MACHINE, clock=time.monotonic)
    assert best.is_final and not found.is_final
    assert best.num_attained <= found.num_attained
