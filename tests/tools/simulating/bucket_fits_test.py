import dataclasses
from typing import Any

import pytest

from jserve_sched.buckets.strategies import PowersOfTwo
from jserve_sched.requests.service_class import ServiceClass
from jserve_sched.simulation.cost_model import CLOSED_FORMS
from jserve_sched.simulation.workload import at_rate, isolated_times
from jserve_tools.simulating.bucket_fits import finest, fit_to_simulation
from jserve_tools.simulating.config import LoadConfig, MachineConfig, SweepConfig
from jserve_tools.simulating.loads import SimulatedLoad
from jserve_tools.simulating.simulation import Experiment

LIMITS = {"max_num_seqs": 32, "max_num_batched_tokens": 544, "block_tokens": 32}
MACHINE = dataclasses.replace(
    CLOSED_FORMS["a100-llama3-8b"], max_num_seqs=32, max_num_batched_tokens=544
)
CLASSES = (ServiceClass(name="chat", share=1.0, ttft_s=2.0, tbt_s=0.03),)
YARDSTICK = isolated_times(MACHINE, max_prompt_tokens=4096)
LOAD = SimulatedLoad(
    config=LoadConfig(workload="sharegpt", num_requests=80), classes=CLASSES
)


def experiment(**others: Any) -> Experiment:
    made = Experiment(
        policy="sliding",
        bucket_strategy="fitted",
        buckets=PowersOfTwo().table(**LIMITS),
        cost_model=MACHINE,
        load=LOAD,
        yardstick=YARDSTICK,
        machine=MachineConfig(predictor="linear", max_model_len=4096),
        sweep=SweepConfig(),
    )
    return dataclasses.replace(made, **others)


@pytest.mark.parametrize("policy", ["fcfs", "sliding"])
def test_buckets_are_fitted_to_a_run_with_every_shape(policy: str) -> None:
    every_shape = finest(experiment(policy=policy))
    assert every_shape.buckets.row_edges == tuple(range(1, 33))
    assert every_shape.buckets.block_edges == tuple(range(17))
    assert every_shape.machine.predictor == "oracle"
    arrivals = at_rate(LOAD.unit_arrivals(0, YARDSTICK), 6.0)
    table, fit = fit_to_simulation(
        experiment(policy=policy), arrivals, seed=0, max_programs=30
    )
    assert table.num_programs == fit["num_programs"] <= 30
    assert (table.max_rows, table.max_blocks) == (32, 16)
    assert 0 <= fit["pad_share_time"] < 0.1
    assert fit["block_edges"] == table.block_edges
    assert fit["num_steps"] > 100


def test_a_machine_that_no_request_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the 80 requests fits the machine"):
        fit_to_simulation(
            experiment(machine=MachineConfig(max_model_len=2)),
            LOAD.unit_arrivals(0, YARDSTICK),
            seed=0,
            max_programs=30,
        )
