"""Step demand: what rounds up, what rounds down, and to where."""

import dataclasses
import json

import numpy as np
import pytest

from jserve_sched import features
from jserve_sched.buckets import Bucket, BucketTable
from jserve_sched.cost_model import CLOSED_FORMS, OraclePredictor
from jserve_sched.policies import make_policy
from jserve_sched.simulator import make_scheduler, simulate
from jserve_sched.step_demand import (
    StepDemand,
    demand_from_json,
    demand_from_steps,
    merge,
    prior_demand,
    shape_features,
)
from jserve_sched.workload import Arrival

TABLE = BucketTable((4, 8), (0, 4, 8, 16))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    num_rows: int = 8
    num_blocks: int = 4
    used_rows: int = 6
    used_blocks: int = 4
    decode_pages: int = 3
    block_pages: int = 2
    leaves_work: bool = False


def step_s(matrix: np.ndarray) -> np.ndarray:
    return 0.010 + 0.010 * matrix[:, features.NUM_BLOCKS]


def demand_of(*steps: Step, budgets: list[tuple[float, float]]) -> StepDemand:
    return demand_from_steps(
        steps, TABLE, tbt_budgets=budgets, step_s=step_s, page_size=128
    )


def wishes(demand: StepDemand) -> dict[tuple[int, int, bool], float]:
    keys = zip(
        demand.blocks.tolist(),
        demand.last_block.tolist(),
        demand.is_limited.tolist(),
        strict=True,
    )
    return dict(zip(keys, demand.weight.tolist(), strict=True))


def test_a_step_that_did_all_there_was_rounds_up() -> None:
    found = demand_of(Step(used_blocks=3), Step(used_blocks=3), Step(), budgets=[])
    assert wishes(found) == {(3, 3, False): 2.0, (4, 4, False): 1.0}
    assert found.rows.tolist() == [6, 6]
    assert found.num_steps == 3


def test_a_limited_step_wants_any_count_before_the_next_edge() -> None:
    found = demand_of(Step(leaves_work=True), budgets=[])
    assert wishes(found) == {(4, 7, True): 1.0}
    idle = Step(num_blocks=0, used_blocks=0, block_pages=0, leaves_work=True)
    assert wishes(demand_of(idle, budgets=[])) == {(0, 3, True): 1.0}


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        ([(0.070, 1.0)], {(6, 6, True): 1.0}),  # 0.010 + 6 x 0.010 just fits
        ([(0.0699, 1.0)], {(5, 5, True): 1.0}),
        ([(0.050, 1.0)], {(4, 4, True): 1.0}),
        ([(0.0899, 1.0)], {(7, 7, True): 1.0}),
        ([(0.090, 1.0)], {(4, 7, True): 1.0}),  # the next edge fits: not its limit
        ([(0.049, 1.0)], {(4, 7, True): 1.0}),  # this edge does not: nor that
        (
            [(0.070, 0.3), (0.050, 0.1), (9.0, 0.6)],
            {(6, 6, True): 0.75, (4, 4, True): 0.25},
        ),
        ([(0.070, 0.0)], {(4, 7, True): 1.0}),
    ],
)
def test_a_budget_among_the_wishes_is_the_wish(budgets, expected) -> None:
    found = wishes(demand_of(Step(leaves_work=True), budgets=budgets))
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "step",
    [
        Step(num_blocks=16, used_blocks=16, leaves_work=True),  # no edge is larger
        Step(num_blocks=8, used_blocks=5, leaves_work=True),  # a limit at no edge
    ],
)
def test_a_step_that_no_larger_edge_would_help_rounds_up(step: Step) -> None:
    found = demand_of(step, budgets=[(0.07, 1.0)])
    assert wishes(found) == {(step.used_blocks, step.used_blocks, False): 1.0}


def test_steps_of_another_table_are_refused() -> None:
    with pytest.raises(ValueError, match="num_blocks=5, no edge of"):
        demand_of(Step(num_blocks=5), budgets=[])
    with pytest.raises(ValueError, match="num_rows=5, no edge of"):
        demand_of(Step(num_rows=5), budgets=[])
    with pytest.raises(ValueError, match="at least one step"):
        demand_of(budgets=[])


def test_json_brings_it_back() -> None:
    demand = demand_of(Step(), Step(leaves_work=True), budgets=[(0.07, 1.0)])
    found = demand_from_json(json.dumps(demand.to_json()))
    for field in dataclasses.fields(StepDemand):
        assert np.array_equal(getattr(found, field.name), getattr(demand, field.name))
        assert getattr(found, field.name).dtype == getattr(demand, field.name).dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": [0.0]}, "weight 0.0 is not above 0"),
        ({"rows": [-1]}, "rows=-1 is below 0"),
        ({"last_block": [3]}, "last_block is below"),
        ({"last_block": [5]}, "nothing is limited"),
        ({"rows": [1, 2]}, "every column"),
        ({"rows": None}, "JSON object with lists"),
    ],
)
def test_a_bad_demand_is_refused(change, message) -> None:
    row = {**demand_of(Step(), budgets=[]).to_json(), **change}
    with pytest.raises(ValueError, match=message):
        demand_from_json(json.dumps(row))


@pytest.mark.parametrize("text", ["[]", "{}", "nothing"])
def test_what_is_no_demand_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="JSON object with lists"):
        demand_from_json(text)


def test_merged_demands_add_up() -> None:
    one = demand_of(Step(), Step(leaves_work=True), budgets=[])
    found = merge([one, one.scaled(6.0), demand_of(Step(used_rows=2), budgets=[])])
    assert len(found.weight) == 3
    assert found.num_steps == pytest.approx(9.0)
    assert sorted(found.weight.tolist()) == [1.0, 4.0, 4.0]


def test_the_prior_favours_no_size_over_its_double() -> None:
    prior = prior_demand(8, 64)
    assert prior.num_steps == pytest.approx(1.0)
    has_prefill = prior.blocks > 0
    assert np.sum(prior.weight[has_prefill]) == pytest.approx(0.5)
    halves = [
        np.sum(prior.weight[(prior.blocks > low) & (prior.blocks <= 2 * low)])
        for low in (8, 16, 32)
    ]
    assert halves == pytest.approx([halves[0]] * 3, rel=0.1)
    assert not np.any((prior.rows == 0) & (prior.blocks == 0))
    assert np.max(prior.rows) == 8
    assert np.max(prior.rows[has_prefill]) == 7


def test_features_of_shapes_agree_with_those_of_uniform_steps() -> None:
    (found,) = shape_features(
        np.array([4]),
        np.array([8]),
        used_rows=0,
        used_blocks=8,
        decode_pages=0,
        block_pages=2,
        page_size=128,
        block_tokens=32,
    )
    # One chunk of 256 tokens that ends on page 2.
    expected = np.zeros(features.NUM_FEATURES)
    expected[features.PREFILL_WORK] = expected[features.CHUNK_SQUARES] = 256.0**2
    expected[features.PREFILL_TOKENS] = expected[features.LARGEST_CHUNK] = 256
    expected[features.NUM_ROWS], expected[features.NUM_BLOCKS] = 4, 8
    expected[features.BLOCK_PAGES] = 2
    assert found.tolist() == expected.tolist()
    (lone,) = shape_features(
        np.array([2]),
        np.array([0]),
        used_rows=1,
        used_blocks=0,
        decode_pages=3,
        block_pages=5,
        page_size=128,
        block_tokens=32,
    )
    uniform = features.uniform_features(
        Bucket(1, 0), decode_pages=3, block_pages=0, page_size=128
    )
    uniform[features.NUM_ROWS] = 2
    assert lone.tolist() == uniform.tolist()


def test_a_simulation_tells_which_steps_left_work() -> None:
    machine = CLOSED_FORMS["a100-llama3-8b"]
    table = BucketTable((2, machine.max_num_seqs), (0, 4, 16, 48))
    scheduler = make_scheduler(
        policy=make_policy("fcfs"),
        cost_model=machine,
        buckets=table,
        predictor=OraclePredictor(machine, 32),
        max_model_len=4096,
    )
    lengths = (3000, 100)  # 94 blocks and 4: 48, then 46 and 2 of 4, then 2
    arrivals = [
        Arrival(request_id=str(i), arrival_s=0.0, num_prompt_tokens=n, max_tokens=2)
        for i, n in enumerate(lengths)
    ]
    steps = simulate(scheduler, machine, arrivals, records_steps=True).steps
    assert steps is not None
    assert [(one.used_blocks, one.leaves_work) for one in steps if one.used_blocks] == [
        (48, True),
        (48, True),
        (2, False),
    ]
    demand = demand_from_steps(
        steps,
        table,
        tbt_budgets=[],
        step_s=lambda matrix: machine.step_s(matrix, 32),
        page_size=machine.page_size,
    )
    assert demand.num_steps == len(steps)
    assert not np.any(demand.is_limited)  # no edge is larger than 48
    assert set(demand.blocks.tolist()) == {0, 2, 48}
