"""Machines to simulate: by name, by arithmetic, or the profile of a jserve engine.

a100-llama3-8b                           a closed form
rtx4090-llama3.1-8b-table                a GPU whose kernels were measured
roofline:device=h200:model=llama-8b      a device's figures and a model's sizes
table:samples.npz                        the step-time table, fitted to measured steps

A GPU's profile is a folder of CSV files as LLMServingSim writes them, so a card that
was profiled with that tool becomes a cost model by a row in `_PROFILES`.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from jserve.timing.roofline_prior import decoder_of
from jserve_models.config import NAMED
from jserve_models.hf import read_config
from jserve_sched.buckets.strategies import (
    FROM_FILE,
    SIMULATED_STRATEGIES,
    BucketStrategy,
    Explicit,
    PowersOfTwo,
    make_strategy,
)
from jserve_sched.buckets.table import BucketTable, table_from_json
from jserve_sched.options import make_from_spec
from jserve_sched.simulation.cost_model import CLOSED_FORMS, CostModel, PredictorCost
from jserve_sched.simulation.gpu_costs import Grid, TableCost, kernel_times
from jserve_sched.simulation.roofline import DEVICES, RooflineCost, roofline_cost
from jserve_sched.timing.table import TablePredictor
from jserve_tools.training.samples import read_samples

PROFILES = pathlib.Path(__file__).parent
ATTENTION_COLUMNS = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
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
      ValueError: If a column is missing, or a cell is not a finite number.
      OSError: If the file cannot be read.
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
      ValueError: If a column or a cell of a grid is missing, or a time is negative.
      OSError: If a file cannot be read.
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
      ValueError: If there is none.
    """
    if name in CLOSED_FORMS:
        return CLOSED_FORMS[name]
    if name not in _PROFILES:
        raise ValueError(
            f"cost_model={name} is unknown; known: "
            f"{', '.join(sorted(GPU_COST_MODELS))}, "
            "roofline:device=DEVICE:model=MODEL, table:SAMPLES"
        )
    closed_form, folder, skew = _PROFILES[name]
    fields: dict[str, Any] = {
        field.name: getattr(CLOSED_FORMS[closed_form], field.name)
        for field in dataclasses.fields(CostModel)
    }
    fields |= read_kernel_times(PROFILES / folder) | {"name": name, "skew": skew}
    return TableCost(**fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """The options of `roofline:...`.

    Attributes:
      device: Key of `roofline.DEVICES`.
      model: Name of a model, or a Hugging Face folder, of which config.json is read.
      tensor_parallel: Number of devices that divide each layer.
      link_gb_s: GB a second between two of them, one way; 0 takes the device's.
    """

    device: str = ""
    model: str = ""
    tensor_parallel: int = 1
    link_gb_s: float = 0.0

    def machine(self, name: str) -> RooflineCost:
        """Returns the machine, without reading weights.

        Raises:
          ValueError: If device or model is unknown, or the model does not fit.
        """
        if self.device not in DEVICES:
            raise ValueError(
                f"roofline:device={self.device} is unknown; known: {sorted(DEVICES)}"
            )
        if not self.model:
            raise ValueError(
                f"roofline:model=... is missing: one of {sorted(NAMED)}, or a folder"
            )
        if self.link_gb_s < 0:
            raise ValueError(f"roofline:link_gb_s={self.link_gb_s} is below 0")
        device = DEVICES[self.device]
        if self.link_gb_s:
            device = dataclasses.replace(device, link=1e9 * self.link_gb_s)
        config = NAMED.get(self.model) or read_config(self.folder)
        return roofline_cost(name, device, decoder_of(config), self.tensor_parallel)

    @property
    def folder(self) -> pathlib.Path:
        """Folder of the model, if it is none of those with a name."""
        return pathlib.Path(self.model).expanduser()


def _roofline(spec: str) -> Roofline:
    found: Roofline = make_from_spec(spec, {"roofline": Roofline}, kind="cost_model")
    return found


def machine_files(spec: str) -> list[pathlib.Path]:
    """Returns the files that a machine is made of."""
    kind, _, path = spec.partition(":")
    if kind == "roofline":
        roofline = _roofline(spec)
        return [] if roofline.model in NAMED else [roofline.folder / "config.json"]
    return [pathlib.Path(path).expanduser()] if path else []


def load_machine(spec: str) -> CostModel:
    """Returns the machine that `spec` names.

    Raises:
      ValueError: If it is unknown, or its file is invalid.
    """
    kind, _, path = spec.partition(":")
    if kind == "roofline":
        return _roofline(spec).machine(spec)
    if kind != "table" or not path:
        return gpu_cost_model(spec)
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
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"cost_model={spec!r}: the samples do not say the engine's limits: {error}"
        ) from None
    table = TablePredictor(buckets)
    table.fit(samples.steps())
    return PredictorCost(
        name=f"table:{pathlib.Path(path).name}",
        predictor=table,
        block_tokens=buckets.block_tokens,
        **limits,
    )


def simulated_table(
    spec: str, cost_model: CostModel, file: BucketTable | None, block_tokens: int
) -> BucketTable:
    """Returns a bucket strategy's table within a machine's limits.

    The strategy `fitted` without a file gets the table of pow2, whose number of
    programs is the budget of the fit.

    Args:
      file: The bucket file of strategies explicit and fitted, with its own
        `block_tokens`.

    Raises:
      ValueError: If the strategy is unknown or does not fit.
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
