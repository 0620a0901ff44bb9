"""Measures a server by replaying a real request trace, against its SLOs.

Latency counts from the moment a request was *due*. By default rates and objectives are
multiples of what the first server does on this machine, which is measured and printed
first.

  jserve-bench --policies=fcfs,edf                  a jserve process for each
  jserve-bench --url=http://127.0.0.1:8000          any OpenAI-compatible server

Prints tables and, unless stdout is a terminal, one JSON document as the last line. The
same numbers go to report.json in --output, with a page in report.html; progress goes to
stderr. An interrupted sweep continues where it stopped. With --qps, and classes in
seconds, nothing is measured first; otherwise a --step_log holds the steps of these
measurements too.
"""

import asyncio
import pathlib
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from jserve.flags import define_config_flags, define_engine_flags
from jserve.program import ProgramError, run_program
from jserve.progress import Progress, timed_lines
from jserve_tools.load.config import LoadConfig, ReplayConfig
from jserve_tools.measuring.config import BenchConfig, ServersConfig
from jserve_tools.reporting.config import ReportConfig

if TYPE_CHECKING:
    from jserve_tools.measuring.benchmark import Benchmark

_read_load = define_config_flags(LoadConfig, group="Load", exclude=("replay",))
_read_replay = define_config_flags(ReplayConfig, group="Replay")
_read_servers = define_config_flags(ServersConfig, group="Servers")
_read_report = define_config_flags(ReportConfig, group="Report")
_read_engine = define_engine_flags(
    exclude=(
        # The benchmark sets these itself. Answers have the lengths of the trace, so no
        # length is predicted.
        *("policy", "bucket_strategy", "seed", "length_estimator"),
        *("enable_prefix_caching", "capture_logits"),
    )
)
flags.FLAGS.set_default("output", pathlib.Path("out/bench"))
flags.DEFINE_bool(
    "launch", True, "Without effect: servers are launched.", module_name="Servers"
)


async def _run(benchmark: "Benchmark") -> None:
    # SIGTERM stops the server that was launched, as Ctrl-C does.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await benchmark.run()


def _publish(
    benchmark: "Benchmark", old_report: Mapping[str, Any] | None, progress: Progress
) -> None:
    """Writes the report, and prints the tables and the JSON line."""
    from jserve_tools.reporting.metrics import run_tables
    from jserve_tools.reporting.publishing import publish

    report = benchmark.report(["jserve-bench", *sys.argv[1:]])
    config = benchmark.config.report
    runs = report["runs"]
    if benchmark.num_resumed:
        print(
            f"{benchmark.num_resumed} of {len(runs)} runs were finished by an "
            "interrupted call; --noresume measures all of them again"
        )
    print(f"\n{run_tables(report)}")
    with progress.doing("writing the report"):
        text = publish(report, config, old_report, benchmark.finished)
    print(text, flush=True)
    pages = [config.output / name for name in ("report.html", "report.json")]
    progress.note(f"open {next(one for one in pages if one.exists())}")


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark that the flags describe."""
    del argv  # the flags say it all
    progress = Progress(timed_lines())
    try:
        config = BenchConfig(
            load=_read_load(replay=_read_replay()),
            servers=_read_servers(),
            engine=_read_engine(),
            report=_read_report(),
        )
        old_report = config.report.probe()
        with progress.doing("starting the benchmark"):
            from jserve_tools.measuring.benchmark import Benchmark  # imports aiohttp

            benchmark = Benchmark(config, progress)
        asyncio.run(_run(benchmark))
    except (ValueError, OSError, TimeoutError, RuntimeError) as error:
        raise ProgramError(str(error)) from error
    except asyncio.CancelledError as error:
        raise ProgramError("ended by SIGTERM; finished runs are kept") from error
    _publish(benchmark, old_report, progress)


def run() -> None:
    """Entry point of the command `jserve-bench`."""
    run_program(sys.modules[__name__])


if __name__ == "__main__":
    run()
