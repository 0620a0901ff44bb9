"""Machines to simulate, by what a flag says: a GPU's costs, or a profile of ours.

a100-llama3-8b                 a cost model by name
linear:samples.npz             SlidingServe's linear model, fitted to measured steps
table:samples.npz              the step-time table, fitted to measured steps
mlp:samples.npz:folder         a trained network; the samples say the limits
"""

import dataclasses
import json
import pathlib
from typing import Any

from jserve_sched.buckets import BucketTable, table_from_json
from jserve_sched.cost_model import CostModel, PredictorCost, StepModel
from jserve_sched.linear_predictor import fit_linear
from jserve_sched.mlp_predictor import MlpPredictor
from jserve_sched.predictor import StepSample
from jserve_sched.table_predictor import TablePredictor
from jserve_tools.gpu_cost_models import GPU_COST_MODELS, gpu_cost_model
from jserve_tools.samples import Samples, read_samples

PROFILE_KINDS = ("linear", "table", "mlp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine to simulate.

    Attributes:
      cost_model: what its steps cost, and its limits.
      block_tokens: tokens in one prefill block that it was measured with; None if
        its costs are by token.
      buckets: the shapes that were measured; None if any shape has a cost.
    """

    cost_model: CostModel
    block_tokens: int | None = None
    buckets: BucketTable | None = None


def load_machine(spec: str) -> Machine:
    """Returns the machine that `spec` names.

    Raises:
      ValueError: if it is unknown, or its file is no good.
    """
    kind, _, rest = spec.partition(":")
    if kind not in PROFILE_KINDS or not rest:
        if kind != spec or kind in PROFILE_KINDS or kind not in GPU_COST_MODELS:
            raise ValueError(
                f"cost_model={spec!r} is unknown; known: {sorted(GPU_COST_MODELS)}, "
                "linear:SAMPLES, table:SAMPLES, mlp:SAMPLES:CHECKPOINT"
            )
        return Machine(cost_model=gpu_cost_model(spec))
    path, _, folder = rest.partition(":")
    samples = read_samples(pathlib.Path(path).expanduser())
    facts = samples.facts
    try:
        buckets = table_from_json(json.dumps(facts["buckets"]))
        limits: dict[str, Any] = {
            "num_kv_tokens": int(facts["num_kv_tokens"]),
            "page_size": int(facts["engine"]["page_size"]),
            "max_num_seqs": int(facts["engine"]["max_num_seqs"]),
            "max_num_batched_tokens": int(facts["engine"]["max_num_batched_tokens"]),
        }
        longest = int(facts["max_model_len"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"cost_model={spec!r}: the samples do not say the engine's limits: {error}"
        ) from None
    predictor: StepModel
    if kind == "mlp":
        predictor = _network(spec, folder, limits["page_size"], buckets.block_tokens)
    elif folder:
        raise ValueError(f"cost_model={spec!r}: only mlp takes a checkpoint")
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
        buckets=buckets,
    )


def _table(samples: Samples, table: TablePredictor) -> TablePredictor:
    """Fills a table as a server does: the timed pass, then every step once."""
    table.fit(map(StepSample, samples.timed_features, samples.timed_s.tolist()))
    for row, median_s in zip(samples.features, samples.median_s.tolist(), strict=True):
        table.update(StepSample(row, median_s))
    return table


def _network(spec: str, folder: str, page_size: int, block_tokens: int) -> MlpPredictor:
    if not folder:
        raise ValueError(f"cost_model={spec!r} lacks a checkpoint: mlp:SAMPLES:FOLDER")
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
