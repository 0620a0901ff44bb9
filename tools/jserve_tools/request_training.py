"""Request latency from a profile: fitted, judged on steps held out, and written.

The one idea: a profile measures steps, and a request is many of them.

* A decode step of a request is a measured one: the fit takes the profile's own decode
  steps, with the mean of their contexts. Contexts in them are as unlike as in a server.
* A prefill is not: nearly all measured steps go on with a prompt, and few hold several
  whole ones. So whole prefills are cut into steps, those are priced by the server's
  table of step times, learned from the profile, and the fit takes the sums.

Both are judged on measured steps that nobody learned from: decode steps, and those
prefill steps that are whole prefills of equal prompts. Decode steps are judged a second
time where no row is much longer than the others: what the form misses is told from what
a mean context cannot know, since on static shapes all rows wait for the longest.
"""

import dataclasses
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from jserve.predictor_checkpoint import PredictorFacts
from jserve_sched.buckets import table_from_json
from jserve_sched.features import (
    DECODE_CONTEXT,
    DECODE_PAGES,
    NUM_DECODES,
    PURE_PREFILL,
    scenarios,
)
from jserve_sched.request_grid import (
    decode_points,
    prefill_points,
    request_grid,
)
from jserve_sched.request_latency import (
    Bilinear,
    RequestLatency,
    fit_request_latency,
)
from jserve_tools.documents import commit, write_whole
from jserve_tools.predictor_report import errors, learned_table
from jserve_tools.request_plots import JudgedPart, draw_requests
from jserve_tools.samples import TRAIN, Samples
from jserve_tools.tables import render

_ALIKE = 1.5  # contexts up to this many times the mean are alike


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedRequests:
    """What came out.

    Attributes:
      latency: the fit.
      parts: prefill and decode, with what they were fitted to and judged on.
      errors: by "what: on what", as `predictor_report.errors` has them.
      num_points: as many as were compared, by the same names.
    """

    latency: RequestLatency
    parts: tuple[JudgedPart, JudgedPart]
    errors: dict[str, dict[str, float]]
    num_points: dict[str, int]


def train_requests(samples: Samples, *, page_size: int) -> TrainedRequests:
    """Fits a request latency to the training steps, and judges it on the others.

    Nothing is chosen by the validation steps, so they are held out like the test's.

    Args:
      samples: a profile.
      page_size: tokens in one KV page of its engine.

    Raises:
      ValueError: if the profile lacks a fact, or steps of a kind.
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
    grid = request_grid(
        table,
        page_size=page_size,
        num_kv_tokens=int(num_kv_tokens),
        max_num_batched_tokens=max(one.num_tokens for one in table.buckets),
    )
    is_training = samples.split == TRAIN
    matrix, median_s = samples.features, samples.median_s
    priced, _ = grid.priced_by(prices)
    measured = decode_points(matrix[is_training], median_s[is_training])
    latency = fit_request_latency(priced, measured)
    rest, rest_s = matrix[~is_training], median_s[~is_training]
    parts = (
        JudgedPart(
            name="prefill",
            source="priced",
            model=latency.prefill,
            learned=priced,
            held_out=prefill_points(rest, rest_s),
        ),
        JudgedPart(
            name="decode step",
            source="measured",
            model=latency.decode,
            learned=measured,
            held_out=decode_points(rest, rest_s),
        ),
    )
    compared = {
        f"{part.name}: {where}": (
            part.model.of(points.batch, points.length),
            points.duration_s,
        )
        for part in parts
        for where, points in (("held out", part.held_out), ("fitted", part.learned))
    }
    is_alike = _has_contexts_alike(rest, page_size)
    alike = decode_points(rest[is_alike], rest_s[is_alike])
    compared["decode step, contexts alike: held out"] = (
        latency.decode.of(alike.batch, alike.length),
        alike.duration_s,
    )
    is_prefill = scenarios(rest) == PURE_PREFILL
    compared["prefill, one step, by the table: held out"] = (
        prices.predict(rest[is_prefill]),
        rest_s[is_prefill],
    )
    return TrainedRequests(
        latency=latency,
        parts=parts,
        errors={name: errors(*pair) for name, pair in compared.items()},
        num_points={name: len(pair[1]) for name, pair in compared.items()},
    )


def _has_contexts_alike(matrix: np.ndarray, page_size: int) -> np.ndarray:
    """Tells which steps' longest decode is at most half longer than the mean, `[S]`."""
    num_decodes = np.maximum(matrix[:, NUM_DECODES], 1.0)
    most_tokens = _ALIKE * matrix[:, DECODE_CONTEXT] / num_decodes
    found: np.ndarray = matrix[:, DECODE_PAGES] <= np.ceil(most_tokens / page_size)
    return found


def errors_table(trained: TrainedRequests) -> str:
    """Returns the errors as a table for people."""
    rows = [["what: on what", "points", "R2", "MAE", "MAPE"]]
    for name, found in trained.errors.items():
        rows.append(
            [
                name,
                str(trained.num_points[name]),
                f"{found['r2']:.3f}" if "r2" in found else "-",
                f"{found['mae_ms']:.3f}ms",
                f"{found['mape']:.1%}",
            ]
        )
    return render(rows)


def publish_requests(
    samples: Samples, output: pathlib.Path, measured_with: PredictorFacts
) -> None:
    """Fits, writes request_latency.json, report and picture, and prints both forms.

    Args:
      samples: a profile.
      output: the folder to write to.
      measured_with: what the profile was measured with.

    Raises:
      ValueError: if the profile is not enough.
      OSError: if a file cannot be written.
    """
    trained = train_requests(samples, page_size=measured_with.page_size)
    facts = samples.facts
    device = {
        name: getattr(measured_with, name)
        for name in ("platform", "device_kind", "model", "dtype", "page_size")
    }
    report: dict[str, Any] = {
        "schema_version": 1,
        "kind": "request",
        "commit": commit(),
        "jax": jax.__version__,
        "command": ["jserve-train-predictor", *sys.argv[1:]],
        "samples": {
            name: facts[name]
            for name in ("command", "model", "num_rounds", "repeat_spread")
            if name in facts
        },
        "measured_with": device,
        "latency": trained.latency.to_json(),
        "errors": {
            name: {"num_points": trained.num_points[name], **found}
            for name, found in trained.errors.items()
        },
    }
    content = {**trained.latency.to_json(), "measured_with": device}
    title = (
        f"Request latency on {measured_with.device_kind}, model "
        f"{facts.get('model', '?')}"
    )
    for name, text in (
        ("request_latency.json", json.dumps(content, indent=1) + "\n"),
        ("report.json", json.dumps(report, indent=1) + "\n"),
    ):
        write_whole(output / name, text.encode())
    write_whole(output / "report.png", draw_requests(trained.parts, title=title))
    print(f"{errors_table(trained)}\n")
    for part in trained.parts:
        print(f"{part.name}: {formula(part.model)}")
    print(f"\nlatency: {output / 'request_latency.json'}")
    print(f"plot: {output / 'report.png'}")
    print(json.dumps(report, separators=(",", ":")), flush=True)


def formula(model: Bilinear) -> str:
    """Returns a part as people read it, in microseconds."""
    terms = (
        (model.base, ""),
        (model.batch, " b"),
        (model.length, " l"),
        (model.both, " b l"),
    )
    return " + ".join(f"{value * 1e6:.4g}{unit}" for value, unit in terms) + " us"
