"""Whether the real engine ranks `fcfs`, `sjf` and `annealing` as the simulator does.

  python benchmarks/annealing/engine_ranking.py --step=prepare
  jserve-bench --launch ... ; jserve-simulate ...      # as `make rank-annealing` does
  python benchmarks/annealing/engine_ranking.py --step=compare

`prepare` draws the two kinds of task, lengths and objectives scaled to the engine of a
profile: lengths by a quarter; 30 s and 10 s by the ratio of what the mean request takes
alone here and, at full length, on the studies' GPU; 50 ms by the ratio of a lone decode
step. Arrivals are Poisson, at a multiple of what the profile's machine does under
`fcfs` when all come at once. Both programs then replay the same trace.

`compare` pools the engine's turns, and writes both rankings to engine.json and into the
README beside it. The last line of stdout is one JSON document.
"""

import csv
import dataclasses
import io
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ranking import pool_runs, ranking_table
from served import MACHINE, MAX_MODEL_LEN
from task_classes import AZURE, CHAT, CODE, draw_requests

from jserve.program import ProgramError, run_program
from jserve_sched.bucket_strategies import PowersOfTwo
from jserve_sched.cost_model import CostModel, OraclePredictor
from jserve_sched.policies import make_policy
from jserve_sched.simulator import make_scheduler, simulate
from jserve_sched.workload import Arrival, Yardstick, isolated_times
from jserve_tools.documents import plain, write_whole
from jserve_tools.machines import load_machine
from jserve_tools.marked_pages import fill_page

_HERE = pathlib.Path(__file__).parent
_LENGTH_SCALE = 0.25

_STEP = flags.DEFINE_enum("step", "prepare", ["prepare", "compare"], "What to do.")
_FOLDER = flags.DEFINE_string(
    "folder", "out/annealing/engine", "Of the trace, the classes and both reports."
)
_PROFILE = flags.DEFINE_string(
    "profile", "table:benchmarks/buckets/samples.npz", "The engine, as a machine."
)
_NUM_REQUESTS = flags.DEFINE_integer(
    "num_requests", 400, "Requests of the trace.", lower_bound=2
)
_MAX_NUM_SEQS = flags.DEFINE_integer(
    "max_num_seqs", 4, "Most requests that run at once.", lower_bound=1
)
_LOAD = flags.DEFINE_float(
    "load", 1.2, "Rate of the trace, in capacities of the profile.", lower_bound=0.01
)
_OUTPUT = flags.DEFINE_string(
    "output", "", "Folder of engine.json and the page; this program's if empty."
)


def _scaled(arrivals: Sequence[Arrival]) -> list[Arrival]:
    return [
        dataclasses.replace(
            one,
            num_prompt_tokens=max(1, round(one.num_prompt_tokens * _LENGTH_SCALE)),
            max_tokens=max(1, round(one.max_tokens * _LENGTH_SCALE)),
        )
        for one in arrivals
    ]


def _alone_s(arrivals: Sequence[Arrival], yardstick: Yardstick) -> float:
    """Returns what the mean request takes on an idle machine, seconds."""
    return statistics.fmean(
        yardstick.isolated_ttft_s(one.num_prompt_tokens)
        + (one.max_tokens - 1) * yardstick.step_s
        for one in arrivals
    )


def _yardstick(machine: CostModel) -> Yardstick:
    return isolated_times(machine, max_prompt_tokens=MAX_MODEL_LEN)


def _capacity_qps(machine: CostModel, arrivals: Sequence[Arrival]) -> float:
    """Returns requests per second under `fcfs` when all come at once."""
    model: Any = dataclasses.replace(machine, max_num_seqs=_MAX_NUM_SEQS.value)
    buckets = PowersOfTwo().table(
        max_num_seqs=model.max_num_seqs,
        max_num_batched_tokens=model.max_num_batched_tokens,
        block_tokens=machine.block_tokens,
    )
    scheduler = make_scheduler(
        policy=make_policy("fcfs"),
        cost_model=model,
        buckets=buckets,
        predictor=OraclePredictor(model, buckets.block_tokens),
        max_model_len=MAX_MODEL_LEN,
    )
    result = simulate(scheduler, model, arrivals, lag=1)
    return len(arrivals) / result.end_s


def _prepare(folder: pathlib.Path) -> dict[str, Any]:
    """Writes trace.csv and classes.json; returns how they were scaled."""
    machine = load_machine(_PROFILE.value)
    ours, theirs = _yardstick(machine), _yardstick(load_machine(MACHINE))
    count = _NUM_REQUESTS.value
    full = draw_requests(AZURE, num_requests=count, seed=0)
    qps = _LOAD.value * _capacity_qps(machine, _scaled(full))
    time_ratio = _alone_s(_scaled(full), ours) / _alone_s(full, theirs)
    step_ratio = ours.step_s / theirs.step_s
    assert CODE.ttlt_s and CHAT.ttft_s and CHAT.tbt_s
    classes = [
        dataclasses.replace(CODE, ttlt_s=CODE.ttlt_s * time_ratio),
        dataclasses.replace(
            CHAT, ttft_s=CHAT.ttft_s * time_ratio, tbt_s=CHAT.tbt_s * step_ratio
        ),
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arrival_s", "prompt_tokens", "output_tokens", "service_class"])
    for one in _scaled(draw_requests(AZURE, num_requests=count, seed=0, qps=qps)):
        arrival = f"{one.arrival_s:.3f}"
        lengths = (one.num_prompt_tokens, one.max_tokens)
        writer.writerow([arrival, *lengths, one.service_class])
    write_whole(folder / "trace.csv", text.getvalue().encode())
    rows = [
        {name: value for name, value in dataclasses.asdict(one).items() if value}
        for one in classes
    ]
    write_whole(folder / "classes.json", f"{json.dumps(rows, indent=1)}\n".encode())
    return {
        "qps": qps,
        "time_ratio": time_ratio,
        "step_ratio": step_ratio,
        "service_classes": rows,
    }


def _read_runs(path: pathlib.Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(path.read_text())["runs"])
    except (OSError, ValueError, KeyError) as error:
        raise ProgramError(f"{path} is no report: {error!r}") from error


def _compare(folder: pathlib.Path, output: pathlib.Path) -> dict[str, Any]:
    found = {
        place: pool_runs(_read_runs(folder / place / "report.json"))
        for place in ("engine", "simulator")
    }
    orders = [[one["policy"] for one in entries] for entries in found.values()]
    report = {"is_same_order": orders[0] == orders[1], **found}
    text = json.dumps(plain(report), indent=1)
    write_whole(output / "engine.json", f"{text}\n".encode())
    page = output / "README.md"
    table = ranking_table(found)
    if page.exists():
        tables = {"engine": table}
        write_whole(page, fill_page(page.read_text(), tables).encode())
    print(f"{table}\n")
    return report


def main(argv: Sequence[str]) -> None:
    """Prepares, or compares."""
    del argv  # the flags say it all
    folder = pathlib.Path(_FOLDER.value)
    try:
        if _STEP.value == "prepare":
            done = _prepare(folder)
        else:
            done = _compare(folder, pathlib.Path(_OUTPUT.value or _HERE))
    except (ValueError, OSError) as error:
        raise ProgramError(str(error)) from error
    print(json.dumps(plain(done)))


if __name__ == "__main__":
    run_program(sys.modules[__name__])
