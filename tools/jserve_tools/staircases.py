"""Step time against tokens, at the largest row edge: the curve edges are drawn on."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jserve_sched import features
from jserve_sched.buckets import Bucket
from jserve_sched.cost_model import CostModel

_MAX_POINTS = 257


def priced_staircase(cost_model: CostModel, block_tokens: int) -> dict[str, Any]:
    """Returns the curve of a simulated machine, of full steps with short contexts.

    Args:
      cost_model: prices steps; the decode rows are its `max_num_seqs`.
      block_tokens: tokens in one prefill block.
    """
    num_rows = cost_model.max_num_seqs
    most = max((cost_model.max_num_batched_tokens - num_rows) // block_tokens, 1)
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
    }


def run_staircase(
    runs: Sequence[Mapping[str, Any]], block_tokens: int | None
) -> dict[str, Any] | None:
    """Returns the curve that an engine's step-time table drew over its buckets.

    Args:
      runs: entries of the report's `runs`.
      block_tokens: tokens in one prefill block; None where that is unknown.

    Returns:
      The predicted time of each bucket with the most rows, mean over its steps; None
      for fewer than two such buckets.
    """
    programs = [one for run in runs for one in run.get("steps_by_program", ())]
    if block_tokens is None or not programs:
        return None
    num_rows = max(one["num_rows"] for one in programs)
    times_s: dict[int, list[tuple[float, int]]] = collections.defaultdict(list)
    for one in programs:
        if one["num_rows"] == num_rows:
            tokens = num_rows + one["num_blocks"] * block_tokens
            times_s[tokens].append((one["bucket_s"], one["num_steps"]))
    if len(times_s) < 2:
        return None
    ordered = sorted(times_s.items())
    return {
        "num_rows": num_rows,
        "tokens": [tokens for tokens, _ in ordered],
        "seconds": [
            sum(mean_s * count for mean_s, count in group)
            / sum(count for _, count in group)
            for _, group in ordered
        ],
    }
