"""Step time against tokens, beside many decode rows: what edges are judged on."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jserve_sched.buckets.table import Bucket
from jserve_sched.simulation.cost_model import CostModel
from jserve_sched.steps import features

_MAX_POINTS = 257


def priced_staircase(
    cost_model: CostModel, block_tokens: int, runs: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Returns the curve of a simulated machine, of full steps with short contexts.

    The decode rows are its `max_num_seqs`. The curve ends at the largest edge of the
    buckets of any of the report's `runs`, or where the machine's limit is.
    """
    num_rows = cost_model.max_num_seqs
    most = max((cost_model.max_num_batched_tokens - num_rows) // block_tokens, 1)
    for run in runs:
        if (table := run.get("buckets")) is not None:
            tokens = table["block_edges"][-1] * table["block_tokens"]
            most = max(most, -(-tokens // block_tokens))
    counts = np.unique(np.linspace(0, most, _MAX_POINTS).astype(int)).tolist()
    buckets = [Bucket(num_rows, count, block_tokens) for count in counts]
    matrix = np.stack(
        [
            features.uniform_features(
                bucket, decode_pages=1, block_pages=1, page_size=cost_model.page_size
            )
            for bucket in buckets
        ]
    )
    return {
        "num_rows": num_rows,
        "tokens": [bucket.num_tokens for bucket in buckets],
        "seconds": cost_model.step_s(matrix, block_tokens).tolist(),
        "is_discrete": False,
    }


def run_staircase(
    runs: Sequence[Mapping[str, Any]], block_tokens: int | None
) -> dict[str, Any] | None:
    """Returns what an engine's step-time table said of the buckets that ran.

    That is the predicted time of each bucket, mean over its steps, at the row edge
    where the most different buckets ran, the largest of several; None for fewer than
    two, or if the `block_tokens` of a block are unknown.
    """
    programs = [one for run in runs for one in run.get("steps_by_program", ())]
    if block_tokens is None or not programs:
        return None
    # By row edge and token positions: the sum of predicted times, and of steps.
    sums: dict[int, dict[int, np.ndarray]] = collections.defaultdict(
        lambda: collections.defaultdict(lambda: np.zeros(2))
    )
    for one in programs:
        count = one["num_steps"]
        bucket = Bucket(one["num_rows"], one["num_blocks"], block_tokens)
        sums[bucket.num_rows][bucket.num_tokens] += (one["bucket_s"] * count, count)
    num_rows = max(sums, key=lambda rows: (len(sums[rows]), rows))
    if len(sums[num_rows]) < 2:
        return None
    edges = sorted(sums[num_rows])
    return {
        "num_rows": num_rows,
        "tokens": edges,
        "seconds": [float(np.divide(*sums[num_rows][edge])) for edge in edges],
        "is_discrete": True,
    }
