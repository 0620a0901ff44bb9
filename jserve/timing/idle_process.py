"""Runs a function in a process of its own, at idle priority and on one CPU thread.

In the server's process training would delay steps, and its compilations would be
counted. The process ends when the server does, however that ends: it watches a pipe.
"""

import importlib
import os
import pickle
import subprocess
import sys
import threading
from typing import Any

_START = """
import os
os.setpriority(os.PRIO_PROCESS, 0, 19)
if hasattr(os, "SCHED_IDLE"):  # on Linux: then any thread of the server comes first
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
from jserve.timing.idle_process import main
main()
"""
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "NPROC": "1",  # threads of XLA's CPU client
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class IdleProcess:
    """Runs functions in child processes, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()

    def run(self, function: str, *arguments: Any, **options: Any) -> Any:
        """Returns what `module:function` returns there; None once `stop` was called.

        Raises:
          RuntimeError: If it raised something, or its process ended.
        """
        path = os.pathsep.join(filter(None, sys.path))
        with self._lock:
            if self._stopped.is_set():
                return None
            self._child = child = subprocess.Popen(
                [sys.executable, "-P", "-c", _START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path},
            )
        with child:
            assert child.stdin is not None and child.stdout is not None
            try:
                pickle.dump((function, arguments, options), child.stdin)
                child.stdin.flush()  # left open: it ends when this process does
                found, fault = pickle.load(child.stdout)
            except (OSError, EOFError) as error:
                child.kill()
                if self._stopped.is_set():
                    return None
                raise RuntimeError(f"its process ended: {child.wait()}") from error
        if fault:
            raise RuntimeError(fault)
        return found

    def stop(self) -> None:
        """Ends the process, if there is one, and runs no more; any thread may call."""
        with self._lock:
            self._stopped.set()
            if self._child is not None:
                self._child.kill()


def main() -> None:
    """Runs the function that stdin names, and writes what it returns to stdout."""
    out, sys.stdout = sys.stdout.buffer, sys.stderr  # what it prints is no answer
    name, arguments, options = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_server, daemon=True).start()
    found, fault = None, ""
    try:
        module, _, function = name.partition(":")
        found = getattr(importlib.import_module(module), function)(
            *arguments, **options
        )
    except Exception as error:
        fault = str(error) or type(error).__name__
    pickle.dump((found, fault), out)
    out.flush()


def _end_with_server() -> None:
    sys.stdin.buffer.read()  # returns when the other end is closed
    os._exit(1)
