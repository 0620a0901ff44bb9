"""The error of roofline costs for each kind of step, against measured kernel times.

  python -m benchmarks.roofline_costs.errors

A step is measured where attention was: at all sizes of the profiles in
`jserve_tools/gpu_profiles` whose KV fits the card (Llama-3.1-8B, vLLM 0.19). Its time
is the sum of its kernels'. The costs are compared with it in several variants, from
the roofline of a whole step at the vendor's peaks to what `jserve-simulate` takes, and
then with shares of which this card's profile knows nothing.

The shares are fitted here, too: to the logarithm of the steps' times, each scenario
with the same weight. The target is a mean absolute error of 15 % for every kind.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.study import markdown
from jserve.program import run_program
from jserve_sched.buckets.table import Bucket
from jserve_sched.simulation.roofline import DEVICES, Device, RooflineCost
from jserve_sched.steps import features
from jserve_tools.gpu_profiles.machines import (
    ATTENTION_COLUMNS,
    PROFILES,
    gpu_cost_model,
    load_machine,
    read_points,
)
from jserve_tools.reporting.documents import commit, plain, write_whole

TARGET = 0.15  # mean absolute error of a kind of step
CARDS = ("rtx4090", "rtxpro6000")
SHARES = ("products", "attention", "reading", "mixed", "key_s")
AS_SIMULATED = "as simulated"
_PAGE_SIZE = 16
_SHORT = 1024  # tokens of context
_FEW, _SMALL = 8, 256  # decodes, and tokens of a chunk


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of a card's profile.

    Attributes:
      sizes: `[4, N]`: tokens of the chunk, tokens before it, decodes, their context.
      matrix: Features `[N, F]`, of steps without padding.
      time_s: Measured times `[N]`, seconds.
    """

    sizes: np.ndarray
    matrix: np.ndarray
    time_s: np.ndarray

    def kinds(self) -> dict[str, np.ndarray]:
        """Returns kind of step -> whether a step is of it, `[N]`."""
        chunk, cached, decodes, context = self.sizes
        few, small = decodes <= _FEW, chunk < _SMALL
        short = np.where(chunk > 0, cached, context) < _SHORT
        parts = {
            "decode": (chunk == 0, few, short),
            "prefill": (decodes == 0, small, short),
            "mixed": ((chunk > 0) & (decodes > 0), small, few),
        }
        words = {
            "decode": ("1 to 8 rows", "16 to 256 rows", "below 1k", "1k and more"),
            "prefill": ("chunk 16 to 128", "256 to 2k", "after < 1k", "after >= 1k"),
            "mixed": ("chunk 16 to 128", "256 to 2k", "1 to 8 rows", "16 to 256 rows"),
        }
        found = {}
        for name, (is_it, first, second) in parts.items():
            one, other, low, high = words[name]
            for i, of_first in ((one, first), (other, ~first)):
                for j, of_second in ((low, second), (high, ~second)):
                    found[f"{name}, {i}, {j}"] = is_it & of_first & of_second
            found[name] = is_it
        return found


def measured(card: str) -> Steps:
    """Returns the steps of a card of `CARDS` that fit its KV pool."""
    machine = gpu_cost_model(f"{card}-llama3.1-8b-table")
    points = read_points(PROFILES / card / "attention.csv", ATTENTION_COLUMNS[:4])
    chunk, cached, decodes, context = points.astype(int).T
    fits = chunk + cached + decodes * context <= machine.num_kv_tokens
    matrix = np.array(
        [
            features.step_features(
                [features.Span(context, 1)] * decodes,
                [features.Span(cached, chunk)] if chunk else [],
                Bucket(decodes, chunk, 1),
                _PAGE_SIZE,
            )
            for chunk, cached, decodes, context in points[fits].astype(int).tolist()
        ]
    )
    return Steps(points[fits].T, matrix, machine.step_s(matrix, 1))


def machine_of(card: str, device: Device) -> RooflineCost:
    """Returns the costs of the profiles' model on a device with a card's figures."""
    found = load_machine(f"roofline:device={card}:model=llama-8b")
    assert isinstance(found, RooflineCost)
    return dataclasses.replace(found, device=device, page_size=_PAGE_SIZE)


def shares_of(device: Device) -> dict[str, Any]:
    """Returns those figures of a device that are not its vendor's."""
    names = (*SHARES, "layer_s")
    return {name: getattr(device, name) for name in names}


def fitted_shares(card: str, steps: Steps) -> dict[str, float]:
    """Returns the shares with the smallest errors, in the median sense."""
    from scipy.optimize import least_squares

    kinds = features.scenarios(steps.matrix)
    weight = 1 / np.sqrt(np.bincount(kinds)[kinds])
    start = dict(zip(SHARES, (0.9, 0.5, 0.9, 0.5, 25e-9), strict=True))

    def residuals(logarithms: np.ndarray) -> np.ndarray:
        shares: dict[str, Any] = dict(
            zip(SHARES, np.exp(logarithms).tolist(), strict=True)
        )
        device = dataclasses.replace(DEVICES[card], **shares)
        time_s = machine_of(card, device).step_s(steps.matrix, 1)
        found: np.ndarray = 100 * weight * np.log(time_s / steps.time_s)
        return found

    found = least_squares(residuals, np.log(list(start.values())), loss="soft_l1")
    return dict(zip(SHARES, np.exp(found.x).tolist(), strict=True))


def variants(card: str, steps: Steps) -> dict[str, np.ndarray]:
    """Returns variant -> times `[N]`, seconds."""
    device = DEVICES[card]
    work = machine_of(card, device).work(steps.matrix, 1).values()
    compute, read = (np.array(one) for one in zip(*work, strict=True))
    of_parts = np.array(
        [[device.products], [device.products], [device.attention], [device.attention]]
    )
    whole_s = compute.sum(0) / device.operations, read.sum(0) / device.bandwidth
    parts_s = np.maximum(
        compute / (device.operations * of_parts),
        read / (device.bandwidth * device.reading),
    )
    other = next(one for one in CARDS if one != card)
    plain_device = dataclasses.replace(device, mixed=1.0, key_s=0.0)
    assumed: dict[str, Any] = {
        field.name: field.default
        for field in dataclasses.fields(Device)
        if field.name in shares_of(device)
    }
    devices = {
        "hypot": plain_device,
        AS_SIMULATED: device,
        "the other card's shares": dataclasses.replace(
            device, **shares_of(DEVICES[other])
        ),
        "assumed shares": dataclasses.replace(device, **assumed),
    }
    return {
        "whole step, peaks": np.maximum(*whole_s),
        "parts, shares": parts_s.sum(axis=0),
        **{
            name: machine_of(card, one).step_s(steps.matrix, 1)
            for name, one in devices.items()
        },
    }


def report_of(card: str) -> dict[str, Any]:
    """Returns the errors of every kind of step on a card, by variant."""
    steps = measured(card)
    kinds = steps.kinds()
    errors = {}
    for name, time_s in variants(card, steps).items():
        error = time_s / steps.time_s - 1.0
        errors[name] = {
            kind: {
                "mean": float(error[mask].mean()),
                "mean_absolute": float(np.abs(error[mask]).mean()),
                "p90_absolute": float(np.quantile(np.abs(error[mask]), 0.9)),
                "largest_absolute": float(np.abs(error[mask]).max()),
                "share_within_target": float((np.abs(error[mask]) <= TARGET).mean()),
            }
            for kind, mask in kinds.items()
        }
    return {
        "num_steps": {kind: int(mask.sum()) for kind, mask in kinds.items()},
        "stated_shares": shares_of(DEVICES[card]),
        "fitted_shares": fitted_shares(card, steps),
        "errors": errors,
    }


def tables(cards: Mapping[str, Any]) -> str:
    """Returns Markdown with a table for each card."""
    parts = []
    for card, report in cards.items():
        errors = report["errors"]
        rows = []
        for kind, count in report["num_steps"].items():
            means = [
                f"{100 * errors[name][kind]['mean_absolute']:.1f}" for name in errors
            ]
            full = errors[AS_SIMULATED][kind]
            more = [
                f"{100 * full['mean']:+.1f}",
                f"{100 * full['p90_absolute']:.1f}",
                f"{100 * full['largest_absolute']:.1f}",
                f"{100 * full['share_within_target']:.0f}",
            ]
            rows.append([kind, str(count), *means, *more])
        header = [
            *("kind of step", "steps", *errors),
            *("bias", "90th percentile", "largest", "% of steps within 15 %"),
        ]
        parts.append(
            f"**{card}**: mean absolute error in %, by variant; the last four columns "
            f'are of "{AS_SIMULATED}"\n\n{markdown(header, rows)}'
        )
    return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str]) -> int:
    """Writes tables and figures beside this file; returns 1 if the target is missed."""
    del argv
    cards = {card: report_of(card) for card in CARDS}
    text = tables(cards)
    print(text)
    missed = [
        f"{card}: {kind}"
        for card, report in cards.items()
        for kind, one in report["errors"][AS_SIMULATED].items()
        if one["mean_absolute"] > TARGET
    ]
    print("missed: " + ("; ".join(missed) or "none"))
    document = plain({"commit": commit(), "target": TARGET, "cards": cards})
    folder = pathlib.Path(__file__).parent
    content = json.dumps(document, indent=1) + "\n"
    write_whole(folder / "errors.json", content.encode())
    write_whole(folder / "errors.md", text.encode())
    return 1 if missed else 0


if __name__ == "__main__":
    run_program(sys.modules[__name__])
