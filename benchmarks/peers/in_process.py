"""Compares jserve's engine with Transformers' `generate`, without any server.

  .venv/bin/python benchmarks/peers/in_process.py

Same model, same prompts of 128 random tokens, 64 output tokens, greedy, float32,
batch 1, 8 and 32. Two forms of `generate` take part: as it comes (`generate`),
and compiled over a static KV cache (`generate_compiled`). Each system runs in a
process of its own; they take turns, and one that waits is stopped.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Any

import comparison
import machine
from absl import app, flags
from prompts import WordPrompts

_HERE = pathlib.Path(__file__).parent
_PEER_PYTHON = _HERE / ".venv-transformers" / "bin" / "python"
OURS = "jserve"

_MODEL = flags.DEFINE_string("model", "out/peers/model", "Model folder.")
_SYSTEMS = flags.DEFINE_list(
    "systems", [OURS, "generate", "generate_compiled"], "Who takes part, in order."
)
_BATCHES = flags.DEFINE_list("batches", ["1", "8", "32"], "Requests at once.")
_NUM_BATCHES = flags.DEFINE_integer("num_batches", 4, "Batches in a measurement.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Measurements of each.")
_PROMPT_TOKENS = flags.DEFINE_integer("prompt_tokens", 128, "Tokens in a prompt.")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 64, "Tokens in an output.")
_SEED = flags.DEFINE_integer("seed", 0, "Draws the prompts.")
_THREADS = flags.DEFINE_integer("threads", 2, "Threads torch may use.")
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
    "output", str(_HERE / "results" / "in_process.json"), "Result file."
)


class Worker:
    """A process that answers jobs; stopped (SIGSTOP) between them."""

    def __init__(self, name: str, command: Sequence[str], log: pathlib.Path):
        self.name = name
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
        self.facts: dict[str, Any] = {}

    def wait_until_ready(self) -> None:
        """Waits for what it says of itself, then pauses it."""
        self.facts = self._read()
        self.pause()

    @property
    def session(self) -> int:
        """Id of the session its threads and children belong to."""
        return self._process.pid

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer to a job."""
        self._signal(signal.SIGCONT)
        stdin = _pipe(self._process.stdin)
        stdin.write(json.dumps(job) + "\n")
        stdin.flush()
        answer = self._read()
        self.pause()
        return answer

    def pause(self) -> None:
        """Stops it until the next job."""
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """Ends it."""
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)

    def _read(self) -> dict[str, Any]:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise RuntimeError(f"{self.name} ended; its words are in {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _command(system: str) -> list[str]:
    if system == OURS:
        return [sys.executable, str(_HERE / "engine_worker.py")]
    command = [str(_PEER_PYTHON), str(_HERE / "generate_worker.py")]
    command.append(f"--threads={_THREADS.value}")
    if system == "generate_compiled":
        command.append("--compile")
    elif system != "generate":
        raise app.UsageError(f"--systems: {system!r} is unknown")
    return command


class Contest:
    """Gives workers jobs, and checks and keeps what they answer."""

    def __init__(self, workers: dict[str, Worker], prompts: WordPrompts):
        self._workers = workers
        self._sessions = [worker.session for worker in workers.values()]
        self._prompts = prompts
        self._outputs: dict[tuple[int, int], list[list[int]]] = {}
        self.measurements: list[comparison.Measurement] = []

    def warm_up(self, batch: int) -> None:
        """Has every worker run a batch twice, unmeasured: the second is compiled."""
        for worker in self._workers.values():
            for round_ in range(2):
                self._run(worker, batch, batch, (_SEED.value, batch, 10_000 + round_))

    def measure(self, batch: int, repeat: int, system: str) -> None:
        """Measures one system, if need be again until others leave it in peace."""
        one = comparison.measure_in_quiet(
            lambda: self._measure_once(batch, repeat, system),
            sessions=self._sessions,
            max_other_cores=_MAX_OTHER_CORES.value,
            quiet_timeout_s=_QUIET_TIMEOUT_S.value,
            max_attempts=_ATTEMPTS.value,
        )
        self.measurements.append(one)
        print(
            f"batch {batch} repeat {repeat} {system}: {one.tokens_per_s:.1f} tokens/s, "
            f"others on {one.other_cores:.2f} cores, "
            f"{one.details['share_equal_outputs']:.1%} of outputs as the first's",
            flush=True,
        )

    def _measure_once(
        self, batch: int, repeat: int, system: str
    ) -> comparison.Measurement:
        num_requests = batch * _NUM_BATCHES.value
        meter = machine.CpuMeter(self._sessions)
        answer = self._run(
            self._workers[system], num_requests, batch, (_SEED.value, batch, repeat)
        )
        other_cores = meter.other_cores()
        outputs = answer["outputs"]
        reference = self._outputs.setdefault((batch, repeat), outputs)
        equal = sum(a == b for a, b in zip(outputs, reference, strict=True))
        return comparison.Measurement(
            system=system,
            load=batch,
            repeat=repeat,
            num_requests=num_requests,
            output_tokens=sum(map(len, outputs)),
            elapsed_s=answer["elapsed_s"],
            other_cores=other_cores,
            num_disturbed=0,
            details={"share_equal_outputs": equal / num_requests, **answer["details"]},
        )

    def _run(
        self, worker: Worker, num_requests: int, batch: int, seed: tuple[int, ...]
    ) -> dict[str, Any]:
        _, ids = self._prompts.draw(num_requests, _PROMPT_TOKENS.value, seed)
        max_tokens = _MAX_TOKENS.value
        answer = worker.run({"prompts": ids, "batch": batch, "max_tokens": max_tokens})
        lengths = {len(output) for output in answer["outputs"]}
        if lengths != {max_tokens} or len(answer["outputs"]) != num_requests:
            raise RuntimeError(
                f"{worker.name} gave {len(answer['outputs'])} outputs of {lengths} "
                f"tokens, asked were {num_requests} of {max_tokens}"
            )
        return answer


def _document(contest: Contest, workers: dict[str, Worker]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "commit": machine.commit(),
        "command": " ".join(["in_process.py", *sys.argv[1:]]),
        "device": machine.describe_machine(),
        "workload": {
            "prompt_tokens": _PROMPT_TOKENS.value,
            "output_tokens": _MAX_TOKENS.value,
            "sampling": "greedy",
            "seed": _SEED.value,
        },
        "systems": {name: worker.facts for name, worker in workers.items()},
        "summary": comparison.summarise(contest.measurements, OURS),
        "measurements": [one.to_json() for one in contest.measurements],
    }


def main(argv: Sequence[str]) -> None:
    """Runs the contest; writes the result file and prints a table."""
    del argv
    folder = pathlib.Path(_MODEL.value)
    if not (folder / "complete").exists():
        raise app.UsageError(f"--model={folder} is not there; make_model.py writes it")
    # Being told to go ends the workers, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    batches = [int(batch) for batch in _BATCHES.value]
    workers: dict[str, Worker] = {}
    try:
        for system in _SYSTEMS.value:
            command = [*_command(system), f"--model={folder.absolute()}"]
            log = pathlib.Path("out/peers/logs") / f"worker_{system}.log"
            workers[system] = Worker(system, command, log)
            workers[system].wait_until_ready()
            print(f"{system}: {workers[system].facts}", flush=True)
        contest = Contest(workers, WordPrompts(folder))
        for batch in batches:
            contest.warm_up(batch)
            for load, repeat, system in comparison.turns(
                _SYSTEMS.value, [batch], _REPEATS.value
            ):
                contest.measure(load, repeat, system)
        document = _document(contest, workers)
    finally:
        for worker in workers.values():
            worker.close()
    comparison.write_json(pathlib.Path(_OUTPUT.value), document)
    comparison.print_table(document["summary"], "batch", OURS)


if __name__ == "__main__":
    app.run(main)
