"""Machines to simulate: a GPU's costs by name, or a profile of one of our engines.

a100-llama3-8b                 a cost model by name
linear:samples.npz             SlidingServe's linear model, fitted to measured steps
table:samples.npz              the step-time table, fitted to measured steps
mlp:samples.npz:folder         a trained network; the samples say the limits
"""

import dataclasses
import json
import pathlib
from typing import Any

from jserve_sched.bucket_strategies import (
    FROM_FILE,
    SIMULATED_STRATEGIES,
    BucketStrategy,
    Explicit,
    PowersOfTwo,
    make_strategy,
)
from jserve_sched.buckets import BucketTable, table_from_json
from jserve_sched.cost_model import CostModel, PredictorCost, StepModel
from jserve_sched.linear_predictor import fit_linear
from jserve_sched.mlp_predictor import MlpPredictor
from jserve_sched.predictor import StepSample
from jserve_sched.table_predictor import TablePredictor
from jserve_tools.gpu_cost_models import gpu_cost_model
from jserve_tools.samples import Samples, read_samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine to simulate.

    Attributes:
      cost_model: Costs of its steps, and its limits.
      block_tokens: Tokens in one prefill block that it was measured with; None if its
        costs are by token.
    """

    cost_model: CostModel
    block_tokens: int | None = None


def load_machine(spec: str) -> Machine:
    """Returns the machine that `spec` names.

    Raises:
      ValueError: if it is unknown, or its file is invalid.
    """
    kind, _, rest = spec.partition(":")
    if kind not in ("linear", "table", "mlp") or not rest:
        return Machine(cost_model=gpu_cost_model(spec))
    path, _, folder = rest.partition(":")
    if bool(folder) != (kind == "mlp"):
        raise ValueError(f"cost_model={spec!r}: mlp alone takes a checkpoint, a folder")
    samples = read_samples(pathlib.Path(path).expanduser())
    facts = samples.facts
    try:
        engine = facts["engine"]
        buckets = table_from_json(json.dumps(facts["buckets"]))
        limits = {
            name: int(engine[name])
            for name in ("page_size", "max_num_seqs", "max_num_batched_tokens")
        }
        limits["num_kv_tokens"] = int(facts["num_kv_tokens"])
        longest = int(facts["max_model_len"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"cost_model={spec!r}: the samples do not say the engine's limits: {error}"
        ) from None
    predictor: StepModel
    if kind == "mlp":
        predictor = _network(spec, folder, limits["page_size"], buckets.block_tokens)
    elif kind == "linear":
        predictor = fit_linear(samples.features, samples.median_s)
    else:
        pages = -(-longest // limits["page_size"])
        predictor = _table(samples, TablePredictor(buckets, max_pages_per_row=pages))
    return Machine(
        cost_model=PredictorCost(
            name=f"{kind}:{pathlib.Path(path).name}",
            predictor=predictor,
            block_tokens=buckets.block_tokens,
            **limits,
        ),
        block_tokens=buckets.block_tokens,
    )


def _table(samples: Samples, table: TablePredictor) -> TablePredictor:
    """Fills a table as a server does: the timed pass, then every step once."""
    table.fit(map(StepSample, samples.timed_features, samples.timed_s.tolist()))
    for row, median_s in zip(samples.features, samples.median_s.tolist(), strict=True):
        table.update(StepSample(row, median_s))
    return table


def _network(spec: str, folder: str, page_size: int, block_tokens: int) -> MlpPredictor:
    # Orbax takes seconds to import, and no other machine needs it.
    from jserve.predictor_checkpoint import load_checkpoint

    weights, facts = load_checkpoint(pathlib.Path(folder))
    if (facts.page_size, facts.block_tokens) != (page_size, block_tokens):
        raise ValueError(
            f"cost_model={spec!r}: the checkpoint is for page_size={facts.page_size} "
            f"and block_tokens={facts.block_tokens}, the samples for {page_size} and "
            f"{block_tokens}"
        )
    return MlpPredictor(weights)


def with_limits(cost_model: CostModel, **limits: int | None) -> CostModel:
    """Returns the cost model with those of its limits that are given."""
    given: dict[str, Any] = {name: one for name, one in limits.items() if one}
    return dataclasses.replace(cost_model, **given)


def simulated_table(
    spec: str, cost_model: CostModel, file: BucketTable | None, block_tokens: int
) -> BucketTable:
    """Returns a bucket strategy's table within a machine's limits.

    The strategy `fitted` without a file gets that of pow2, from whose number of
    programs the fit takes its budget.

    Args:
      spec: the strategy.
      cost_model: the machine.
      file: the bucket file of strategies explicit and fitted, with its own
        `block_tokens`.
      block_tokens: tokens in one prefill block.

    Raises:
      ValueError: if the strategy is unknown or does not fit.
    """
    strategy: BucketStrategy
    if spec in FROM_FILE and file is not None:
        strategy = Explicit(row_edges=file.row_edges, block_edges=file.block_edges)
        block_tokens = file.block_tokens
    elif spec == "fitted":
        strategy = PowersOfTwo()
    else:
        strategy = make_strategy(spec, SIMULATED_STRATEGIES)
    return strategy.table(
        max_num_seqs=cost_model.max_num_seqs,
        max_num_batched_tokens=cost_model.max_num_batched_tokens,
        block_tokens=block_tokens,
    )
