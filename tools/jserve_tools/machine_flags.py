"""Flags that say on what a simulation runs: machines, their limits, what they know."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from jserve_sched.buckets import DEFAULT_BLOCK_TOKENS, table_from_json
from jserve_sched.cost_model import CostModel
from jserve_sched.instances import ASSIGNMENTS
from jserve_sched.policies import make_policy
from jserve_sched.workload import Yardstick, isolated_times
from jserve_tools.machines import load_machine
from jserve_tools.simulated_lengths import NO_ESTIMATES, make_lengths
from jserve_tools.simulated_loads import Load
from jserve_tools.simulated_predictors import PREDICTORS
from jserve_tools.simulated_shapes import Shapes
from jserve_tools.simulation import Experiment, split_limit

# absl gives a flag to the module that calls DEFINE_*; this one passes it on.
flags.disclaim_key_flags()

_MOST_INSTANCES = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Those flags, checked.

    Attributes:
      cost_model: the machine, without a policy's own limit.
      shapes: what its compiled shapes depend on.
      yardstick: its idle times, for promises relative to them.
      settings: fields of every `Experiment` on it.
    """

    cost_model: CostModel
    shapes: Shapes
    yardstick: Yardstick
    settings: Mapping[str, Any]

    @property
    def num_instances(self) -> int:
        """Engines that serve a load together."""
        return int(self.settings["num_instances"])

    def experiment(
        self, policy: str, bucket_strategy: str, load: Load, **settings: Any
    ) -> Experiment:
        """Returns an experiment on this machine.

        Args:
          policy: with a token limit of its own or without.
          bucket_strategy: whose shapes it has.
          load: what it serves.
          settings: further fields of `Experiment`.

        Raises:
          ValueError: if the policy or the strategy is unknown, or does not fit.
        """
        spec, limit = split_limit(policy)
        make_policy(spec)  # a wrong name or option is refused now
        cost_model = _changed(self.cost_model, max_num_batched_tokens=limit)
        return Experiment(
            policy=policy,
            bucket_strategy=bucket_strategy,
            buckets=self.shapes.table(bucket_strategy, cost_model),
            cost_model=cost_model,
            load=load,
            yardstick=self.yardstick,
            **self.settings,
            **settings,
        )


def _changed(cost_model: CostModel, **limits: int | None) -> CostModel:
    """Returns the cost model with those of its limits that are given."""
    model: Any = cost_model
    given = {name: value for name, value in limits.items() if value is not None}
    changed: CostModel = dataclasses.replace(model, **given)
    return changed


def define_machine_flags() -> Callable[[], MachineOptions]:
    """Defines the flags; returns their reader, which raises for a bad value."""
    cost_model = flags.DEFINE_string(
        "cost_model",
        "a100-llama3-8b",
        "The machine: a GPU by name, or a profile of jserve-profile as linear:SAMPLES, "
        "table:SAMPLES or mlp:SAMPLES:CHECKPOINT.",
    )
    buckets = flags.DEFINE_string(
        "buckets", None, "Bucket file (JSON) of bucket strategies explicit and fitted."
    )
    block_tokens = flags.DEFINE_integer(
        "block_tokens",
        DEFAULT_BLOCK_TOKENS,
        "Tokens in one prefill block; must divide the page size.",
        lower_bound=1,
    )
    max_model_len = flags.DEFINE_integer(
        "max_model_len", 16_384, "Tokens of the longest request.", lower_bound=2
    )
    read_limits = _define_limits()
    read_knowledge = _define_knowledge()
    read_instances = _define_instances()
    lag = flags.DEFINE_integer(
        "lag",
        0,
        "1 plans a step while the one before runs, as jserve does; 0 after it has "
        "ended.",
        lower_bound=0,
        upper_bound=1,
    )
    noise = flags.DEFINE_float(
        "noise",
        0.0,
        "Deviation of the logarithm of a step's time about the cost model's.",
        lower_bound=0.0,
        upper_bound=1.0,
    )

    def read() -> MachineOptions:
        file = None
        if buckets.value is not None:
            file = table_from_json(pathlib.Path(buckets.value).expanduser().read_text())
        machine = load_machine(cost_model.value)
        return MachineOptions(
            cost_model=_changed(machine.cost_model, **read_limits()),
            shapes=Shapes(file=file, block_tokens=block_tokens.value),
            # The machine's own limits: promises do not change with a step's token
            # limit.
            yardstick=isolated_times(
                machine.cost_model,
                max_prompt_tokens=max_model_len.value,
                block_tokens=machine.block_tokens or 1,
            ),
            settings={
                "max_model_len": max_model_len.value,
                "lag": lag.value,
                "noise": noise.value,
                **read_knowledge(),
                **read_instances(),
            },
        )

    return read


def _define_limits() -> Callable[[], dict[str, int | None]]:
    """Defines the flags of the machine's limits; returns their reader."""
    limits = {
        name: flags.DEFINE_integer(
            name, None, f"{what} [default: the cost model's]", lower_bound=1
        )
        for name, what in (
            ("max_num_seqs", "Most requests that run at once."),
            ("max_num_batched_tokens", "Most token positions in a step."),
            ("num_kv_tokens", "Tokens that the KV pool holds."),
            ("page_size", "Tokens in one KV page."),
        )
    }
    return lambda: {name: holder.value for name, holder in limits.items()}


def _define_knowledge() -> Callable[[], dict[str, Any]]:
    """Defines the flags of what policies plan by; returns their reader."""
    predictor = flags.DEFINE_enum(
        "predictor",
        "oracle",
        PREDICTORS,
        "What policies plan by: oracle is never wrong; linear and table are fitted to "
        "steps of the cost model.",
    )
    declared = flags.DEFINE_integer(
        "declared_max_tokens",
        0,
        "Output tokens that each request says it takes at most, as far as the context "
        "has room; one that takes more says that. It ends by a stop token. 0: each "
        "says what it takes.",
        lower_bound=0,
    )
    estimator = flags.DEFINE_string(
        "length_estimator",
        NO_ESTIMATES,
        "What output lengths policies plan by, where requests declare more than they "
        "take: max_tokens, mean, quantile (with options as in "
        "quantile:q=0.75), or the truth as oracle, made wrong as in oracle:error=0.5 "
        "or oracle:factor=10.",
    )

    def read() -> dict[str, Any]:
        make_lengths(estimator.value, ())  # a wrong name or option is refused now
        if flags.FLAGS["length_estimator"].present and not declared.value:
            raise ValueError(
                f"length_estimator={estimator.value} would do nothing without "
                "declared_max_tokens: each request says what it takes"
            )
        return {
            "predictor": predictor.value,
            "declared_max_tokens": declared.value,
            "length_estimator": estimator.value,
        }

    return read


def _define_instances() -> Callable[[], dict[str, Any]]:
    """Defines the flags of several engines; returns their reader."""
    num_instances = flags.DEFINE_integer(
        "num_instances",
        1,
        "Engines alike that serve the load together, each with a scheduler of its own.",
        lower_bound=1,
        upper_bound=_MOST_INSTANCES,
    )
    assignment = flags.DEFINE_enum(
        "assignment",
        "finish",
        sorted(ASSIGNMENTS),
        "Which of several engines gets a request: finish, the one with the least work "
        "by predicted times; kv, the one with the most KV that nobody will want; "
        "round_robin, each in turn.",
    )

    def read() -> dict[str, Any]:
        if flags.FLAGS["assignment"].present and num_instances.value == 1:
            raise ValueError(
                f"assignment={assignment.value} would do nothing with num_instances=1"
            )
        return {
            "num_instances": num_instances.value,
            "assignment": assignment.value,
        }

    return read
