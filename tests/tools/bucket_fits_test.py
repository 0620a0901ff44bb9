import dataclasses

import pytest

from jserve_sched.bucket_strategies import PowersOfTwo
from jserve_sched.cost_model import CLOSED_FORMS
from jserve_sched.slo import ServiceClass
from jserve_sched.workload import WORKLOADS, at_rate, isolated_times
from jserve_tools.bucket_fits import finest, fit_to_simulation
from jserve_tools.simulated_loads import NamedLoad
from jserve_tools.simulation import Experiment

LIMITS = {"max_num_seqs": 32, "max_num_batched_tokens": 544, "block_tokens": 32}
MACHINE = dataclasses.replace(
    CLOSED_FORMS["a100-llama3-8b"], max_num_seqs=32, max_num_batched_tokens=544
)
CLASSES = (ServiceClass(name="chat", share=1.0, ttft_s=2.0, tbt_s=0.03),)


@pytest.mark.parametrize("policy", ["fcfs", "sliding"])
def test_edges_and_plans_agree_after_a_few_turns(policy: str) -> None:
    yardstick = isolated_times(MACHINE, max_prompt_tokens=4096)
    load = NamedLoad(components=WORKLOADS["sharegpt"], num_requests=80, classes=CLASSES)
    experiment = Experiment(
        policy=policy,
        bucket_strategy="fitted",
        buckets=PowersOfTwo().table(**LIMITS),
        cost_model=MACHINE,
        predictor="table",
        load=load,
        yardstick=yardstick,
        max_model_len=4096,
    )
    every_shape = finest(experiment)
    assert every_shape.buckets.row_edges == tuple(range(2, 33))
    assert every_shape.buckets.block_edges == tuple(range(17))
    assert every_shape.predictor == "oracle"
    arrivals = at_rate(load.unit_arrivals(0, yardstick), 6.0)
    history = fit_to_simulation(experiment, arrivals, seed=0, max_programs=30)
    assert history.is_converged
    assert 2 <= len(history.iterations) <= 5
    first, *_, last = history.iterations
    assert "change" not in first
    assert (
        abs(last["change"]) < 0.001
        or last["block_edges"] == (history.iterations[-2]["block_edges"])
    )
    assert last["row_edges"] == list(history.table.row_edges)
    assert last["num_programs"] == history.table.num_programs <= 30
    assert (history.table.max_rows, history.table.max_blocks) == (32, 16)
    # Every turn weighs the same, however many steps it took.
    assert history.demand.num_steps == pytest.approx(len(history.iterations))


def test_a_machine_that_no_request_fits_is_refused() -> None:
    load = NamedLoad(components=WORKLOADS["sharegpt"], num_requests=4)
    yardstick = isolated_times(MACHINE, max_prompt_tokens=4096)
    experiment = Experiment(
        policy="fcfs",
        bucket_strategy="fitted",
        buckets=PowersOfTwo().table(**LIMITS),
        cost_model=MACHINE,
        predictor="oracle",
        load=load,
        yardstick=yardstick,
        max_model_len=2,
    )
    with pytest.raises(ValueError, match="none of the 4 requests fits the machine"):
        fit_to_simulation(
            experiment, load.unit_arrivals(0, yardstick), seed=0, max_programs=30
        )
