"""The servers that are compared: their commands and settings.

Every server gets the settings that are best for it here. All use two threads, float32
weights and no prefix cache. Each runs in a separate session, so that it can be stopped
(SIGSTOP) while it waits for its turn.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

_HERE = pathlib.Path(__file__).parent
_HOST = "127.0.0.1"
_POLL_S = 0.5
_STOP_TIMEOUT_S = 20.0
_VLLM = _HERE / ".venv-vllm" / "bin" / "vllm"
_LLAMA = _HERE / ".venv-llama" / "bin" / "python"
_TRANSFORMERS = _HERE / ".venv-transformers" / "bin" / "transformers"
_QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerSpec:
    """How to run one server.

    Attributes:
      command: Program and arguments, without host and port.
      environment: Environment variables to set.
      model_name: Model name in requests.
      client: Arguments of the client for this server.
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    model_name: str = "peer"
    client: tuple[str, ...] = ("--extra-inputs=ignore_eos:true",)


def server_specs(model: pathlib.Path, threads: int) -> dict[str, ServerSpec]:
    """Returns how to run each server on a model folder, by its name."""
    return {
        "jserve": ServerSpec(
            command=(
                *(sys.executable, "-m", "jserve", f"--model={model}"),
                *("--max_num_seqs=32", "--noenable_prefix_caching"),
                "--served_model_name=peer",
            ),
            environment=_QUIET,
        ),
        "llama.cpp": ServerSpec(
            command=(
                *(str(_LLAMA), str(_HERE / "llama_server.py")),
                *(f"--model={model / 'model.gguf'}", f"--threads={threads}"),
            ),
            environment={},
        ),
        "transformers": ServerSpec(
            command=(
                *(str(_TRANSFORMERS), "serve", str(model)),
                *("--continuous-batching", "--device", "cpu", "--dtype", "float32"),
                # By default the size of the KV pool depends on a GPU's memory; this is
                # 32 requests of 1,280 tokens.
                *("--cb-block-size", "256", "--cb-num-blocks", "160"),
                *("--cb-max-batch-tokens", "1024", "--log-level", "error"),
            ),
            environment=_QUIET | {"OMP_NUM_THREADS": str(threads)},
            model_name=str(model),
            client=(),  # it refuses unknown fields
        ),
        "vllm": ServerSpec(
            command=(
                *(str(_VLLM), "serve", str(model), "--served-model-name=peer"),
                *("--dtype=float32", "--max-model-len=4096", "--max-num-seqs=32"),
                *("--max-num-batched-tokens=2048", "--no-enable-prefix-caching"),
                *("--disable-uvicorn-access-log", "--generation-config=vllm"),
            ),
            environment=_QUIET
            | {
                "VLLM_CPU_KVCACHE_SPACE": "2",
                "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
                "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
                "VLLM_NO_USAGE_STATS": "1",
            },
        ),
    }


class Server:
    """A running server."""

    def __init__(self, name: str, spec: ServerSpec, log: pathlib.Path):
        self.spec = spec
        self._name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind((_HOST, 0))
            port = free.getsockname()[1]
        self.url = f"http://{_HOST}:{port}"
        # A program that is missing raises here.
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [*spec.command, f"--host={_HOST}", f"--port={port}"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=os.environ | spec.environment,
            )

    @property
    def session(self) -> int:
        """Id of the session of all its processes."""
        return self._process.pid

    def wait_until_ready(self, timeout_s: float) -> float:
        """Waits until /health answers, and nothing is left to compile.

        Returns:
          The seconds that this took.

        Raises:
          RuntimeError: If the server ended, or the time is up.
        """
        start_s = time.monotonic()
        while time.monotonic() - start_s < timeout_s and self._process.poll() is None:
            try:
                with urllib.request.urlopen(
                    f"{self.url}/health", timeout=5.0
                ) as answer:
                    if b'"warm":false' not in answer.read():
                        return time.monotonic() - start_s
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(_POLL_S)
        raise RuntimeError(f"{self._name} does not serve; see {self._log}")

    def pause(self) -> None:
        """Stops all its processes until `resume`."""
        os.killpg(self.session, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets its processes continue."""
        os.killpg(self.session, signal.SIGCONT)

    def close(self) -> None:
        """Ends the server and its children."""
        if self._process.poll() is None:
            self.resume()
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.session, signal.SIGKILL)
        self._process.wait()
