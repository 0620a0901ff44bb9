"""Times one call of each predictor: for 1 step, and for 64 candidates together.

  python -m benchmarks.plan_times.predict_time --output=out/predict_time.json

A policy prices its candidates in one call, which must take much less than the
millisecond of a plan: the target for 64 candidates is a median under 100 microseconds.
`safe` is the linear predictor inside `SafePredictor`, as in the server.
"""

import functools
import json
import pathlib
import statistics
import sys
import timeit
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags

from jserve.program import run_program
from jserve.timing.serving_predictor import full_steps
from jserve_sched.buckets.strategies import PowersOfTwo
from jserve_sched.timing.linear import LinearPredictor, fit_linear
from jserve_sched.timing.mlp import NUM_INPUTS, MlpPredictor, MlpWeights
from jserve_sched.timing.predictor import Predictor, SafePredictor
from jserve_sched.timing.table import TablePredictor
from jserve_tools.reporting.documents import commit, write_whole

_OUTPUT = flags.DEFINE_string("output", "", "JSON file to write as well.")
_NUM_CALLS = flags.DEFINE_integer(
    "num_calls", 3000, "Number of calls timed for each result.", lower_bound=1
)

_MAX_PAGES = 64
_BUCKETS = PowersOfTwo().table(
    max_num_seqs=32, max_num_batched_tokens=544, block_tokens=32
)


def _predictors(matrix: np.ndarray) -> dict[str, Predictor]:
    """Returns one of each predictor, by name; their predictions do not matter here."""
    table = TablePredictor(_BUCKETS, max_pages_per_row=_MAX_PAGES)
    linear = fit_linear(matrix, table.predict(matrix))
    rng = np.random.default_rng(0)
    weights = MlpWeights(
        linear=linear,
        mean=np.full(NUM_INPUTS, 5.0),
        scale=np.full(NUM_INPUTS, 3.0),
        low=np.full(NUM_INPUTS, -2.0),
        high=np.full(NUM_INPUTS, 2.0),
        layers=tuple(
            (0.2 * rng.normal(size=pair), np.zeros(pair[1]))
            for pair in ((NUM_INPUTS, 32), (32, 32), (32, 2))
        ),
    )
    return {
        "table": table,
        "linear": LinearPredictor(linear),
        "mlp": MlpPredictor(weights),
        "safe": SafePredictor(LinearPredictor(linear), table),
    }


def _median_us(call: Callable[[], object]) -> float:
    return 1e6 * statistics.median(
        timeit.repeat(call, number=1, repeat=_NUM_CALLS.value)
    )


def main(argv: Sequence[str]) -> None:
    """Prints one JSON document, by predictor."""
    del argv
    matrix = full_steps(_BUCKETS, page_size=128, max_pages_per_row=_MAX_PAGES)
    many = np.random.default_rng(0).permutation(matrix)[:64]
    found = {
        name: {
            "predict_1_us": _median_us(functools.partial(one.predict, many[:1])),
            "predict_64_us": _median_us(functools.partial(one.predict, many)),
            "upper_64_us": _median_us(functools.partial(one.predict_upper, many)),
        }
        for name, one in _predictors(matrix).items()
    }
    text = json.dumps({"commit": commit(), "predictors": found})
    print(text)
    if _OUTPUT.value:
        write_whole(pathlib.Path(_OUTPUT.value), f"{text}\n".encode())


if __name__ == "__main__":
    run_program(sys.modules[__name__])
