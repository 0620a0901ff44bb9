"""Step time against tokens, beside many decode rows: the staircase of a report."""

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
    """Returns a simulated machine's times of full steps with short contexts.

    Each step has `max_num_seqs` decode rows. The curve ends at the largest block edge
    of the report's `runs`, or at the machine's limit if that is larger.
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
    """Returns an engine's predicted time of each bucket that ran, mean over its steps.

    The buckets are those of one row edge: the one at which the most buckets ran, or the
    largest of several. It is None if fewer than two ran, or if `block_tokens` is None.
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
