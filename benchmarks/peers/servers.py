"""The servers that are compared: how each is started, and what is set for it.

The one idea: every server gets the settings it is best with here, written down in
one place. All are told two threads, float32 and no sharing of prefixes, and run
in a process group of their own, so that the idle ones can be stopped (SIGSTOP).
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import machine

_HERE = pathlib.Path(__file__).parent
_BIN_OF = {
    "transformers": _HERE / ".venv-transformers" / "bin",
    "vllm": _HERE / ".venv-vllm" / "bin",
}
_HOST = "127.0.0.1"
_POLL_S = 0.5
_STOP_TIMEOUT_S = 20.0
OURS = "jserve"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerSpec:
    """How to run one server.

    Attributes:
      name: of the system.
      python: the interpreter of its environment.
      command: without host and port.
      environment: variables to set.
      model_name: what requests call the model.
      body: fields of a request that only this server takes.
      packages: whose versions matter.
    """

    name: str
    python: pathlib.Path
    command: tuple[str, ...]
    environment: dict[str, str]
    model_name: str
    body: dict[str, Any]
    packages: tuple[str, ...]


def server_spec(name: str, model: pathlib.Path, threads: int) -> ServerSpec:
    """Returns how to run the server called `name`.

    Raises:
      ValueError: if there is no such server.
    """
    folder = str(model)  # relative to where this runs, and so does the server
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if name == OURS:
        return ServerSpec(
            name=name,
            python=pathlib.Path(sys.executable),
            command=(
                *(sys.executable, "-m", "jserve.cli", f"--model={folder}"),
                *("--max_num_seqs=32", "--noenable_prefix_caching"),
                "--served_model_name=peer",
            ),
            environment=quiet,
            model_name="peer",
            body={"ignore_eos": True},
            packages=("jserve", "jax", "flax", "numpy"),
        )
    if name == "transformers":
        binary = _BIN_OF["transformers"]
        command: tuple[str, ...] = (
            *(str(binary / "transformers"), "serve", folder),
            *("--continuous-batching", "--device", "cpu", "--dtype", "float32"),
            # The KV pool it would size by a GPU's memory: 64 requests of 256 tokens.
            *("--cb-block-size", "256", "--cb-num-blocks", "64"),
            *("--cb-max-batch-tokens", "1024", "--log-level", "error"),
        )
        return ServerSpec(
            name=name,
            python=binary / "python",
            command=command,
            environment={**quiet, "OMP_NUM_THREADS": str(threads)},
            model_name=folder,
            body={},  # it refuses what it does not know
            packages=("transformers", "torch", "accelerate"),
        )
    if name == "vllm":
        binary = _BIN_OF["vllm"]
        command = (
            *(str(binary / "vllm"), "serve", folder, "--served-model-name=peer"),
            *("--dtype=float32", "--max-model-len=4096", "--max-num-seqs=32"),
            *("--max-num-batched-tokens=2048", "--no-enable-prefix-caching"),
            *("--disable-uvicorn-access-log", "--generation-config=vllm"),
        )
        return ServerSpec(
            name=name,
            python=binary / "python",
            command=command,
            environment={
                **quiet,
                "VLLM_CPU_KVCACHE_SPACE": "2",
                "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
                "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
                "VLLM_NO_USAGE_STATS": "1",
            },
            model_name="peer",
            body={"ignore_eos": True},
            packages=("vllm-cpu", "torch", "transformers"),
        )
    raise ValueError(f"there is no server called {name!r}")


class Server:
    """A running server."""

    def __init__(self, spec: ServerSpec, log: pathlib.Path):
        self.spec = spec
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind((_HOST, 0))
            port = free.getsockname()[1]
        self.url = f"http://{_HOST}:{port}"
        self._command = [*spec.command, f"--host={_HOST}", f"--port={port}"]
        with log.open("w") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **spec.environment},
            )

    @property
    def session(self) -> int:
        """Id of the session that all its processes belong to."""
        return self._process.pid

    def wait_until_healthy(self, timeout_s: float) -> float:
        """Waits for /health to say yes; returns the seconds that took.

        Raises:
          RuntimeError: if it ended, or the time is up.
        """
        start_s = time.monotonic()
        while time.monotonic() - start_s < timeout_s:
            if self._process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5.0):
                    return time.monotonic() - start_s
            except (urllib.error.URLError, OSError):
                time.sleep(_POLL_S)
        raise RuntimeError(f"{self.spec.name} does not serve; see {self._log}")

    def describe(self) -> dict[str, Any]:
        """Returns versions and settings."""
        versions = machine.package_versions(self.spec.python, self.spec.packages)
        return {
            "versions": json.loads(versions),
            "command": [pathlib.Path(self._command[0]).name, *self._command[1:]],
            "environment": self.spec.environment,
            "body": self.spec.body,
        }

    def pause(self) -> None:
        """Stops all its processes until `resume`."""
        os.killpg(self.session, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        os.killpg(self.session, signal.SIGCONT)

    def close(self) -> None:
        """Ends it and its children."""
        if self._process.poll() is None:
            self.resume()
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):  # all gone, as it should be
            os.killpg(self.session, signal.SIGKILL)
        self._process.wait()
