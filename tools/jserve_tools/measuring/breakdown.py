"""Where a step's time goes: the host's work against XLA's, medians per step.

XLA's time is known only if the host does nothing meanwhile. Without overlap it is the
time that the host spends on launching a step and waiting for it; everything else is
Python's. With overlap the device works while the host plans the next step, so a step's
wait is only a lower bound, and no device time is given.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from jserve_sched.steps.record import StepRecord

_PARTS = ("plan", "transfer", "launch", "wait", "apply")
_FEW_STEPS = 10  # fewer of a kind have no median worth reporting


def _kinds(steps: Sequence[StepRecord]) -> dict[str, Sequence[StepRecord]]:
    most_rows = max(step.used_rows for step in steps)
    decodes = [step for step in steps if not step.num_blocks]
    fullest = [step for step in decodes if step.used_rows == most_rows]
    kinds = {
        "all steps": steps,
        "with prefill": [step for step in steps if step.num_blocks],
        "decode only": decodes,
        f"decode only, {most_rows} rows": fullest,
    }
    least = min(_FEW_STEPS, len(steps))
    return {name: group for name, group in kinds.items() if len(group) >= least}


def _times_ms(step: StepRecord) -> dict[str, float]:
    """Returns a step's parts and the host's and the device's time, milliseconds."""
    times_s = {name: float(getattr(step, f"{name}_s")) for name in _PARTS}
    on_host_s = sum(one for name, one in times_s.items() if name != "wait")
    times_s["bookkeeping"] = step.host_s - on_host_s
    times_s["host"] = step.host_s - step.launch_s
    times_s["device"] = step.launch_s + step.wait_s
    return {name: one * 1e3 for name, one in times_s.items()}


def break_down(
    steps: Sequence[StepRecord], *, detokenise_s: float | None, has_overlap: bool
) -> list[dict[str, Any]]:
    """Returns the median of each part for each kind of step, in milliseconds.

    `host_ms` is the host's time without launching, but with bookkeeping and text.
    `device_ms` is launching and waiting, and `host_to_device` their ratio; both are
    there only without overlap. `detokenise_s` is the median time to turn a step's
    tokens into text; None if it is unknown.
    """
    found = []
    for name, group in _kinds(steps).items() if steps else ():
        rows = [_times_ms(step) for step in group]
        parts = {part: statistics.median(row[part] for row in rows) for part in rows[0]}
        host_ms, device_ms = parts.pop("host"), parts.pop("device")
        if detokenise_s is not None:
            parts["detokenise"] = detokenise_s * 1e3
            host_ms += parts["detokenise"]
        entry: dict[str, Any] = {
            "steps": name,
            "num_steps": len(group),
            "overlap": has_overlap,
            "median_ms": parts,
            "host_ms": host_ms,
        }
        if not has_overlap:
            entry["device_ms"] = device_ms
            entry["host_to_device"] = host_ms / max(device_ms, 1e-9)
        found.append(entry)
    return found
