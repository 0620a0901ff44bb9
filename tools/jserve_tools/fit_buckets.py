"""Fits the shapes a server compiles to the steps it runs, and writes a bucket file.

The steps are those a server recorded, or those of a simulated load. The edges found
have the least expected step time, padding included, within a number of programs.

  jserve --step_log=steps.jsonl                           records
  jserve-fit-buckets --step_log=steps.jsonl               fits
  jserve --bucket_strategy=fitted --buckets=buckets.json  serves with it
  jserve-fit-buckets --trace=my.csv --policy=sliding --cost_model=table:samples.npz

Compares strategies first: fitted to the earlier half of the steps, judged on both. The
file is then fitted to all steps. A simulated load is served again with the shapes
fitted to it, until they change no more. Prints tables for people; the last line of
stdout is one JSON document.
"""

import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from jserve.config_flags import define_config_flags
from jserve.program import ProgramError, run_program
from jserve_sched.bucket_costs import costs_of
from jserve_sched.bucket_fitting import fit_buckets
from jserve_sched.bucket_strategies import PowersOfTwo
from jserve_sched.buckets import DEFAULT_BLOCK_TOKENS, BucketTable
from jserve_sched.cost_model import CostModel
from jserve_sched.policies import make_policy
from jserve_sched.step_demand import StepDemand, merge
from jserve_sched.workload import isolated_times
from jserve_tools.bucket_fits import (
    PRIOR_SHARE,
    FitHistory,
    compact,
    default_max_programs,
    fit_to_simulation,
    with_prior,
)
from jserve_tools.documents import commit, plain, write_whole
from jserve_tools.fit_comparison import (
    StrategyRow,
    compare_strategies,
    history_table,
    strategies_table,
)
from jserve_tools.fit_sources import (
    FitSource,
    Simulation,
    recorded_source,
    simulated_source,
)
from jserve_tools.machines import load_machine
from jserve_tools.simulate_config import LoadConfig, split_limit
from jserve_tools.simulated_loads import read_load
from jserve_tools.simulation import Experiment

_DEFAULT_COST_MODEL = "a100-llama3-8b"

_STEP_LOG = flags.DEFINE_list(
    "step_log", [], "Step logs of servers with the same limits, the earliest first."
)
_COST_MODEL = flags.DEFINE_string(
    "cost_model",
    None,
    "What steps cost: a GPU by name, or a profile of jserve-profile as linear:SAMPLES, "
    "table:SAMPLES or mlp:SAMPLES:CHECKPOINT. [default: the step times in the log, or "
    f"{_DEFAULT_COST_MODEL}]",
)
_POLICY = flags.DEFINE_string(
    "policy",
    "fcfs",
    "Scheduling policy of the simulation, with options as in sliding:fill=off, and "
    "with a token limit of its own as in fcfs@512.",
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Draws lengths, arrivals and classes of the simulation.", lower_bound=0
)
_READ_LOAD = define_config_flags(LoadConfig, group="Load")
_MAX_NUM_SEQS = flags.DEFINE_integer(
    "max_num_seqs",
    None,
    "Most requests that the simulated server runs at once. [default: the cost model's]",
    lower_bound=1,
)
_MAX_TOKENS = flags.DEFINE_integer(
    "max_num_batched_tokens",
    None,
    "Most token positions in a step of it. [default: the cost model's]",
    lower_bound=1,
)
_BLOCK_TOKENS = flags.DEFINE_integer(
    "block_tokens",
    DEFAULT_BLOCK_TOKENS,
    "Tokens in one prefill block of it; must divide the page size.",
    lower_bound=1,
)
_MAX_MODEL_LEN = flags.DEFINE_integer(
    "max_model_len", 16_384, "Tokens of the longest request simulated.", lower_bound=2
)
_MAX_PROGRAMS = flags.DEFINE_integer(
    "max_programs",
    None,
    "Most programs to compile. [default: those of pow2 at the same limits]",
    lower_bound=2,
)
_PRICE_S = flags.DEFINE_float(
    "program_price_s",
    0.0,
    "Seconds of the mean step time that a program must save to be compiled.",
    lower_bound=0.0,
)
_PRIOR_SHARE = flags.DEFINE_float(
    "prior_share",
    PRIOR_SHARE,
    "Share of the demand that is spread over shapes of every size, so that a load "
    "never seen is not padded to the largest.",
    lower_bound=0.0,
    upper_bound=0.99,
)
_OUTPUT = flags.DEFINE_string("output", "buckets.json", "The bucket file to write.")

# With recorded steps there is nothing to simulate.
_TO_SIMULATE = (
    *("workload", "trace", "poisson", "num_requests", "service_classes", "qps"),
    *("levels_qps", "period_s", "duration_s", "one_shot", "policy", "seed"),
    "max_model_len",
    *("max_num_seqs", "max_num_batched_tokens", "block_tokens"),
)


def _simulation() -> tuple[Simulation, dict[str, Any]]:
    """Returns what the flags ask to simulate, and what to say of it."""
    load = read_load(_READ_LOAD())
    if len(load.qps) != 1:
        raise ValueError(
            f"buckets are fitted to a load at one rate, not qps={list(load.qps)}"
        )
    machine = load_machine(_COST_MODEL.value or _DEFAULT_COST_MODEL)
    policy, limit = split_limit(_POLICY.value)
    make_policy(policy)  # a wrong name or option is refused now
    asked = {
        "max_num_seqs": _MAX_NUM_SEQS.value,
        "max_num_batched_tokens": limit or _MAX_TOKENS.value,
    }
    model: Any = machine.cost_model
    cost_model: CostModel = dataclasses.replace(
        model, **{name: value for name, value in asked.items() if value is not None}
    )
    # The machine's own limits: promises do not change with a step's token limit.
    yardstick = isolated_times(
        machine.cost_model,
        max_prompt_tokens=_MAX_MODEL_LEN.value,
        block_tokens=machine.block_tokens or 1,
    )
    (qps,) = load.qps
    experiment = Experiment(
        policy=_POLICY.value,
        bucket_strategy="fitted",
        buckets=PowersOfTwo().table(
            max_num_seqs=cost_model.max_num_seqs,
            max_num_batched_tokens=cost_model.max_num_batched_tokens,
            block_tokens=_BLOCK_TOKENS.value,
        ),
        cost_model=cost_model,
        predictor="oracle",
        load=load,
        yardstick=yardstick,
        max_model_len=_MAX_MODEL_LEN.value,
    )
    arrivals = load.arrivals(_SEED.value, yardstick, qps)
    simulation = Simulation(experiment=experiment, arrivals=arrivals, seed=_SEED.value)
    what = {"workload": load.workload}
    if load.config.trace is not None:
        what = {"trace": load.config.trace.name}
    rate = {"is_one_shot": True} if math.isinf(qps) else {"qps": qps}
    return simulation, {**what, **rate}


def _source() -> FitSource:
    """Reads or simulates steps, as the flags say.

    Raises:
      ValueError: for a value that is wrong, naming it and the limit.
      OSError: for a file that cannot be read.
    """
    simulated = [name for name in _TO_SIMULATE if flags.FLAGS[name].present]
    if _STEP_LOG.value:
        if simulated:
            raise ValueError(
                f"{', '.join(simulated)} cannot be given with step_log: what was "
                "recorded is not simulated"
            )
        paths = [pathlib.Path(one).expanduser() for one in _STEP_LOG.value]
        return recorded_source(paths, _COST_MODEL.value)
    if not {"workload", "trace"} & set(simulated):
        raise ValueError("give step_log, or workload or trace to simulate one")
    simulation, what = _simulation()
    source = simulated_source(simulation)
    return dataclasses.replace(source, facts={**source.facts, **what})


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fitted:
    """What comes out.

    Attributes:
      table: fitted to all steps.
      demand: what the steps want.
      history: the turns of a simulation; None for recorded steps.
    """

    table: BucketTable
    demand: StepDemand
    history: FitHistory | None


def _fit(source: FitSource, max_programs: int) -> _Fitted:
    """Fits to all steps."""
    if source.simulation is not None:
        history = fit_to_simulation(
            source.simulation.experiment,
            source.simulation.arrivals,
            seed=source.simulation.seed,
            max_programs=max_programs,
            program_price_s=_PRICE_S.value,
            prior_share=_PRIOR_SHARE.value,
        )
        return _Fitted(table=history.table, demand=history.demand, history=history)
    demand = merge([source.earlier, source.later])
    any_table = PowersOfTwo().table(**source.limits)
    table = fit_buckets(
        with_prior(demand, any_table, _PRIOR_SHARE.value),
        source.step_s,
        **source.limits,
        page_size=source.page_size,
        max_programs=max_programs,
        program_price_s=_PRICE_S.value,
        starts=(),
    )
    return _Fitted(table=table, demand=demand, history=None)


def _publish(
    source: FitSource, fitted: _Fitted, comparison: Sequence[StrategyRow]
) -> None:
    """Writes the bucket file, and prints the tables and the JSON line."""
    table = fitted.table
    costs = costs_of(fitted.demand, source.step_s, table, page_size=source.page_size)
    fit: dict[str, Any] = {
        **source.facts,
        "num_steps": source.num_steps,
        "num_programs": table.num_programs,
        "expected_s": costs.expected_s(table),
        "pad_share_time": costs.pad_share(table),
        "program_price_s": _PRICE_S.value,
        "prior_share": _PRIOR_SHARE.value,
        "limits": source.limits,
        "page_size": source.page_size,
        "commit": commit(),
        "command": ["jserve-fit-buckets", *sys.argv[1:]],
    }
    if fitted.history is not None:
        fit["history"] = fitted.history.to_json()
        print(f"\n{history_table(fitted.history)}")
    file = {
        **table.to_json(),
        "demand": compact(fitted.demand).to_json(),
        "fit": plain(fit),
    }
    output = pathlib.Path(_OUTPUT.value).expanduser()
    write_whole(output, (json.dumps(file) + "\n").encode())
    print(f"\nrow edges    {', '.join(map(str, table.row_edges))}")
    print(f"block edges  {', '.join(map(str, table.block_edges))}")
    print(f"programs     {table.num_programs}")
    print(f"\nbucket file: {output}")
    report = {
        "schema_version": 1,
        **table.to_json(),
        "fit": fit,
        "comparison": comparison,
        "output": output,
    }
    print(json.dumps(plain(report), separators=(",", ":")), flush=True)


def main(argv: Sequence[str]) -> None:
    """Fits what the flags describe."""
    del argv  # the flags say it all
    try:
        source = _source()
        max_programs = _MAX_PROGRAMS.value or default_max_programs(**source.limits)
        comparison = compare_strategies(
            source.earlier,
            source.later,
            source.step_s,
            limits=source.limits,
            page_size=source.page_size,
            max_programs=max_programs,
            prior_share=_PRIOR_SHARE.value,
        )
        print(
            f"{source.num_steps} steps; edges are fitted to the earlier half:\n\n"
            f"{strategies_table(comparison)}",
            flush=True,
        )
        _publish(source, _fit(source, max_programs), comparison)
    except (ValueError, OSError, RuntimeError) as error:
        raise ProgramError(str(error)) from error


def run() -> None:
    """The console script."""
    run_program(sys.modules[__name__])


if __name__ == "__main__":
    run()
