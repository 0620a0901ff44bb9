"""Compares jserve with other servers over HTTP, with aiperf as the client of all.

  .venv/bin/python -m benchmarks.peers.compare
  .venv/bin/python -m benchmarks.peers.compare --systems=jserve,llama.cpp --clients=1,4

All serve the same weights in float32 and answer the same random prompts, greedy and
streamed, in a closed loop: 128 tokens in and 64 out for 1, 4, 16 and 32 clients; 1,024
in and 128 out for 1, 4 and 16. The servers take turns, A B A B, and those that wait are
stopped. A ratio is taken within one repeat, whose measurements are seconds apart; the
result is the median of these ratios, with their range. A server that is not installed
or does not start is named and left out.

Measurements are kept as they are made. A run that was interrupted continues: what was
measured with the same commit, settings and servers is not measured again.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import platform
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from benchmarks.peers.client import AIPERF, Load, run_client
from benchmarks.peers.servers import Server, server_specs
from jserve.flags import define_config_flags
from jserve.program import ProgramError, run_program
from jserve_tools.reporting.documents import commit, plain, write_whole
from jserve_tools.reporting.finished_runs import FinishedRuns
from jserve_tools.reporting.tables import render

OURS = "jserve"
_LOGS = pathlib.Path("out/peers/logs")
# Tokens of prompts and answers, numbers of clients, requests of a client and at least.
_SHORT = (128, 64, (1, 4, 16, 32), 3, 8)
_LONG = (1024, 128, (1, 4, 16), 2, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Servers that are compared, their load, and the measurements.

    Attributes:
      model: Model folder written by make_model.py.
      systems: Servers to compare, in the order of their turns.
      clients: Numbers of clients that are measured; others are left out.
      repeats: Number of measurements of each server at each load.
      threads: Number of threads that each server may use.
      start_timeout_s: Longest wait for a server to be ready, in seconds.
      output: Result file.
    """

    model: pathlib.Path = pathlib.Path("out/peers/model")
    systems: tuple[Literal["jserve", "vllm", "llama.cpp", "transformers"], ...] = (
        *("jserve", "vllm", "llama.cpp", "transformers"),
    )
    clients: tuple[int, ...] = (1, 4, 16, 32)
    repeats: int = 3
    threads: int = 2
    start_timeout_s: float = 900.0
    output: pathlib.Path = pathlib.Path("out/peers/over_http.json")

    @property
    def loads(self) -> list[Load]:
        """All loads, in the order of measuring."""
        return [
            Load(prompt, answer, num, max(num * each, least))
            for prompt, answer, clients, each, least in (_SHORT, _LONG)
            for num in clients
            if num in self.clients
        ]


def start_servers(one: Comparison, servers: dict[str, Server]) -> dict[str, str]:
    """Starts the servers one after the other, warms each up and stops it.

    Args:
      servers: Filled with those that serve, by name.

    Returns:
      Why others do not, in a line each.
    """
    absent: dict[str, str] = {}
    specs = server_specs(one.model, one.threads)
    for name in one.systems:
        try:
            server = Server(name, specs[name], _LOGS / f"{name}.log")
        except FileNotFoundError as error:
            absent[name] = f"{error.filename} is missing: setup.sh {name} makes it"
            print(f"{name}: {absent[name]}", flush=True)
            continue
        servers[name] = server
        try:
            start_s = server.wait_until_ready(one.start_timeout_s)
            for load in (Load(128, 64, 4, 4), Load(1024, 128, 2, 2)):
                run_client(server, one.model, load, seed=99)
        except RuntimeError as error:
            absent[name] = " ".join(str(error).split())
            print(f"{name}: {absent[name]}", flush=True)
            servers.pop(name).close()
            continue
        server.pause()
        print(f"{name}: ready after {start_s:.1f} s", flush=True)
    return absent


def summarise(measurements: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns medians by load and server, with ratios within each repeat.

    A ratio over 1 says that jserve is faster, by that factor. The time to the first
    token is compared for the longest prompts, sent one at a time.
    """
    found: dict[tuple[str, str], dict[int, float]] = {}
    longest = max(one["prompt_tokens"] for one in measurements)
    for one in measurements:
        clients = (
            "1 client" if one["num_clients"] == 1 else f"{one['num_clients']} clients"
        )
        load = f"{one['prompt_tokens']}/{one['output_tokens']}, {clients}"
        values = {load: one["output_tokens_per_s"]}
        if one["prompt_tokens"] == longest and one["num_clients"] == 1:
            values[f"TTFT of {longest} tokens"] = 1 / one["ttft_s"]
        for what, value in values.items():
            found.setdefault((what, one["system"]), {})[one["repeat"]] = value
    rows = []
    for what, system in sorted(found, key=lambda key: key[0].startswith("TTFT")):
        by_repeat = found[what, system]
        row: dict[str, Any] = {"what": what, "system": system}
        median = statistics.median(by_repeat.values())
        if what.startswith("TTFT"):
            row["ttft_s"] = 1 / median
        else:
            row["output_tokens_per_s"] = median
        ours = found.get((what, OURS), {})
        ratios = [ours[i] / value for i, value in by_repeat.items() if i in ours]
        if ratios and system != OURS:
            row["ratio"] = statistics.median(ratios)
            row["ratio_range"] = [min(ratios), max(ratios)]
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the summary as text: a line for each load and server."""
    lines = [["load", "server", "tokens/s or TTFT", "jserve is", "range"]]
    for row in rows:
        value = (
            f"{1e3 * row['ttft_s']:.0f} ms"
            if "ttft_s" in row
            else f"{row['output_tokens_per_s']:.1f}"
        )
        ratio = ["", ""]
        if "ratio" in row:
            low, high = row["ratio_range"]
            ratio = [f"{row['ratio']:.2f}x", f"{low:.2f} to {high:.2f}"]
        lines.append([row["what"], row["system"], value, *ratio])
    return render(lines)


def main(argv: Sequence[str]) -> None:
    """Runs the comparison; writes the result file and prints a table."""
    del argv
    one = _read_comparison()
    for path, maker in (
        (one.model / "complete", "make_model.py writes it"),
        (AIPERF, "setup.sh aiperf makes it"),
    ):
        if not path.exists():
            raise ProgramError(f"{path} is not there; {maker}")
    # SIGTERM ends the servers too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    specs = server_specs(one.model, one.threads)
    head = {
        "commit": commit(),
        "machine": {"processor": platform.machine(), "num_cpus": os.cpu_count()},
        "threads": one.threads,
        "servers": {  # from the repository's root
            name: [
                part.removeprefix(f"{pathlib.Path.cwd()}/")
                for part in specs[name].command
            ]
            for name in one.systems
        },
    }
    runs = FinishedRuns(one.output.with_suffix(".jsonl"), resumes=True)
    measurements: list[dict[str, Any]] = []
    servers: dict[str, Server] = {}
    report: dict[str, Any] = {**head, "command": ["compare.py", *sys.argv[1:]]}
    try:
        report["absent"] = start_servers(one, servers)
        # Measure in turns.
        turns = itertools.product(one.loads, range(one.repeats), servers.items())
        for load, repeat, (name, server) in turns:
            what = dataclasses.asdict(load) | {"repeat": repeat, "system": name}
            found = runs.get(head | what)
            if found is None:
                server.resume()
                found = run_client(server, one.model, load, seed=1 + repeat)
                server.pause()
                runs.put(head | what, found)
                print(json.dumps(plain(what | found)), flush=True)
            measurements.append(what | found)
    except RuntimeError as error:
        raise ProgramError(str(error)) from error
    finally:
        for server in servers.values():
            server.close()
    if not measurements:
        raise ProgramError("nothing was measured: no server serves")
    # Summarise and write.
    rows = summarise(measurements)
    report |= {"summary": rows, "measurements": measurements}
    write_whole(one.output, (json.dumps(plain(report), indent=1) + "\n").encode())
    runs.remove()
    print(f"\n{table(rows)}\n\n{one.output}")


if __name__ == "__main__":
    _read_comparison = define_config_flags(Comparison, group="Comparison")
    run_program(sys.modules[__name__])
