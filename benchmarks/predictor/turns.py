"""Compares --predictor=auto with --predictor=table on this machine's engine, in turns.

  python -m benchmarks.predictor.turns --turns=3
  python -m benchmarks.predictor.turns --neighbour_s=120

Two servers stay up, so that `auto` keeps what it learns; in each turn both replay the
same requests, one after the other, at each load of each trace. Turns that were measured
are kept in --output and skipped. The second form has another process take a core beside
one server with `auto`, under the first load, and prints every 10 s how the last 256
predictions of each kind of step were.
"""

import collections
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

from absl import flags

from jserve.program import run_program
from jserve_sched.outcomes import wilson_interval

_TURNS = flags.DEFINE_integer("turns", 3, "Turns of each setting.")
_LOADS = flags.DEFINE_list("loads", ["0.9", "1.2"], "Shares of the capacity.")
_TRACES = flags.DEFINE_list("traces", ["azure_conv", "azure_code"], "Traces.")
_NUM = flags.DEFINE_integer(
    "num_requests", 0, "Requests of a turn; 0: about 5 minutes."
)
_SCALE = flags.DEFINE_float("length_scale", 0.25, "Factor on the trace's lengths.")
_NEIGHBOUR_S = flags.DEFINE_float("neighbour_s", 0.0, "Seconds of another process.")
_OUTPUT = flags.DEFINE_string("output", "out/predictor_turns", "Folder.")
_TURN_S = 300.0
_PORTS = {"table": 8101, "auto": 8102}
_FOLDER = pathlib.Path(__file__).parents[2] / "tools/jserve_tools/traces"


@contextlib.contextmanager
def server(predictor: str) -> Iterator[str]:
    """Runs a server; yields its URL once it is warm."""
    url = f"http://127.0.0.1:{_PORTS[predictor]}"
    cache = pathlib.Path(_OUTPUT.value) / "cache"
    log = pathlib.Path(_OUTPUT.value) / f"server_{predictor}.log"
    command = [sys.executable, "-m", "jserve", f"--predictor={predictor}"]
    command += [f"--port={_PORTS[predictor]}", f"--compile_cache_dir={cache}"]
    with (
        log.open("ab") as out,
        subprocess.Popen(command, stdout=out, stderr=out) as one,
    ):
        try:
            while one.poll() is None:
                with contextlib.suppress(OSError):
                    if get(f"{url}/health")["warm"]:
                        break
                time.sleep(2.0)
            yield url
        finally:
            one.terminate()


def get(url: str) -> Any:
    """Returns the JSON that a server answers."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def replay(url: str, folder: pathlib.Path, trace: str, *more: str) -> Any:
    """Returns the report of a replay, of an earlier call if there is one."""
    path = folder / "report.json"
    if not path.exists():
        command = [sys.executable, "-m", "jserve_tools.bench", f"--url={url}", *more]
        command += [f"--trace={_FOLDER / trace}.csv", f"--output={folder}", "--nohtml"]
        command.append(f"--length_scale={_SCALE.value}")
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(path.read_text())


def settings(url: str, trace: str) -> tuple[float, str]:
    """Returns the capacity, requests/s, and a flag for classes of equal SLOs."""
    output = pathlib.Path(_OUTPUT.value)
    first = replay(url, output / trace, trace, "--num_requests=100")
    bounds_s = collections.defaultdict[tuple[str, str], list[float]](list)
    for request in first["runs"][0]["requests"]:
        for bound, seconds in request.get("slo", {}).items():
            bounds_s[request["service_class"], bound].append(seconds)
    classes: dict[str, dict[str, Any]] = {}
    for (name, bound), values_s in bounds_s.items():
        row = classes.setdefault(name, {"name": name, "share": 0.5})
        row[bound] = statistics.median(values_s)
    path = output / f"{trace}-classes.json"
    path.write_text(json.dumps(list(classes.values())))
    return first["capacity"]["requests_per_s"], f"--service_classes={path}"


def turns(urls: dict[str, str]) -> None:
    """Measures what is missing, and prints a line for each setting."""
    output = pathlib.Path(_OUTPUT.value)
    runs = collections.defaultdict[tuple[str, str, str], list[Any]](list)
    for turn in range(_TURNS.value):
        for trace in _TRACES.value:
            capacity, classes = settings(urls["table"], trace)
            for load in _LOADS.value:
                rate = capacity * float(load)
                num_requests = _NUM.value or int(rate * _TURN_S)
                for predictor in sorted(urls, reverse=bool(turn % 2)):
                    report = replay(
                        urls[predictor],
                        output / f"{trace}-{load}-{predictor}-{turn}",
                        trace,
                        *(f"--qps={rate}", f"--seed={turn}", classes),
                        f"--num_requests={num_requests}",
                    )
                    runs[trace, load, predictor] += report["runs"]
    for setting, known in sorted(runs.items()):
        total = sum(run["num_requests"] for run in known)
        late = sum(run["num_violations"] for run in known)
        low, high = wilson_interval(late, total)
        step_ms = [
            1e3 * statistics.mean(run["step_s"][key] for run in known)
            for key in ("p50", "p99")
        ]
        compiles = sum(run["num_compiles_after_warmup"] for run in known)
        print(
            *setting,
            f"violations {late / total:.1%} ({low:.1%} to {high:.1%}) of {total}",
            f"step p50 {step_ms[0]:.2f} ms, p99 {step_ms[1]:.2f} ms",
            f"{compiles} compiled",
            json.dumps(known[-1].get("predicted_steps")),
            sep="; ",
        )


def neighbour(url: str) -> None:
    """Prints how well steps are predicted before, beside and after a neighbour."""
    output, trace = pathlib.Path(_OUTPUT.value), _TRACES.value[0]
    capacity, classes = settings(url, trace)
    rate = capacity * float(_LOADS.value[0])
    span_s = 600.0 + 2 * _NEIGHBOUR_S.value
    command = [sys.executable, "-m", "jserve_tools.bench", f"--url={url}"]
    command += [f"--qps={rate}", f"--num_requests={int(rate * span_s)}", "--nohtml"]
    command += [f"--trace={_FOLDER / trace}.csv", f"--length_scale={_SCALE.value}"]
    command += [f"--output={output / 'neighbour'}", "--noresume", classes]
    busy = [sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as load:
        start_s, other = time.monotonic(), None
        while load.poll() is None:
            passed_s = time.monotonic() - start_s
            if other is None and passed_s >= 300.0:
                other = subprocess.Popen(busy)
            if other is not None and passed_s >= 300.0 + _NEIGHBOUR_S.value:
                other.kill()
            is_there = other is not None and other.poll() is None
            print(f"{passed_s:.0f} s", "beside" if is_there else "alone", end=" ")
            print(json.dumps(get(f"{url}/jserve/steps?limit=0")["predictor"]["kinds"]))
            time.sleep(10.0)


def main(argv: list[str]) -> None:
    """Runs what the flags describe."""
    del argv
    pathlib.Path(_OUTPUT.value).mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if _NEIGHBOUR_S.value:
            neighbour(stack.enter_context(server("auto")))
        else:
            turns({name: stack.enter_context(server(name)) for name in _PORTS})


if __name__ == "__main__":
    run_program(sys.modules[__name__])
