"""Machines to simulate: a GPU's costs by name, or a profile of one of our engines.

a100-llama3-8b                 a closed form
rtx4090-llama3.1-8b-table      a GPU whose kernels were measured
linear:samples.npz             SlidingServe's linear model, fitted to measured steps
table:samples.npz              the step-time table, fitted to measured steps
mlp:samples.npz:folder         a trained network; the samples say the limits

A GPU's profile is a folder of CSV files as LLMServingSim writes them, so a card that
was profiled with that tool becomes a cost model by a row in `_PROFILES`.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from jserve_sched.bucket_strategies import (
    FROM_FILE,
    SIMULATED_STRATEGIES,
    BucketStrategy,
    Explicit,
    PowersOfTwo,
    make_strategy,
)
from jserve_sched.buckets import BucketTable, table_from_json
from jserve_sched.cost_model import CLOSED_FORMS, CostModel, PredictorCost, StepModel
from jserve_sched.gpu_costs import Grid, TableCost, kernel_times
from jserve_sched.linear_predictor import fit_linear
from jserve_sched.mlp_predictor import MlpPredictor
from jserve_sched.predictor import StepSample
from jserve_sched.table_predictor import TablePredictor
from jserve_tools.samples import Samples, read_samples

PROFILES = pathlib.Path(__file__).parent / "gpu_profiles"
ATTENTION_COLUMNS = (
    "prefill_chunk",
    "kv_prefill",
    "n_decode",
    "kv_decode",
    "time_us",
)
_NUM_LAYERS = 32  # of Llama-3.1-8B, in all profiles here
# Name -> closed form of the same card, whose limits hold, folder and skew.
_PROFILES = {
    "rtx4090-llama3.1-8b-table": ("rtx4090-llama3.1-8b", "rtx4090", 0.0),
    "rtxpro6000-llama3.1-8b-table": ("rtxpro6000-llama3.1-8b", "rtxpro6000", 0.0543),
}  # the skew of the RTX 4090 was not measured
GPU_COST_MODELS = (*CLOSED_FORMS, *_PROFILES)


def read_points(path: pathlib.Path, columns: tuple[str, ...]) -> np.ndarray:
    """Returns the named columns of a CSV file, `[R, len(columns)]` float64.

    Raises:
      ValueError: if a column is missing, or a cell is not a finite number.
      OSError: if the file cannot be read.
    """
    try:
        table = np.genfromtxt(path, delimiter=",", names=True)
        points: np.ndarray = np.stack([table[name] for name in columns], axis=-1)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not np.isfinite(points).all():
        raise ValueError(f"{path}: a cell is not a finite number")
    return points


def _by_kernel(path: pathlib.Path, column: str) -> dict[str, np.ndarray]:
    """Returns kernel -> `[R, 2]` of `column` and microseconds."""
    points = read_points(path, (column, "time_us"))
    kernels = np.loadtxt(path, str, delimiter=",", skiprows=1, usecols=0)
    return {name: points[kernels == name] for name in dict.fromkeys(kernels.tolist())}


def read_kernel_times(folder: pathlib.Path) -> dict[str, Grid]:
    """Reads a profile: attention.csv, dense.csv and per_sequence.csv.

    Raises:
      ValueError: if a column or a cell of a grid is missing, or a value is no time.
      OSError: if a file cannot be read.
    """
    return kernel_times(
        attention=read_points(folder / "attention.csv", ATTENTION_COLUMNS),
        dense=_by_kernel(folder / "dense.csv", "tokens"),
        per_sequence=_by_kernel(folder / "per_sequence.csv", "sequences"),
        num_layers=_NUM_LAYERS,
    )


def gpu_cost_model(name: str) -> CostModel:
    """Returns the cost model of that name.

    Raises:
      ValueError: if there is none.
    """
    if name in CLOSED_FORMS:
        return CLOSED_FORMS[name]
    if name not in _PROFILES:
        raise ValueError(
            f"cost model {name!r} is unknown; known: {sorted(GPU_COST_MODELS)}"
        )
    closed_form, folder, skew = _PROFILES[name]
    fields: dict[str, Any] = {
        field.name: getattr(CLOSED_FORMS[closed_form], field.name)
        for field in dataclasses.fields(CostModel)
    }
    fields |= read_kernel_times(PROFILES / folder) | {"name": name, "skew": skew}
    return TableCost(**fields)


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
      file: The bucket file of strategies explicit and fitted, with its own
        `block_tokens`.

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
