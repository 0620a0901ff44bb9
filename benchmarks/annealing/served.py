"""One piece of work of the studies: some requests served in virtual time.

The one idea: a task holds all that decides its numbers, so that it can be sent to a
process, and found again by a hash of itself.

The machine is Llama-3.1-8B on an RTX 4090 whose kernels were measured, without padding
(every count is a shape). Planning takes no virtual time; plan_time.py says what it
takes. Step times are known exactly, so that what is judged is the order; how long
answers will be is known as the task says.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gains import summarise
from task_classes import Mix, draw_requests

from jserve.compiled_annealing import best_kernel
from jserve_sched.bucket_strategies import Continuous
from jserve_sched.cost_model import CostModel, OraclePredictor
from jserve_sched.goodput import num_warmup
from jserve_sched.policies import make_policy
from jserve_sched.report import Outcome
from jserve_sched.simulator import make_scheduler, simulate
from jserve_sched.workload import Arrival
from jserve_tools.machines import gpu_cost_model
from jserve_tools.simulated_lengths import declare, make_lengths

MACHINE = "rtx4090-llama3.1-8b-table"
MAX_MODEL_LEN = 16_384
ORACLE = "oracle"  # knows lengths, but for an error that it is given
_MAX_SPANS = 200.0  # nobody is cut off: latencies of all count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """How the simulated server is set up.

    Attributes:
      policy: its name and options.
      max_num_seqs: most requests that run at once, b_max; 0: the machine's own.
      lengths: how long answers are thought to be; see `simulated_lengths`.
      declared_max_tokens: what requests say they take at most; 0: what they take.
    """

    policy: str
    max_num_seqs: int
    lengths: str = ORACLE
    declared_max_tokens: int = 0


class RememberingMachine:
    """A cost model that is not asked twice about a step.

    The policy's predictor asks about a plan, and the simulator about the step that it
    becomes: the same features. Pricing is what most of a simulation's time goes to.
    """

    def __init__(self, cost_model: CostModel, max_num_seqs: int):
        """Stands for a cost model, with a limit of its own."""
        self.name = cost_model.name
        self.num_kv_tokens = cost_model.num_kv_tokens
        self.page_size = cost_model.page_size
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = cost_model.max_num_batched_tokens
        self._cost_model = cost_model
        self._asked = (b"", 0)
        self._told = np.zeros(0)

    def step_s(self, matrix: np.ndarray, block_tokens: int) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""
        asked = (matrix.tobytes(), block_tokens)
        if asked != self._asked:
            self._told = self._cost_model.step_s(matrix, block_tokens)
            self._asked = asked
        return self._told.copy()


_kernel = functools.cache(best_kernel)  # once a process: it may have to compile


@functools.cache
def _machine(max_num_seqs: int) -> RememberingMachine:
    model = gpu_cost_model(MACHINE)
    return RememberingMachine(model, max_num_seqs or model.max_num_seqs)


def serve(
    setup: Setup, arrivals: Sequence[Arrival], *, seed: int
) -> tuple[list[Outcome], float]:
    """Serves requests; returns what they experienced and when the last one ended.

    Args:
      setup: the server.
      arrivals: the requests, by arrival.
      seed: of the errors of lengths.
    """
    machine = _machine(setup.max_num_seqs)
    if setup.declared_max_tokens:
        arrivals = declare(
            arrivals, setup.declared_max_tokens, max_model_len=MAX_MODEL_LEN
        )
    lengths = setup.lengths
    if lengths.startswith(ORACLE):
        lengths += f":seed={seed}"
    table = Continuous().table(
        max_num_seqs=machine.max_num_seqs,
        max_num_batched_tokens=machine.max_num_batched_tokens,
        block_tokens=1,
    )
    scheduler = make_scheduler(
        policy=make_policy(setup.policy, kernel=_kernel()),
        cost_model=machine,
        buckets=table,
        predictor=OraclePredictor(machine, 1),
        max_model_len=MAX_MODEL_LEN,
        lengths=make_lengths(lengths, arrivals),
    )
    result = simulate(scheduler, machine, arrivals, max_spans=_MAX_SPANS)
    return result.outcomes, result.end_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawsTask:
    """Some draws of requests, all at once or at a rate.

    At a rate the first tenth is served but not counted.

    Attributes:
      mix: whose lengths they have.
      num_requests: N, in each draw.
      setup: the server.
      num_draws: seeds 0, 1, and so on.
      qps: rate of Poisson arrivals, requests per second; None: all come at once.
    """

    mix: Mix
    num_requests: int
    setup: Setup
    num_draws: int
    qps: float | None = None

    def run(self) -> dict[str, Any]:
        """Returns `draws`, one entry of `gains.summarise` each."""
        num_uncounted = 0 if self.qps is None else num_warmup(self.num_requests)
        draws = []
        for seed in range(self.num_draws):
            arrivals = draw_requests(
                self.mix,
                num_requests=self.num_requests,
                seed=seed,
                qps=self.qps,
            )
            outcomes, _ = serve(self.setup, arrivals, seed=seed)
            draws.append(summarise(outcomes[num_uncounted:]))
        return {"draws": draws}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CapacityTask:
    """How many requests a second come out of `fcfs` that all came at once.

    Attributes:
      mix: whose lengths they have.
      num_requests: how many.
      max_num_seqs: most requests that run at once; 0: the machine's own.
    """

    mix: Mix
    num_requests: int
    max_num_seqs: int

    def run(self) -> dict[str, Any]:
        """Returns `qps`, requests per second."""
        arrivals = draw_requests(self.mix, num_requests=self.num_requests, seed=0)
        setup = Setup(policy="fcfs", max_num_seqs=self.max_num_seqs)
        _, end_s = serve(setup, arrivals, seed=0)
        return {"qps": self.num_requests / end_s}


def draws_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the draws of a finished task."""
    return list(result["draws"])
