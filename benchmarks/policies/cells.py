"""The cells of the study of policies: what is simulated, and what it gave.

The machine is Llama-3-8B on an A100, with the defaults of its cost model.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from jserve_sched.buckets.table import table_from_json
from jserve_sched.outcomes import summarise_run
from jserve_sched.simulation.workload import Arrival, isolated_times
from jserve_tools.gpu_profiles.machines import load_machine, simulated_table
from jserve_tools.simulating.bucket_fits import fit_to_simulation
from jserve_tools.simulating.config import LoadConfig, MachineConfig, SweepConfig
from jserve_tools.simulating.loads import read_load
from jserve_tools.simulating.simulation import Experiment

POLICIES = {
    "ontime": "ontime",
    "sliding": "sliding",
    "published": "sliding:published=on",
    "qoserve": "qoserve",
    "qoserve128": "qoserve:max_chunk_tokens=128",
    "qoserve256": "qoserve:max_chunk_tokens=256",
    "qoserve512": "qoserve:max_chunk_tokens=512",
    "ProServe": "benchmarks.policies.slide_batching.SlideBatching",
    "annealing": "annealing",
    "fcfs": "fcfs",
}
TUNED = ("qoserve128", "qoserve256", "qoserve512")
FEW = ("ontime", "sliding", "qoserve512", "ProServe")
MORE = (*FEW, "fcfs")
FITTED = ("ontime", "sliding", *TUNED, "ProServe", "fcfs")
# Capacity in requests a second: fcfs, no buckets, 1,200 requests there at once, until
# four fifths of them are done.
KINDS = {
    "chat": 23.1,
    "documents": 11.1,
    "heavy_tail": 4.42,
    "bursts": 6.32,
    "reasoning_code": 5.49,
    "tight": 5.18,
}
TURNS = {"interactive_chat": 1.8}  # without a prefix cache, of 600 requests
_REAL = {
    **{"predictor": "table", "noise": 0.05, "bias": 0.1, "stall_share": 0.001},
    "declared_max_tokens": 2048,
}
CONDITIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "exact": ("none", {}),
    "real": ("pow2", _REAL),
    "fitted": ("fitted", _REAL),
}
LENGTHS = ("mean", "oracle", "max_tokens", "quantile:q=0.9")
WITH_TTLT = "reasoning_code"  # lengths change nothing where no end is bounded
LOADS = (1.3, 0.85, 2.0)
ADMISSION_LOADS = (1.5, 2.0, 5.0)
# Of goodput, with three times the requests; no other stage has one of these loads.
GOODPUT_LOADS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 1.0, 1.15, 1.4)
REFUSE = (("admission", "refuse"),)
BURST, BURST_LOAD = (*REFUSE, ("burst", True)), 2.0
# Milliseconds of a simulated request, without what else a cell takes.
_MS = {
    **{"chat": 5, "documents": 6, "heavy_tail": 8, "bursts": 6, "reasoning_code": 18},
    **{"tight": 13, "interactive_chat": 15},
}
_SETUP_S = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A simulation, or a fit of buckets.

    Attributes:
      load: Rate as a share of the capacity.
      lengths: Estimator of output lengths; in the condition `exact` they are known.
      buckets: Fitted bucket table, JSON; without it the condition `fitted` fits one.
      settings: Further settings of the machine or of all requests, as pairs.
    """

    policy: str
    kind: str
    condition: str
    load: float
    seed: int = 0
    num_requests: int = 0
    lengths: str = LENGTHS[0]
    buckets: str = ""
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def cost_s(self) -> float:
        """About how long it takes, seconds."""
        return _SETUP_S + self.num_requests * _MS[self.kind] / 1e3

    def run(self) -> dict[str, Any]:
        """Returns a report's run with `attained`, a 0 or 1 for each counted request.

        Of a fit it is its `table`.
        """
        # Describe the load and the machine.
        strategy, settings = CONDITIONS[self.condition]
        if settings:
            settings = settings | {"length_estimator": self.lengths}
        model = load_machine("a100-llama3-8b")
        table = table_from_json(self.buckets) if self.buckets else None
        of_machine = {field.name for field in dataclasses.fields(MachineConfig)}
        of_requests = dict(self.settings)
        for name in of_machine & of_requests.keys():
            settings = settings | {name: of_requests.pop(name)}
        machine = MachineConfig(max_model_len=40_960, **settings)
        is_burst = of_requests.pop("burst", False)
        load = LoadConfig(
            workload=self.kind,  # type: ignore[arg-type]
            num_requests=self.num_requests,
            max_returns=int(is_burst),
        )
        experiment = Experiment(
            policy=POLICIES[self.policy],
            bucket_strategy=strategy,
            buckets=simulated_table(strategy, model, table, machine.block_tokens),
            cost_model=model,
            load=read_load(load),
            yardstick=isolated_times(model, max_prompt_tokens=machine.max_model_len),
            machine=machine,
            sweep=SweepConfig(),
        )
        capacity = (KINDS | TURNS)[self.kind]
        # Fit or simulate.
        arrivals = [
            dataclasses.replace(one, **of_requests)
            for one in experiment.arrivals(self.seed, self.load * capacity)
        ]
        if is_burst:
            arrivals = [*map(_in_burst, arrivals)]
        if strategy == "fitted" and not self.buckets:
            most = experiment.buckets.num_programs
            table, _ = fit_to_simulation(
                experiment, arrivals, seed=self.seed, max_programs=most
            )
            return {"table": json.dumps(table.to_json())}
        result = experiment.simulate(arrivals, self.seed)
        counted = result.outcomes[experiment.num_warmup(arrivals) :]
        by_prompt = sorted(counted, key=lambda one: -one.num_prompt_tokens)
        longest = [one.is_attained for one in by_prompt[: len(by_prompt) // 10]]
        return summarise_run(counted, counters=result.counters) | {
            "attained": "".join("01"[one.is_attained] for one in counted),
            "longest": sum(longest) / len(longest),
        }


def _in_burst(one: Arrival) -> Arrival:
    """Returns an arrival at its rate from 20 to 40 s, and at a quarter else."""
    at_s = np.interp(one.arrival_s, (0.0, 5.0, 25.0, 1025.0), (0.0, 20.0, 40.0, 4040.0))
    return dataclasses.replace(one, arrival_s=float(at_s))


def sched_version() -> str:
    """Returns a digest of the code in sched/, which is all that decides."""
    code = hashlib.blake2b(digest_size=8)
    for path in sorted((pathlib.Path(__file__).parents[2] / "sched").rglob("*.py")):
        code.update(path.read_bytes())
    return code.hexdigest()
