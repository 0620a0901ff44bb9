"""Steps as a Chrome trace, which ui.perfetto.dev and chrome://tracing open.

Device steps are one track, and those that took far longer than predicted are shown
again on another, with the reason; the host's work and what was compiled are below, as
far as they are known.

  python -m jserve.records.chrome_trace steps.jsonl > trace.json     (of a step log)
"""

import argparse
import collections
import json
import pathlib
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from jserve.records.events import ProgramStart
from jserve.records.step_log import fields_of, read_step
from jserve_sched.buckets.table import Bucket
from jserve_sched.steps.record import StepRecord

_SLOW_RATIO = 1.5  # of measured to predicted time
_FAR_RATIO = 1.5  # of the KV pages read to those usual in its bucket
_SEEN_LATE = 0.05  # share of its time that the host launched a step and waited for it
_DEVICE, _SLOW, _HOST, _COMPILER = range(1, 5)
_TRACKS = {
    _DEVICE: "device steps",
    _SLOW: f"slow steps: over {_SLOW_RATIO:g} times their prediction",
    _HOST: "host: plan, pack, launch, wait, apply",
    _COMPILER: "compilations",
}


def chrome_trace(
    steps: Sequence[StepRecord], *, name: str, programs: Sequence[ProgramStart] = ()
) -> dict[str, Any]:
    """Returns a trace in the Trace Event Format, for JSON.

    Args:
      steps: In order. The host's work is shown if they say when they were launched.
      name: What ran them; shown as the process.
      programs: What was compiled or loaded, at times on the clock of the steps.
    """
    events = [_metadata("process_name", name, 0)]
    events += [_metadata("thread_name", text, track) for track, text in _TRACKS.items()]
    groups = collections.defaultdict[Bucket, list[StepRecord]](list)
    for step in steps:
        groups[step.bucket()].append(step)
    for bucket, group in groups.items():
        usual = {
            field: statistics.median(getattr(step, field) for step in group)
            for field in ("duration_s", "decode_pages", "block_pages")
        }
        for step in group:
            args = _facts(step) | _causes(step, usual)
            span = str(bucket), step.start_s, step.end_s, args
            events.append(_slice(_DEVICE, *span))
            if "slow_because" in args:
                events.append(_slice(_SLOW, *span))
    for step in steps:
        if step.launched_s:
            events += _host_slices(step)
    for number, one in enumerate(programs):
        # Several are compiled at once: asynchronous events may overlap.
        for phase, time_s in (("b", one.start_s), ("e", one.end_s)):
            label = {"name": f"{one.source} {one.program}", "cat": "compile"}
            place = {"pid": 1, "tid": _COMPILER, "id": number}
            events.append({"ph": phase, **label, **place, "ts": round(time_s * 1e6)})
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _metadata(kind: str, name: str, track: int) -> dict[str, Any]:
    args = {"name": name}
    return {"ph": "M", "name": kind, "pid": 1, "tid": track, "args": args}


def _slice(
    track: int, name: str, start_s: float, end_s: float, args: dict[str, Any]
) -> dict[str, Any]:
    # In whole microseconds, both ends, so that one ends where the next begins.
    start, end = round(start_s * 1e6), round(end_s * 1e6)
    times = {"ts": start, "dur": end - start}
    return {"ph": "X", "name": name, "pid": 1, "tid": track, **times, "args": args}


def _host_slices(step: StepRecord) -> Iterator[dict[str, Any]]:
    pack_s = step.launched_s - step.transfer_s
    for name, start_s, duration_s in (
        ("plan", pack_s - step.plan_s, step.plan_s),
        ("pack", pack_s, step.transfer_s),
        ("launch", step.launched_s, step.launch_s),
        ("wait", step.end_s - step.wait_s, step.wait_s),
        ("apply", step.end_s, step.apply_s),
    ):
        args = {"step_id": step.step_id}
        yield _slice(_HOST, name, start_s, start_s + duration_s, args)


def _facts(step: StepRecord) -> dict[str, Any]:
    """Returns the fields of a step, and two ratios if their parts are known."""
    facts = step._asdict()
    if step.predicted_s > 0:
        facts["measured_to_predicted"] = round(step.duration_s / step.predicted_s, 2)
    if step.bucket_s > 0:
        facts["padding_share_of_time"] = round(1 - step.used_s / step.bucket_s, 3)
    return facts


def _causes(step: StepRecord, usual: dict[str, float]) -> dict[str, str]:
    """Returns why a step was slow, if it was.

    `usual` holds the medians of its bucket; it replaces a missing prediction.
    """
    usual_s = usual["duration_s"]
    expected_s = step.predicted_s or usual_s
    if step.duration_s <= _SLOW_RATIO * expected_s:
        return {}
    causes = []
    if step.num_compiling:
        causes.append(f"programs being compiled: {step.num_compiling}")
    if usual_s > _SLOW_RATIO * expected_s:
        causes.append(
            f"predicted too low: its bucket's median is {usual_s * 1e3:.1f} ms"
        )
    for kind in ("decode", "block"):
        pages, median = getattr(step, f"{kind}_pages"), usual[f"{kind}_pages"]
        if pages > _FAR_RATIO * max(median, 1):
            causes.append(f"{kind}s read {pages} KV pages, the median is {median:g}")
    attended_s = step.launch_s + step.wait_s
    if step.launched_s and attended_s < _SEEN_LATE * step.duration_s:
        causes.append("the host was busy and saw its end late")
    return {"slow_because": "; ".join(causes) or "no cause on record: other load?"}


def main() -> None:
    """Prints the trace of a step log."""
    parser = argparse.ArgumentParser(description="Prints a step log as a Chrome trace.")
    parser.add_argument("step_log", help="file that jserve --step_log wrote")
    path = parser.parse_args().step_log
    fields: Sequence[str] = ()
    steps = []
    try:
        for row in map(json.loads, pathlib.Path(path).read_text().splitlines()):
            if isinstance(row, dict):
                fields = fields_of(row)
            else:
                steps.append(read_step(fields, row))
    except (OSError, ValueError, TypeError, KeyError) as error:
        parser.error(f"step_log={path!r} cannot be read: {error}")
    json.dump(chrome_trace(steps, name=path), sys.stdout)


if __name__ == "__main__":
    main()
