"""Cost models by name: closed forms, and GPUs whose kernels were measured.

A profile is a folder of CSV files as LLMServingSim writes them, so a card that was
profiled with that tool becomes a cost model by a row in `_PROFILES`.
"""

import csv
import dataclasses
import pathlib
from typing import Any

import numpy as np

from jserve_sched.cost_model import CLOSED_FORMS, CostModel
from jserve_sched.gpu_costs import Grid, TableCost, kernel_times

PROFILES = pathlib.Path(__file__).parent / "gpu_profiles"
ATTENTION_COLUMNS = (
    "prefill_chunk",
    "kv_prefill",
    "n_decode",
    "kv_decode",
    "time_us",
)
_NUM_LAYERS = 32  # of Llama-3.1-8B, in all profiles here
_PROFILES = {  # limits are those of the closed form of the same card
    f"{name}-table": (name, folder, skew)
    for name, folder, skew in (
        ("rtx4090-llama3.1-8b", "rtx4090", 0.0),  # its skew was not measured
        ("rtxpro6000-llama3.1-8b", "rtxpro6000", 0.0543),
    )
}
GPU_COST_MODELS = (*CLOSED_FORMS, *_PROFILES)


def _read(path: pathlib.Path, columns: tuple[str, ...]) -> np.ndarray:
    """Returns the named columns of a CSV file, `[R, len(columns)]`, as texts."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"the first line lacks {missing}")
        return np.array([[row[name] for name in columns] for row in reader])


def read_points(path: pathlib.Path, columns: tuple[str, ...]) -> np.ndarray:
    """Returns the named columns of a CSV file, `[R, len(columns)]` float64.

    Raises:
      ValueError: if a column is missing, or a cell is not a finite number.
      OSError: if the file cannot be read.
    """
    try:
        points = _read(path, columns).astype(np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not np.isfinite(points).all():
        raise ValueError(f"{path}: a cell is empty or not finite")
    return points


def _by_kernel(path: pathlib.Path, column: str) -> dict[str, np.ndarray]:
    """Returns kernel -> `[R, 2]` of `column` and microseconds."""
    points = read_points(path, (column, "time_us"))
    kernels = _read(path, ("layer",))[:, 0]
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
