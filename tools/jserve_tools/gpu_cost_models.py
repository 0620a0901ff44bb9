"""Cost models by name: closed forms, and GPUs whose kernels were measured.

The one idea: a profile is a folder of CSV files as LLMServingSim writes them, so that
a card profiled with that tool becomes a cost model by a row in `_PROFILES`.
"""

import csv
import dataclasses
import pathlib

import numpy as np

from jserve_sched.cost_model import CLOSED_FORMS, CostModel
from jserve_sched.gpu_costs import KernelTimes, TableCost, kernel_times

PROFILES = pathlib.Path(__file__).parent / "gpu_profiles"
ATTENTION_COLUMNS = (
    "prefill_chunk",
    "kv_prefill",
    "n_decode",
    "kv_decode",
    "time_us",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Profile:
    """A folder of kernel times, and what its files do not say.

    Attributes:
      folder: under `gpu_profiles`.
      num_layers: of the model.
      skew: see `TableCost`; 0 where it was not measured.
      limits: the closed form with the limits of the same card.
    """

    folder: str
    num_layers: int
    skew: float
    limits: str


_PROFILES = {
    "rtx4090-llama3.1-8b-table": _Profile(
        folder="rtx4090", num_layers=32, skew=0.0, limits="rtx4090-llama3.1-8b"
    ),
    "rtxpro6000-llama3.1-8b-table": _Profile(
        folder="rtxpro6000", num_layers=32, skew=0.0543, limits="rtxpro6000-llama3.1-8b"
    ),
}
GPU_COST_MODELS = (*CLOSED_FORMS, *_PROFILES)


def read_points(path: pathlib.Path, columns: tuple[str, ...]) -> np.ndarray:
    """Returns the named columns of a CSV file, `[R, len(columns)]` float64.

    Raises:
      ValueError: naming what is missing or no number.
      OSError: if the file cannot be read.
    """
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: the first line lacks {missing}")
        rows = [[row[name] for name in columns] for row in reader]
    try:
        points = np.array(rows, np.float64).reshape(-1, len(columns))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not np.isfinite(points).all():
        raise ValueError(f"{path}: a cell is empty or not finite")
    return points


def _by_kernel(path: pathlib.Path, column: str) -> dict[str, np.ndarray]:
    """Returns kernel -> `[R, 2]` of `column` and microseconds."""
    points = read_points(path, (column, "time_us"))
    with path.open(newline="") as file:
        kernels = np.array([row["layer"] for row in csv.DictReader(file)])
    return {name: points[kernels == name] for name in dict.fromkeys(kernels.tolist())}


def read_kernel_times(folder: pathlib.Path, *, num_layers: int) -> KernelTimes:
    """Reads a profile: attention.csv, dense.csv and per_sequence.csv.

    Raises:
      ValueError: if a column or a cell of a grid is missing, or a value is no time.
      OSError: if a file cannot be read.
    """
    return kernel_times(
        attention=read_points(folder / "attention.csv", ATTENTION_COLUMNS),
        dense=_by_kernel(folder / "dense.csv", "tokens"),
        per_sequence=_by_kernel(folder / "per_sequence.csv", "sequences"),
        num_layers=num_layers,
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
    profile = _PROFILES[name]
    limits = CLOSED_FORMS[profile.limits]
    return TableCost(
        name=name,
        times=read_kernel_times(
            PROFILES / profile.folder, num_layers=profile.num_layers
        ),
        num_kv_tokens=limits.num_kv_tokens,
        page_size=limits.page_size,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        skew=profile.skew,
    )
