"""The client of all servers: aiperf, which nobody here wrote.

It sends random prompts in a closed loop, streamed and greedy, and counts tokens by the
server's `usage`.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
from typing import Any

from benchmarks.peers.servers import Server

AIPERF = pathlib.Path(__file__).parent / ".venv-aiperf" / "bin" / "aiperf"
_FOLDER = pathlib.Path("out/peers/client")
# With a concurrency alone, aiperf spins on a core until a request may start. Beside a
# rate that is never reached, it sleeps, and a request starts at most 4 ms late.
_PACING = ("--request-rate=250", "--arrival-pattern=constant")
_ENVIRONMENT = {
    "AIPERF_TIMING_HIGH_RES_TIMER": "false",
    "AIPERF_TOKENIZER_SKIP_PRELOAD": "true",  # the tokenizer is a folder
}


@dataclasses.dataclass(frozen=True)
class Load:
    """One measurement's requests.

    Attributes:
      prompt_tokens: Tokens of a prompt.
      output_tokens: Tokens of an answer.
      num_clients: Number of clients; each sends its next request when one ends.
      num_requests: Number of requests of all clients.
    """

    prompt_tokens: int
    output_tokens: int
    num_clients: int
    num_requests: int


def run_client(
    server: Server, tokenizer: pathlib.Path, load: Load, seed: int
) -> dict[str, float]:
    """Returns output tokens a second, median TTFT and median TPOT, in seconds.

    Raises:
      RuntimeError: If it failed, or an answer is missing or has another length.
    """
    shutil.rmtree(_FOLDER, ignore_errors=True)
    command = [
        *(str(AIPERF), "profile", f"--url={server.url}", "--streaming"),
        *(f"--model={server.spec.model_name}", "--endpoint-type=completions"),
        *(f"--tokenizer={tokenizer.absolute()}", f"--random-seed={seed}"),
        *(f"--isl={load.prompt_tokens}", "--isl-stddev=0"),
        *(f"--osl={load.output_tokens}", "--osl-stddev=0"),
        *(f"--concurrency={load.num_clients}", f"--request-count={load.num_requests}"),
        # llama.cpp ends connections that were used a while: a race for the client.
        "--connection-reuse-strategy=never",
        *("--use-server-token-count", "--use-legacy-max-tokens", *_PACING),
        *("--extra-inputs=temperature:0", *server.spec.client),
        *("--workers-max=1", "--record-processors=1", "--ui-type=none"),
        *("--no-gpu-telemetry", "--no-server-metrics", "--export-level=summary"),
        f"--output-artifact-dir={_FOLDER}",
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | _ENVIRONMENT,
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # all of its processes
        raise
    report = _FOLDER / "profile_export_aiperf.json"
    if process.returncode or not report.exists():
        raise RuntimeError(f"the client failed: {output[-2000:]}")
    found: dict[str, Any] = json.loads(report.read_text())
    got = (
        found["request_count"]["avg"],
        *(found["input_sequence_length"][end] for end in ("min", "max")),
        *(found["output_sequence_length"][end] for end in ("min", "max")),
    )
    wanted = (
        load.num_requests,
        *(load.prompt_tokens, load.prompt_tokens),
        *(load.output_tokens, load.output_tokens),
    )
    if got != wanted:
        raise RuntimeError(
            "requests, least and most tokens of a prompt and of an answer are "
            f"{got}, not {wanted}: {str(found.get('error_summary'))[:1000]}"
        )
    return {
        "output_tokens_per_s": found["output_token_throughput"]["avg"],
        "ttft_s": found["time_to_first_token"]["p50"] / 1e3,
        "tpot_s": found["inter_token_latency"]["p50"] / 1e3,
    }
