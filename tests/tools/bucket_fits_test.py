import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pytest

from jserve_sched.bucket_costs import costs_of
from jserve_sched.bucket_strategies import PowersOfTwo
from jserve_sched.cost_model import CLOSED_FORMS
from jserve_sched.slo import ServiceClass
from jserve_sched.step_demand import StepDemand, demand_from_json
from jserve_sched.workload import Arrival, at_rate, isolated_times
from jserve_tools.bucket_fits import (
    MAX_KINDS,
    compact,
    default_max_programs,
    finest,
    fit_to_simulation,
    known_tables,
    step_times,
    with_prior,
)
from jserve_tools.simulate_config import LoadConfig
from jserve_tools.simulated_loads import SimulatedLoad
from jserve_tools.simulation import Experiment

LIMITS = {"max_num_seqs": 32, "max_num_batched_tokens": 544, "block_tokens": 32}
MACHINE = dataclasses.replace(
    CLOSED_FORMS["a100-llama3-8b"], max_num_seqs=32, max_num_batched_tokens=544
)
CLASSES = (ServiceClass(name="chat", share=1.0, ttft_s=2.0, tbt_s=0.03),)


def experiment(policy: str) -> tuple[Experiment, list[Arrival]]:
    yardstick = isolated_times(MACHINE, max_prompt_tokens=4096)
    load = SimulatedLoad(
        config=LoadConfig(workload="sharegpt", num_requests=80), classes=CLASSES
    )
    return Experiment(
        policy=policy,
        bucket_strategy="fitted",
        buckets=PowersOfTwo().table(**LIMITS),
        cost_model=MACHINE,
        predictor="table",
        load=load,
        yardstick=yardstick,
        max_model_len=4096,
    ), at_rate(load.unit_arrivals(0, yardstick), 6.0)


def demand(kinds: Sequence[tuple[int, ...]], weights: Sequence[float]) -> StepDemand:
    columns = np.array(kinds).T
    return StepDemand(
        rows=columns[0],
        blocks=columns[1],
        last_block=columns[2],
        is_limited=columns[2] > columns[1],
        decode_pages=columns[3],
        block_pages=columns[4],
        weight=np.array(weights, np.float64),
    )


@pytest.mark.parametrize("policy", ["fcfs", "sliding"])
def test_edges_and_plans_agree_after_a_few_turns(policy: str) -> None:
    one, arrivals = experiment(policy)
    max_programs = default_max_programs(**LIMITS)
    history = fit_to_simulation(one, arrivals, seed=0, max_programs=max_programs)
    assert history.is_converged
    assert 2 <= len(history.iterations) <= 5
    first, *_, last = history.iterations
    assert first.change is None
    assert last.change is not None
    assert abs(last.change) < 0.002
    assert history.table == last.table
    assert last.table.num_programs <= max_programs
    assert (last.table.max_rows, last.table.max_blocks) == (32, 16)
    # Every turn weighs the same, however many steps it took.
    assert history.demand.num_steps == pytest.approx(len(history.iterations))


@pytest.mark.parametrize("strategy", ["pow2", "pad_limit"])
def test_no_strategy_is_better_at_its_own_number_of_programs(strategy: str) -> None:
    one, arrivals = experiment("fcfs")
    table = known_tables(**LIMITS)[strategy]
    history = fit_to_simulation(
        one, arrivals, seed=0, max_programs=table.num_programs, max_iterations=2
    )
    wanted = with_prior(history.demand, table)
    costs = costs_of(
        wanted, step_times(MACHINE, 32), table, page_size=MACHINE.page_size
    )
    assert costs.expected_s(history.table) < costs.expected_s(table)


def test_a_price_leaves_programs_out() -> None:
    one, arrivals = experiment("fcfs")
    num_programs = [
        fit_to_simulation(
            one, arrivals, seed=0, max_programs=30, program_price_s=price_s
        ).table.num_programs
        for price_s in (0.0, 1e-5, 1.0)
    ]
    assert num_programs[0] > num_programs[1] > num_programs[2] == 2


def test_the_first_turn_has_every_shape_and_exact_times() -> None:
    one, _ = experiment("fcfs")
    fine = finest(one)
    assert fine.buckets.row_edges == tuple(range(2, 33))
    assert fine.buckets.block_edges == tuple(range(17))
    assert fine.predictor == "oracle"


def test_at_least_one_turn_is_taken() -> None:
    one, arrivals = experiment("fcfs")
    with pytest.raises(ValueError, match="max_iterations=0 is below 1"):
        fit_to_simulation(one, arrivals, seed=0, max_programs=30, max_iterations=0)


def test_no_cliff_is_left_above_what_was_seen() -> None:
    # At most 8 rows were ever seen; 12 would be padded to 256 without a prior.
    limits = LIMITS | {"max_num_seqs": 256, "max_num_batched_tokens": 1024}
    table = PowersOfTwo().table(**limits)
    seen = demand([(rows, 0, 0, 1, 0) for rows in range(1, 9)], [100.0] * 8)
    mixed = with_prior(seen, table)
    assert mixed.num_steps == pytest.approx(800.0)
    above = mixed.weight[mixed.rows > 8].sum() / mixed.num_steps
    assert 0.025 < above < 0.1
    assert with_prior(seen, table, 0.0) is seen
    with pytest.raises(ValueError, match=r"prior_share=1\.0 is not in 0\.\.1"):
        with_prior(seen, table, 1.0)


def test_a_file_gets_about_the_same_demand_in_few_entries() -> None:
    random = np.random.default_rng(0)
    kinds = [
        (rows, blocks, blocks + extra, rows % 7 + 1, blocks % 5)
        for rows in range(1, 60)
        for blocks, extra in ((0, 0), (3, 0), (17, 2), (40, 11), (41, 0))
    ]
    full = demand(kinds, random.uniform(1, 9, len(kinds)).tolist())
    small = compact(full)
    assert len(full.weight) == 295
    assert len(small.weight) <= MAX_KINDS
    assert small.num_steps == pytest.approx(full.num_steps)
    for name in ("rows", "blocks", "last_block", "decode_pages"):
        before, after = (
            np.average(getattr(one, name), weights=one.weight) for one in (full, small)
        )
        assert before * 0.99 <= after <= before * 1.05, name  # rounded up
    assert small.rows.max() == full.rows.max()
    assert small.last_block.max() == full.last_block.max()
    again = demand_from_json(json.dumps(small.to_json()))
    assert np.array_equal(again.last_block, small.last_block)
    least = compact(full, max_kinds=1)
    assert set(least.rows.tolist()) == {1, 2, 4, 8, 16, 32, 59}


def test_a_demand_of_few_entries_stays_as_it_is() -> None:
    kinds = [(5, 0, 0, 3, 0), (5, 0, 0, 1, 0), (1000, 7, 7, 2, 1)]
    small = compact(demand(kinds, [3.0, 1.0, 2.0]))
    assert small.rows.tolist() == [5, 1000]
    assert small.weight.tolist() == [4.0, 2.0]
    assert small.decode_pages.tolist() == [2, 2]  # the mean, 2.5, to even
