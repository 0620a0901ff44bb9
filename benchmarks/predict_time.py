"""Times one question to each predictor: 1 step, and 64 candidates at once.

  python benchmarks/predict_time.py --output=out/predict_time.json

A policy scores its candidates in one call, so 64 of them must cost well under a
plan's millisecond: the target is a median under 100 microseconds. `safe` is the linear
predictor behind the check that every serving predictor stands behind.
"""

import itertools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags

from jserve.program import run_program
from jserve_sched.bucket_strategies import PowersOfTwo
from jserve_sched.features import NUM_FEATURES, uniform_features
from jserve_sched.linear_predictor import LinearPredictor, fit_linear
from jserve_sched.mlp_predictor import NUM_INPUTS, MlpPredictor, MlpWeights
from jserve_sched.predictor import Predictor, SafePredictor, StepSample
from jserve_sched.table_predictor import TablePredictor
from jserve_tools.documents import commit, write_whole

_OUTPUT = flags.DEFINE_string("output", "", "JSON file to write as well.")
_NUM_CALLS = flags.DEFINE_integer(
    "num_calls", 3000, "Calls timed for each number.", lower_bound=1
)

_PAGE_SIZE = 128
_MAX_PAGES = 64
_LAYERS = (NUM_INPUTS, 32, 32, 2)
_NUM_CANDIDATES = 64


def steps(num_steps: int) -> np.ndarray:
    """Returns full steps of random shapes and contexts, `[N, F]`."""
    table = PowersOfTwo().table(
        max_num_seqs=32, max_num_batched_tokens=544, block_tokens=32
    )
    rng = np.random.default_rng(0)
    rows = [
        uniform_features(
            table.buckets[rng.integers(len(table.buckets))],
            decode_pages=int(rng.integers(1, _MAX_PAGES)),
            block_pages=int(rng.integers(1, _MAX_PAGES)),
            page_size=_PAGE_SIZE,
        )
        for _ in range(num_steps)
    ]
    return np.stack(rows)


def predictors(matrix: np.ndarray) -> dict[str, Predictor]:
    """Returns one of each, by name; what they answer does not matter here."""
    table = TablePredictor(
        PowersOfTwo().table(
            max_num_seqs=32, max_num_batched_tokens=544, block_tokens=32
        ),
        max_pages_per_row=_MAX_PAGES,
    )
    linear = fit_linear(matrix, table.predict(matrix))
    rng = np.random.default_rng(0)
    weights = MlpWeights(
        linear=linear,
        mean=np.full(NUM_INPUTS, 5.0),
        scale=np.full(NUM_INPUTS, 3.0),
        low=np.full(NUM_INPUTS, -2.0),
        high=np.full(NUM_INPUTS, 2.0),
        layers=tuple(
            (0.2 * rng.normal(size=(inputs, units)), np.zeros(units))
            for inputs, units in itertools.pairwise(_LAYERS)
        ),
    )
    return {
        "table": table,
        "linear": LinearPredictor(linear),
        "mlp": MlpPredictor(weights),
        "safe": SafePredictor(LinearPredictor(linear), table),
    }


def median_us(call: Callable[[], object], num_calls: int) -> float:
    """Returns the median time of a call, microseconds."""
    times_s = []
    for _ in range(num_calls):
        start_s = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - start_s)
    return 1e6 * statistics.median(times_s)


def time_predictor(
    predictor: Predictor, matrix: np.ndarray, num_calls: int
) -> dict[str, float]:
    """Returns medians of one question, of 64, of their upper ends, of an update."""
    one, many = matrix[:1], matrix[:_NUM_CANDIDATES]
    samples = [
        StepSample(row, float(predicted_s))
        for row, predicted_s in zip(matrix, predictor.predict(matrix), strict=True)
    ]
    start_s = time.perf_counter()
    for index in range(num_calls):
        predictor.update(samples[index % len(samples)])
    # A mean: most updates only store, and one in many learns from the batch.
    update_us = 1e6 * (time.perf_counter() - start_s) / num_calls
    return {
        "predict_1_us": median_us(lambda: predictor.predict(one), num_calls),
        "predict_64_us": median_us(lambda: predictor.predict(many), num_calls),
        "upper_64_us": median_us(lambda: predictor.predict_upper(many), num_calls),
        "mean_update_us": update_us,
    }


def main(argv: Sequence[str]) -> None:
    """Prints one JSON document, by predictor."""
    del argv
    matrix = steps(512)
    assert matrix.shape[1] == NUM_FEATURES
    found = {
        name: time_predictor(predictor, matrix, _NUM_CALLS.value)
        for name, predictor in predictors(matrix).items()
    }
    text = json.dumps({"commit": commit(), "predictors": found})
    print(text)
    if _OUTPUT.value:
        write_whole(pathlib.Path(_OUTPUT.value), f"{text}\n".encode())


if __name__ == "__main__":
    run_program(sys.modules[__name__])
