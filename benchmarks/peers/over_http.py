"""Compares jserve with other servers over HTTP, with one client for all.

  .venv/bin/python benchmarks/peers/over_http.py
  .venv/bin/python benchmarks/peers/over_http.py --systems=jserve,transformers,vllm

Same model, same prompts of 128 random words (a token each), 64 output tokens,
greedy, float32, streamed; 1, 16 and 32 clients, each sending its next request when
the last is answered. The servers take turns, and those that wait are stopped.
"""

import pathlib
import signal
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import comparison
import machine
from absl import app, flags
from closed_loop import Result, run_closed_loop
from prompts import WordPrompts
from servers import OURS, Server, server_spec

_HERE = pathlib.Path(__file__).parent

_MODEL = flags.DEFINE_string("model", "out/peers/model", "Model folder.")
_SYSTEMS = flags.DEFINE_list(
    "systems", [OURS, "transformers"], "Servers that take part, in order."
)
_CLIENTS = flags.DEFINE_list("clients", ["1", "16", "32"], "Clients at once.")
_REQUESTS_PER_CLIENT = flags.DEFINE_integer(
    "requests_per_client", 4, "Requests of each client in a measurement."
)
_MIN_REQUESTS = flags.DEFINE_integer("min_requests", 8, "Requests, at least.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Measurements of each.")
_PROMPT_TOKENS = flags.DEFINE_integer("prompt_tokens", 128, "Tokens in a prompt.")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 64, "Tokens in an output.")
_SEED = flags.DEFINE_integer("seed", 0, "Draws the prompts.")
_THREADS = flags.DEFINE_integer("threads", 2, "Threads each server may use.")
_START_TIMEOUT_S = flags.DEFINE_float(
    "start_timeout_s", 600.0, "Longest wait for a server to be ready, seconds."
)
_MAX_OTHER_CORES = flags.DEFINE_float(
    "max_other_cores", 0.2, "Measure only while others use fewer cores than this."
)
_QUIET_TIMEOUT_S = flags.DEFINE_float(
    "quiet_timeout_s", 30.0, "Wait so long for that, seconds; then measure anyway."
)
_ATTEMPTS = flags.DEFINE_integer(
    "attempts", 5, "Measure again, up to so often, where others were busy meanwhile."
)
_OUTPUT = flags.DEFINE_string(
    "output", str(_HERE / "results" / "over_http.json"), "Result file."
)


class Contest:
    """Sends the load to servers in turn, and keeps what was measured."""

    def __init__(self, servers: dict[str, Server], prompts: WordPrompts):
        self._servers = servers
        self._sessions = [server.session for server in servers.values()]
        self._prompts = prompts
        self._num_runs = 0
        self.measurements: list[comparison.Measurement] = []

    def measure(self, num_clients: int, repeat: int, system: str) -> None:
        """Measures one server, if need be again until others leave it in peace."""
        one = comparison.measure_in_quiet(
            lambda: self._measure_once(num_clients, repeat, system),
            sessions=self._sessions,
            max_other_cores=_MAX_OTHER_CORES.value,
            quiet_timeout_s=_QUIET_TIMEOUT_S.value,
            max_attempts=_ATTEMPTS.value,
        )
        self.measurements.append(one)
        print(
            f"clients {num_clients} repeat {repeat} {system}: "
            f"{one.tokens_per_s:.1f} tokens/s, TTFT {one.details['ttft_s']:.3f} s, "
            f"others on {one.other_cores:.2f} cores",
            flush=True,
        )

    def _measure_once(
        self, num_clients: int, repeat: int, system: str
    ) -> comparison.Measurement:
        server = self._servers[system]
        num_requests = max(
            num_clients * _REQUESTS_PER_CLIENT.value, _MIN_REQUESTS.value
        )
        server.resume()
        self._send(server, num_clients, num_clients)  # warms up
        meter = machine.CpuMeter(self._sessions)
        result = self._send(server, num_requests, num_clients)
        other_cores = meter.other_cores()
        server.pause()
        return comparison.Measurement(
            system=system,
            load=num_clients,
            repeat=repeat,
            num_requests=num_requests,
            output_tokens=sum(answer.output_tokens for answer in result.answers),
            elapsed_s=result.elapsed_s,
            other_cores=other_cores,
            num_disturbed=0,
            details={
                "ttft_s": statistics.median(one.ttft_s for one in result.answers),
                "e2e_s": statistics.median(one.e2e_s for one in result.answers),
            },
        )

    def _send(self, server: Server, num_requests: int, num_clients: int) -> Result:
        """Runs one closed loop with prompts that no server has seen.

        Raises:
          RuntimeError: if a server read a prompt as other than it was meant.
        """
        self._num_runs += 1
        seed = (_SEED.value, self._num_runs)
        texts, _ = self._prompts.draw(num_requests, _PROMPT_TOKENS.value, seed)
        result = run_closed_loop(
            server.url,
            prompts=texts,
            num_clients=num_clients,
            max_tokens=_MAX_TOKENS.value,
            body={"model": server.spec.model_name, **server.spec.body},
        )
        lengths = {answer.prompt_tokens for answer in result.answers}
        if lengths != {_PROMPT_TOKENS.value} or len(result.answers) != num_requests:
            raise RuntimeError(
                f"{server.spec.name} gave {len(result.answers)} answers to prompts of "
                f"{lengths} tokens; sent were {num_requests} of {_PROMPT_TOKENS.value}"
            )
        return result


def _document(contest: Contest, systems: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "commit": machine.commit(),
        "command": " ".join(["over_http.py", *sys.argv[1:]]),
        "device": machine.describe_machine(),
        "workload": {
            "prompt_tokens": _PROMPT_TOKENS.value,
            "output_tokens": _MAX_TOKENS.value,
            "sampling": "greedy",
            "streamed": True,
            "requests_per_client": _REQUESTS_PER_CLIENT.value,
            "seed": _SEED.value,
        },
        "systems": systems,
        "summary": comparison.summarise(contest.measurements, OURS),
        "measurements": [one.to_json() for one in contest.measurements],
    }


def main(argv: Sequence[str]) -> None:
    """Runs the contest; writes the result file and prints a table."""
    del argv
    folder = pathlib.Path(_MODEL.value)
    if not (folder / "complete").exists():
        raise app.UsageError(f"--model={folder} is not there; make_model.py writes it")
    # Being told to go ends the servers, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    servers: dict[str, Server] = {}
    systems: dict[str, Any] = {}
    try:
        for name in _SYSTEMS.value:
            spec = server_spec(name, folder, _THREADS.value)
            log = pathlib.Path("out/peers/logs") / f"server_{name}.log"
            servers[name] = Server(spec, log)
            start_s = servers[name].wait_until_healthy(_START_TIMEOUT_S.value)
            servers[name].pause()
            systems[name] = {**servers[name].describe(), "start_s": start_s}
            print(f"{name}: ready after {start_s:.1f} s", flush=True)
        contest = Contest(servers, WordPrompts(folder))
        loads = [int(clients) for clients in _CLIENTS.value]
        for load, repeat, system in comparison.turns(
            _SYSTEMS.value, loads, _REPEATS.value
        ):
            contest.measure(load, repeat, system)
        document = _document(contest, systems)
    finally:
        for server in servers.values():
            server.close()
    comparison.write_json(pathlib.Path(_OUTPUT.value), document)
    comparison.print_table(document["summary"], "clients", OURS)


if __name__ == "__main__":
    app.run(main)
