"""Request latency from a profile: fitted, judged on held-out steps, and written.

A profile measures steps. Decode times are fitted to its decode steps, with the mean of
their contexts, which differ as in a server. Nearly all its prefill steps continue a
prompt, so prefill times are fitted to whole prefills priced by the server's step-time
table, which learns from the profile. Both are judged on held-out steps; prefill times
only on steps that are whole prefills of equal prompts.
"""

import dataclasses
import json
import math
import pathlib
import sys

import numpy as np

from jserve.timing.checkpoint import PredictorFacts
from jserve_sched.buckets.table import table_from_json
from jserve_sched.steps import features
from jserve_sched.timing.request_latency import (
    LatencyPoints,
    RequestLatency,
    fit_bilinear,
    priced_points,
)
from jserve_tools.reporting.documents import commit, write_whole
from jserve_tools.reporting.tables import render
from jserve_tools.training.report import errors, learned_table
from jserve_tools.training.samples import TRAIN, Samples


def train_requests(
    samples: Samples, *, page_size: int
) -> tuple[RequestLatency, dict[str, dict[str, float]]]:
    """Fits a request latency to the training steps, and judges it on the others.

    Returns:
      The latency, and for each of its parts the errors on held-out steps (those of
      `report.errors`, and `num_points`).

    Raises:
      ValueError: If the profile lacks a fact, or whole prefills, or decode steps.
    """
    facts = samples.facts
    try:
        table = table_from_json(json.dumps(facts["buckets"]))
        max_model_len, num_kv_tokens = facts["max_model_len"], facts["num_kv_tokens"]
    except KeyError as error:
        raise ValueError(f"the samples do not say {error}") from None
    prices = learned_table(
        samples, table, max_pages_per_row=-(-int(max_model_len) // page_size)
    )
    prefill, _ = priced_points(
        prices,
        table,
        page_size=page_size,
        num_kv_tokens=int(num_kv_tokens),
        max_num_batched_tokens=max(one.num_tokens for one in table.buckets),
    )
    is_training = samples.split == TRAIN
    decode = _decode_points(samples, is_training)
    latency = RequestLatency(prefill=fit_bilinear(prefill), decode=fit_bilinear(decode))
    judged = {
        "prefill": (latency.prefill, _prefill_points(samples, ~is_training)),
        "decode step": (latency.decode, _decode_points(samples, ~is_training)),
    }
    return latency, {
        name: {
            "num_points": len(points.batch),
            **errors(model.of(points.batch, points.length), points.duration_s),
        }
        for name, (model, points) in judged.items()
    }


def _prefill_points(samples: Samples, is_chosen: np.ndarray) -> LatencyPoints:
    """Returns the chosen steps that are a whole prefill of equal prompts.

    They have no decodes and no cached tokens, and all their chunks have one length.
    """
    matrix = samples.features
    tokens = matrix[:, features.PREFILL_TOKENS]
    length = matrix[:, features.LARGEST_CHUNK]
    chosen = (
        is_chosen
        & (features.scenarios(matrix) == features.PURE_PREFILL)
        & (matrix[:, features.CACHED_TOKENS] == 0)
        & (matrix[:, features.CHUNK_SQUARES] == tokens * length)
    ).nonzero()
    if not chosen[0].size:
        raise ValueError("no step is a whole prefill of equal prompts")
    length = length[chosen]
    return LatencyPoints(tokens[chosen] / length, length, samples.median_s[chosen])


def _decode_points(samples: Samples, is_chosen: np.ndarray) -> LatencyPoints:
    """Returns the chosen steps with decodes only, by rows and their mean context."""
    matrix = samples.features
    is_chosen = is_chosen & (features.scenarios(matrix) == features.PURE_DECODE)
    if not is_chosen.any():
        raise ValueError("no step is decode only")
    batch = matrix[is_chosen, features.NUM_DECODES]
    context = matrix[is_chosen, features.DECODE_CONTEXT]
    return LatencyPoints(batch, context / batch, samples.median_s[is_chosen])


def publish_requests(
    samples: Samples, output: pathlib.Path, measured_with: PredictorFacts
) -> None:
    """Fits, writes request_latency.json, and prints its errors and content.

    Raises:
      ValueError: If the profile does not suffice for a fit.
      OSError: If the file cannot be written.
    """
    latency, found = train_requests(samples, page_size=measured_with.page_size)
    names = ("platform", "device_kind", "model", "dtype", "page_size")
    document = {
        **dataclasses.asdict(latency),
        "measured_with": {name: getattr(measured_with, name) for name in names},
        "errors": found,
        "commit": commit(),
        "command": ["jserve-train-predictor", *sys.argv[1:]],
    }
    path = output / "request_latency.json"
    write_whole(path, (json.dumps(document, indent=1) + "\n").encode())
    rows = [["held out", "points", "R2", "MAE", "MAPE"]]
    for name, one in found.items():
        error = [f"{one['mae_ms']:.3f}ms", f"{one['mape']:.1%}"]
        rows.append(
            [name, str(one["num_points"]), f"{one.get('r2', math.nan):.3f}", *error]
        )
    print(f"{render(rows)}\n\nlatency: {path}")
    print(json.dumps(document, separators=(",", ":")), flush=True)
