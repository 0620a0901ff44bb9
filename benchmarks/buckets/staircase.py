"""Draws the staircase of README: step time over the prompt tokens of a step.

    python -m benchmarks.buckets.staircase

The times are those of the engine that `benchmarks/predictor` profiled, with the buckets
of `pow2` and four decode rows.
"""

import json
import pathlib

import altair
import numpy as np

from jserve_sched.buckets.table import Bucket, table_from_json
from jserve_sched.steps import features
from jserve_tools.gpu_profiles.machines import load_machine
from jserve_tools.training.samples import read_samples

_FOLDER = pathlib.Path(__file__).parent
_SAMPLES = _FOLDER.parent / "predictor" / "samples.npz"
_NUM_ROWS = 4


def main() -> None:
    """Writes `staircase.png` beside this file."""
    facts = read_samples(_SAMPLES).facts
    table = table_from_json(json.dumps(facts["buckets"]))
    machine = load_machine(f"table:{_SAMPLES}")
    size = table.block_tokens
    points = []
    for num_blocks in range(table.max_blocks + 1):
        edge = table.fit(_NUM_ROWS, num_blocks)
        row = features.uniform_features(
            Bucket(edge.num_rows, edge.num_blocks, size),
            decode_pages=1,
            block_pages=1,
            page_size=machine.page_size,
        )
        step_ms = 1e3 * float(machine.step_s(row[None], size)[0])
        points.append({"tokens": num_blocks * size, "ms": step_ms})
    base = altair.Chart(altair.Data(values=points)).encode(
        x=altair.X("tokens:Q", title="prompt tokens in the step"),
        y=altair.Y("ms:Q", title="step, ms"),
    )
    edges = [{"tokens": n * size} for n in table.block_edges if n]
    rules = altair.Chart(altair.Data(values=edges)).mark_rule(
        strokeDash=[2, 3], color="#888"
    )
    chart = rules.encode(x="tokens:Q") + base.mark_line(
        interpolate="step-before", strokeWidth=2.5, color="#0072b2"
    )
    chart.properties(width=560, height=180).save(
        str(_FOLDER / "staircase.png"), scale_factor=2
    )
    print(np.round([point["ms"] for point in points], 1))


if __name__ == "__main__":
    main()
