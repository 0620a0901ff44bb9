"""Measures a server by replaying a real request trace, and says if it kept its word.

Latency counts from the moment a request was *due*, so a server that falls behind
cannot hide it. Load and objectives are multiples of what the server does on this
machine; both are measured first and printed.

  jserve-bench --policies=fcfs,edf                  engines in this process
  jserve-bench --launch --policies=fcfs,edf         servers of our own, over HTTP
  jserve-bench --url=http://127.0.0.1:8000          any OpenAI-compatible server
  jserve-bench --mode=closed --clients=1,16,32      throughput at fixed lengths
  jserve-bench --policies=fcfs,sliding --bucket_strategies=pow2,two_bit,linear
                                                    each policy with each strategy

Prints tables for people; the last line of stdout is one JSON document. The same goes
to report.json in --output, with a picture in report.png and a page in report.html.
A sweep that was interrupted goes on where it stopped. With --step_log the record holds
what measures idle times and capacity too; --qps and classes in seconds need neither.
"""

import asyncio
import dataclasses
import logging
import pathlib
import signal
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from jserve.config import EngineConfig
from jserve.config_flags import define_config_flags
from jserve.program import ProgramError, run_program
from jserve_sched.slo import BEST_EFFORT, ServiceClass, parse_service_classes
from jserve_tools.benchmark import Benchmark, Findings
from jserve_tools.documents import document, one_line
from jserve_tools.idle_flags import check_flags
from jserve_tools.load_flags import define_one_shot_flag
from jserve_tools.loads import ClosedLoop, Replay, describe
from jserve_tools.publishing import publish
from jserve_tools.report_config import ReportConfig
from jserve_tools.run_store import RunStore
from jserve_tools.server_flags import define_server_flags
from jserve_tools.staircases import run_staircase
from jserve_tools.tables import host_table, run_tables
from jserve_tools.targets import Servers
from jserve_tools.workload import (
    DEFAULT_SERVICE_CLASSES,
    FIRST_TOKEN_ID,
    LAST_TOKEN_ID,
    Answers,
    Workload,
)
from jserve_tools.workload_trace import (
    DEFAULT_TRACE,
    TRACE_FORM,
    TraceRow,
    mean_rate,
    read_trace,
    scale_lengths,
)

_DEFAULT_ROWS = 200  # of a trace
_read_servers = define_server_flags()
_MODE = flags.DEFINE_enum(
    "mode",
    "replay",
    ("replay", "closed"),
    "replay: a trace at its own times, stretched to a rate. closed: --clients that "
    "each send the next request of --prompt_tokens and --output_tokens when one ends.",
)
_TRACE = flags.DEFINE_string(
    "trace",
    str(DEFAULT_TRACE),
    f"{TRACE_FORM}; the default comes with jserve.",
)
_NUM_REQUESTS = flags.DEFINE_integer(
    "num_requests",
    0,
    "Requests of a run: the first of the trace. 0 takes 200, or all of a shorter "
    "trace, and 8 a client in a closed loop.",
    lower_bound=0,
)
_LENGTH_SCALE = flags.DEFINE_float(
    "length_scale",
    1.0,
    "Multiplies the trace's prompt and output lengths.",
    lower_bound=1e-4,
    upper_bound=1e4,
)
_LOAD = flags.DEFINE_list(
    "load", None, "Rates as shares of the measured capacity. [default: 0.9]"
)
_QPS = flags.DEFINE_list("qps", None, "Rates in requests per second.")
_RATE_SCALE = flags.DEFINE_float(
    "rate_scale",
    None,
    "A rate as a multiple of the trace's own.",
    lower_bound=1e-6,
    upper_bound=1e6,
)
_ONE_SHOT = define_one_shot_flag()
_IGNORE_EOS = flags.DEFINE_bool(
    "ignore_eos",
    True,
    "Answers have all the tokens that they ask for. Otherwise they may end before, "
    "where the model ends them: then there are lengths to guess (--length_estimator). "
    "Capacity is that of the trace's lengths all the same.",
)
_DECLARED_MAX_TOKENS = flags.DEFINE_integer(
    "declared_max_tokens",
    0,
    "Most output tokens that each request asks for; 0 for what the trace says. Needs "
    "--noignore_eos.",
    lower_bound=0,
)
_TEMPERATURE = flags.DEFINE_float(
    "temperature",
    0.0,
    "Of sampling; above 0 a model with random weights ends its answers at some time.",
    lower_bound=0.0,
    upper_bound=2.0,
)
_SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Decides classes, prompts and sampling.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
_SERVICE_CLASSES = flags.DEFINE_string(
    "service_classes",
    None,
    "JSON file: a list of classes, each with name, share (0 to 1) and ttft_s or "
    "ttft_slowdown, tbt_s or tbt_step_multiple, ttlt_s (seconds, or multiples of "
    "an idle server's time). Classes that the trace names need no share. Default: a "
    "tight and a lax class.",
)
_CAPACITY_S = flags.DEFINE_float(
    "capacity_s", 10.0, "Seconds to measure capacity for, once the server is full."
)
_CAPACITY_SLOTS = flags.DEFINE_integer(
    "capacity_slots",
    0,
    "Requests at once that fill the server; 0 asks the server.",
    lower_bound=0,
    upper_bound=4096,
)
_CLIENTS = flags.DEFINE_list(
    "clients", ["32"], "Numbers of clients of a closed loop, one run each."
)
_PROMPT_TOKENS = flags.DEFINE_integer(
    "prompt_tokens", 128, "Prompt tokens in a closed loop.", lower_bound=1
)
_OUTPUT_TOKENS = flags.DEFINE_integer(
    "output_tokens", 64, "Output tokens in a closed loop.", lower_bound=1
)
_FIRST_PROMPT_TOKEN = flags.DEFINE_integer(
    "first_prompt_token",
    FIRST_TOKEN_ID,
    "Least token id of a prompt; this to last_prompt_token are in any vocabulary.",
)
_LAST_PROMPT_TOKEN = flags.DEFINE_integer(
    "last_prompt_token", LAST_TOKEN_ID, "Greatest token id of a prompt."
)
_read_report_config = define_config_flags(ReportConfig, group="Report")
flags.FLAGS.set_default("output", "out/bench")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options:
    """The flags, checked."""

    servers: Servers
    load: Replay | ClosedLoop
    workload: Workload
    trace: str
    report: ReportConfig
    old_report: dict[str, Any] | None


def _numbers(name: str, texts: Sequence[str] | None) -> list[float]:
    try:
        return [float(text) for text in texts or ()]
    except ValueError:
        raise ValueError(f"{name}={','.join(texts or ())} is not numbers") from None


def _classes() -> Sequence[ServiceClass]:
    if _SERVICE_CLASSES.value is None:
        return DEFAULT_SERVICE_CLASSES
    path = pathlib.Path(_SERVICE_CLASSES.value).expanduser()
    return parse_service_classes(path.read_text())


def _replay(
    trace: pathlib.Path, classes: Sequence[ServiceClass]
) -> tuple[Replay, list[TraceRow]]:
    rows = read_trace(trace, num_requests=_NUM_REQUESTS.value, classes=classes)
    if not _NUM_REQUESTS.value:
        rows = rows[:_DEFAULT_ROWS]
    rows = scale_lengths(rows, _LENGTH_SCALE.value)
    given = [
        name
        for name, holder in (
            ("load", _LOAD),
            ("qps", _QPS),
            ("rate_scale", _RATE_SCALE),
        )
        if holder.value is not None
    ]
    if len(given) > 1:
        raise ValueError(f"give one of load, qps and rate_scale, not {given}")
    qps = _numbers("qps", _QPS.value)
    if _RATE_SCALE.value is not None:
        qps = [_RATE_SCALE.value * mean_rate(rows)]
    has_rate = bool(qps) or _ONE_SHOT.value
    load = Replay(
        is_one_shot=_ONE_SHOT.value,
        loads=() if has_rate else _numbers("load", _LOAD.value or ["0.9"]),
        qps=qps,
        capacity_s=_CAPACITY_S.value,
        capacity_slots=_CAPACITY_SLOTS.value,
    )
    return load, rows


def _options() -> _Options:
    """Reads the flags.

    Raises:
      ValueError: for a value that is wrong, naming it and the limit.
      OSError: for a file that cannot be read.
    """
    given = {name for name in flags.FLAGS if flags.FLAGS[name].present}
    if not _ONE_SHOT.value:
        given.discard("one_shot")
    if flags.FLAGS.length_estimator == EngineConfig().length_estimator:
        given.discard("length_estimator")
    check_flags(
        given,
        mode=_MODE.value,
        url=flags.FLAGS.url or "",
        is_launched=flags.FLAGS.launch,
        ignores_eos=_IGNORE_EOS.value,
    )
    servers = _read_servers()
    report = _read_report_config()
    load: Replay | ClosedLoop
    classes: Sequence[ServiceClass] = (BEST_EFFORT,)
    if _MODE.value == "replay":
        trace = pathlib.Path(_TRACE.value).expanduser()
        classes = _classes()
        load, rows = _replay(trace, classes)
        name = trace.name
    else:
        rows = [TraceRow(0.0, _PROMPT_TOKENS.value, _OUTPUT_TOKENS.value)]
        name = "fixed lengths"
        load = ClosedLoop(
            num_clients=[int(n) for n in _numbers("clients", _CLIENTS.value)],
            num_requests=_NUM_REQUESTS.value,
        )
    return _Options(
        servers=servers,
        load=load,
        workload=Workload(
            rows=rows,
            seed=_SEED.value,
            classes=classes,
            first_id=_FIRST_PROMPT_TOKEN.value,
            last_id=_LAST_PROMPT_TOKEN.value,
            answers=Answers(
                ignore_eos=_IGNORE_EOS.value,
                declared_max_tokens=_DECLARED_MAX_TOKENS.value,
                temperature=_TEMPERATURE.value,
            ),
        ),
        trace=name,
        report=report,
        old_report=report.probe(),
    )


def _say(line: str) -> None:
    print(line, flush=True)


async def _find(options: _Options, store: RunStore) -> Findings:
    # A polite end stops the server that was launched, as Ctrl-C does.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await Benchmark(
        servers=options.servers,
        load=options.load,
        workload=options.workload,
        output=options.report.output,
        store=store,
        say=_say,
    ).run()


def _publish(
    options: _Options, findings: Findings, store: RunStore, command: Sequence[str]
) -> None:
    """Writes the report and the picture, and prints the tables and the JSON line."""
    summaries = [run.summary for run in findings.runs]
    load = {
        name: value
        for name, value in dataclasses.asdict(options.load).items()
        if value not in ((), [], 0)
    }
    workload = describe(options.workload, options.trace)
    if _ONE_SHOT.value:
        workload["is_one_shot"] = True
    report = document(
        command=command,
        facts=findings.facts,
        workload=workload | {"mode": _MODE.value, "length_scale": _LENGTH_SCALE.value},
        runs=summaries,
        extra={
            "load": load,
            "yardstick": findings.yardstick,
            "capacity": findings.capacity,
            "staircase": run_staircase(
                summaries, (findings.facts.get("engine") or {}).get("block_tokens")
            ),
            "num_resumed": findings.num_resumed,
        },
    )
    if findings.num_resumed:
        _say(
            f"{findings.num_resumed} of {len(summaries)} runs are those of an "
            "interrupted call; --noresume measures all anew"
        )
    _say(f"\n{run_tables(summaries)}")
    for summary in summaries:
        if summary.get("host_profile"):
            _say(f"\n{host_table(summary['host_profile'])}")
    publish(report, options.report, options.old_report, None, say=_say)
    store.remove_used()
    _say(one_line(report))


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark that the flags describe."""
    del argv  # the flags say it all
    # An engine in this process would tell of every backend that is not there.
    logging.getLogger("jax").setLevel(logging.WARNING)
    try:
        options = _options()
    except (ValueError, OSError) as error:
        raise ProgramError(str(error)) from error
    try:
        store = RunStore(options.report.output / "runs", resumes=options.report.resume)
        findings = asyncio.run(_find(options, store))
    except (ValueError, OSError, TimeoutError, RuntimeError) as error:
        raise ProgramError(str(error)) from error
    except asyncio.CancelledError as error:
        raise ProgramError("ended by SIGTERM; finished runs are kept") from error
    _publish(options, findings, store, ["jserve-bench", *sys.argv[1:]])


def run() -> None:
    """The console script."""
    run_program(sys.modules[__name__])


if __name__ == "__main__":
    run()
