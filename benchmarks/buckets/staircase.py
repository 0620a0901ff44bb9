"""Draws the staircase of README: step time over the prompt tokens of a step.

    python -m benchmarks.buckets.staircase

The times are those of the engine that `benchmarks/predictor` profiled, with the buckets
of `pow2` and four decode rows.
"""

import json
import pathlib

import altair

from jserve_sched.buckets.table import Bucket, table_from_json
from jserve_sched.steps import features
from jserve_tools.gpu_profiles.machines import load_machine
from jserve_tools.training.samples import read_samples

_SAMPLES = pathlib.Path(__file__).parents[1] / "predictor" / "samples.npz"
_NUM_ROWS = 4


def main() -> None:
    """Writes `staircase.png` beside this file."""
    table = table_from_json(json.dumps(read_samples(_SAMPLES).facts["buckets"]))
    machine = load_machine(f"table:{_SAMPLES}")
    points = []
    for num_blocks in range(table.max_blocks + 1):
        edge = table.fit(_NUM_ROWS, num_blocks)
        bucket = Bucket(edge.num_rows, edge.num_blocks, table.block_tokens)
        row = features.uniform_features(
            bucket, decode_pages=1, block_pages=1, page_size=machine.page_size
        )
        step_s = float(machine.step_s(row[None], table.block_tokens)[0])
        points.append({"tokens": num_blocks * table.block_tokens, "ms": 1e3 * step_s})
    chart = altair.Chart(altair.Data(values=points)).encode(
        x=altair.X(
            "tokens:Q",
            title="prompt tokens in the step",
            axis=altair.Axis(
                values=[table.block_tokens * edge for edge in table.block_edges]
            ),
        ),
        y=altair.Y("ms:Q", title="step, ms"),
    )
    line = chart.mark_line(interpolate="step-before", strokeWidth=2.5, color="#0072b2")
    path = pathlib.Path(__file__).parent / "staircase.png"
    line.properties(width=560, height=180).save(str(path), scale_factor=2)


if __name__ == "__main__":
    main()
