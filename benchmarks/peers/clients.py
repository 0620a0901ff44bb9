"""Compares what benchmark clients of others measure with the server's own metrics.

    python -m benchmarks.peers.clients --venvs=FOLDER --url=http://127.0.0.1:8000

Every client of `CLIENTS` that has an environment in the folder runs as its authors
published it, with 128 tokens of prompt, 64 of output, and `--num_clients` in a closed
loop. They take turns. Beside a client's mean TTFT and inter-token latency (ITL) stand
those of the server's `/metrics` over the same time. `clients.sh` makes what this needs.
"""

import collections
import dataclasses
import functools
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags

from jserve.program import ProgramError, run_program
from jserve_tools.reporting.documents import commit, write_whole

TOKENIZER = pathlib.Path("jserve/text/byte_tokenizer").absolute()
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 64
MOST_DIFFERENCE, MOST_DIFFERENCE_S = 0.05, 0.002  # either suffices

_VENVS = flags.DEFINE_string("venvs", "out/clients", "Folder of the environments.")
_URL = flags.DEFINE_string("url", "http://127.0.0.1:8000", "Server of `tiny`.")
_NUM_CLIENTS = flags.DEFINE_list("num_clients", ["1", "8"], "Numbers of clients.")
_NUM_REQUESTS = flags.DEFINE_integer("requests", 20, "Requests of each client.")
_TURNS = flags.DEFINE_integer("turns", 5, "Measurements of each.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file to write as well.")


class Load(NamedTuple):
    """Requests in a closed loop, and the empty folder for the client's files."""

    url: str
    num_clients: int
    num_requests: int
    folder: pathlib.Path


class Seen(NamedTuple):
    """Means in seconds, and the number of requests that they are of."""

    ttft_s: float
    itl_s: float
    num_requests: float


@dataclasses.dataclass(frozen=True)
class Client:
    """A program that measures servers, and what to read of its report.

    Attributes:
      command: Returns its arguments; the first is a program of its environment.
      report: Pattern of the JSON file that it leaves in the load's folder.
      paths: Keys, with dots, of mean TTFT, mean ITL, and the number of requests.
      unit_s: The report's unit of time, seconds.
    """

    command: Callable[[Load], list[str]]
    report: str
    paths: tuple[str, str, str]
    unit_s: float = 1e-3

    def read(self, report: Any) -> Seen:
        """Returns what a report says."""
        ttft, itl, num_requests = (
            functools.reduce(
                lambda found, key: found[int(key) if key.isdigit() else key],
                path.split("."),
                report,
            )
            for path in self.paths
        )
        return Seen(ttft * self.unit_s, itl * self.unit_s, num_requests)


def _inference_perf(load: Load) -> list[str]:
    length = {"type": "fixed", "total_count": load.num_requests}
    lengths = [
        length | {"mean": num, "min": num, "max": num}
        for num in (PROMPT_TOKENS, OUTPUT_TOKENS)
    ]
    stage = {
        "num_requests": load.num_requests,
        "concurrency_level": load.num_clients,
    }
    config = {
        "api": {"type": "completion", "streaming": True},
        "data": {  # `random` draws token ids, which as bytes are not UTF-8
            "type": "synthetic",
            **{"input_distribution": lengths[0], "output_distribution": lengths[1]},
        },
        "load": {"type": "concurrent", "num_workers": 1, "stages": [stage]},
        "server": {"type": "vllm", "model_name": "tiny", "base_url": load.url},
        "tokenizer": {"pretrained_model_name_or_path": str(TOKENIZER)},
        "storage": {"local_storage": {"path": str(load.folder)}},
    }
    path = load.folder / "asked.yaml"
    path.write_text(json.dumps(config))  # which is YAML too
    return ["inference-perf", "-c", str(path)]


def _guidellm(load: Load) -> list[str]:
    lengths = f"prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}"
    return [
        *("guidellm", "run", "--disable-console"),
        *("--backend", f"kind=openai_http,target={load.url},model=tiny"),
        *("--profile", f"kind=concurrent,streams={load.num_clients}"),
        *("--constraint", f"kind=max_requests,count={load.num_requests}"),
        *("--tokenizer", f"kind=hf_auto,model={TOKENIZER}"),
        *("--data", f"kind=synthetic_text,{lengths}"),
        *("--output", f"kind=json,path={load.folder / 'report.json'}"),
    ]


def _aiperf(load: Load) -> list[str]:
    return [
        *("aiperf", "profile", f"--url={load.url}", "--streaming", "--model=tiny"),
        *(f"--tokenizer={TOKENIZER}", "--endpoint-type=chat"),
        *(f"--isl={PROMPT_TOKENS}", f"--osl={OUTPUT_TOKENS}"),
        *("--extra-inputs=ignore_eos:true", "--ui-type=none"),
        f"--concurrency={load.num_clients}",
        f"--request-count={load.num_requests}",
        f"--output-artifact-dir={load.folder}",
    ]


def _vllm(load: Load) -> list[str]:
    return [
        *("vllm", "bench", "serve", f"--base-url={load.url}", "--model=tiny"),
        *(f"--tokenizer={TOKENIZER}", "--dataset-name=random", "--ignore-eos"),
        f"--random-input-len={PROMPT_TOKENS}",
        f"--random-output-len={OUTPUT_TOKENS}",
        *(f"--max-concurrency={load.num_clients}", "--ready-check-timeout-sec=0"),
        *(f"--num-prompts={load.num_requests}", "--save-result"),
        *(f"--result-dir={load.folder}", "--result-filename=report.json"),
    ]


def _genai_bench(load: Load) -> list[str]:
    return [
        *("genai-bench", "benchmark", "--api-backend=vllm", "--task=text-to-text"),
        *(f"--api-base={load.url}", "--api-key=none", "--api-model-name=tiny"),
        *("--model=tiny", f"--model-tokenizer={TOKENIZER}"),
        f"--traffic-scenario=D({PROMPT_TOKENS},{OUTPUT_TOKENS})",
        f"--num-concurrency={load.num_clients}",
        *(f"--max-requests-per-run={load.num_requests}", "--max-time-per-run=5"),
        *(f"--experiment-base-dir={load.folder}", "--experiment-folder-name=report"),
        f"--log-dir={load.folder}",
    ]


CLIENTS = {
    "inference-perf": Client(
        _inference_perf,
        "summary_lifecycle_metrics.json",
        (
            "successes.latency.time_to_first_token.mean",
            "successes.latency.inter_token_latency.mean",
            "successes.count",
        ),
        unit_s=1.0,
    ),
    "guidellm": Client(
        _guidellm,
        "report.json",
        (
            "benchmarks.0.metrics.time_to_first_token_ms.successful.mean",
            "benchmarks.0.metrics.inter_token_latency_ms.successful.mean",
            "benchmarks.0.metrics.request_totals.successful",
        ),
    ),
    "aiperf": Client(
        _aiperf,
        "profile_export_aiperf.json",
        ("time_to_first_token.avg", "inter_token_latency.avg", "request_count.avg"),
    ),
    "vllm": Client(_vllm, "report.json", ("mean_ttft_ms", "mean_itl_ms", "completed")),
    "genai-bench": Client(
        _genai_bench,
        "*_time_*s.json",
        (
            "aggregated_metrics.stats.ttft.mean",
            "aggregated_metrics.stats.tpot.mean",
            "aggregated_metrics.num_completed_requests",
        ),
        unit_s=1.0,
    ),
}


def server_sums(url: str) -> collections.Counter[str]:
    """Returns sums and counts of the server's histograms of TTFT and ITL."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    names = (
        r"vllm:(time_to_first_token|inter_token_latency)_seconds_(sum|count)\S* (.*)"
    )
    return collections.Counter(
        {
            f"{name} {kind}": float(value)
            for name, kind, value in re.findall(names, text)
        }
    )


def measure(name: str, load: Load) -> tuple[Seen, Seen]:
    """Runs a client once; returns what it saw, and what the server did meanwhile.

    Raises:
      RuntimeError: If it failed, or requests failed.
    """
    client = CLIENTS[name]
    shutil.rmtree(load.folder, ignore_errors=True)
    load.folder.mkdir(parents=True)
    program, *arguments = client.command(load)
    before = server_sums(load.url)
    ended = subprocess.run(
        [f"{_VENVS.value}/{name}/bin/{program}", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    after = server_sums(load.url)
    reports = list(load.folder.rglob(client.report))
    if ended.returncode or not reports:
        raise RuntimeError(f"{name} failed: {(ended.stdout + ended.stderr)[-2000:]}")
    seen = client.read(json.loads(reports[0].read_text()))
    if seen.num_requests < 0.9 * load.num_requests:
        raise RuntimeError(
            f"{name}: {seen.num_requests} requests of {load.num_requests} succeeded"
        )
    after.subtract(before)
    num_served = after["time_to_first_token count"]
    served = Seen(
        after["time_to_first_token sum"] / num_served,
        after["inter_token_latency sum"] / after["inter_token_latency count"],
        num_served,
    )
    return seen, served


def summarise(pairs: Sequence[tuple[Seen, Seen]]) -> dict[str, Any]:
    """Returns the medians of what client and server saw, and whether they agree."""
    found: dict[str, Any] = {}
    for index, what in enumerate(("ttft", "itl")):
        ours = statistics.median(server[index] for _, server in pairs)
        apart = statistics.median(
            client[index] - server[index] for client, server in pairs
        )
        agrees = abs(apart) <= max(MOST_DIFFERENCE * ours, MOST_DIFFERENCE_S)
        found[what] = {
            "client_ms": 1e3 * statistics.median(client[index] for client, _ in pairs),
            "server_ms": 1e3 * ours,
            "difference_ms": 1e3 * apart,
            "agrees": agrees,
        }
    return found


def main(argv: Sequence[str]) -> int:
    """Prints a line for each client and number of clients."""
    del argv
    names = [one for one in CLIENTS if pathlib.Path(_VENVS.value, one).is_dir()]
    if not names:
        raise ProgramError(f"--venvs={_VENVS.value} has none of {', '.join(CLIENTS)}")
    pairs = collections.defaultdict(list)
    for turn in range(_TURNS.value):
        for name in names:
            for num_clients in map(int, _NUM_CLIENTS.value):
                load = Load(
                    url=_URL.value,
                    num_clients=num_clients,
                    num_requests=num_clients * _NUM_REQUESTS.value,
                    folder=pathlib.Path("out/clients_reports", name).absolute(),
                )
                try:
                    pair = measure(name, load)
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    print(error, file=sys.stderr)
                    continue
                pairs[name, num_clients].append(pair)
                print(turn, name, num_clients, *pair, flush=True)
    rows = [
        {"client": name, "num_clients": num} | summarise(found) | {"turns": found}
        for (name, num), found in pairs.items()
    ]
    for row in rows:
        print(json.dumps({key: row[key] for key in row if key != "turns"}))
    if _OUTPUT.value:
        text = json.dumps({"commit": commit(), "rows": rows}, indent=1)
        write_whole(pathlib.Path(_OUTPUT.value), f"{text}\n".encode())
    return 0


if __name__ == "__main__":
    run_program(sys.modules[__name__])
