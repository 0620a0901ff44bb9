"""Times on a device, and a result file that is whole after every case."""

import datetime
import json
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jaxlib.version
import numpy as np

from jserve_tools.reporting.documents import commit, plain, write_whole

T = TypeVar("T")
_ROUNDS = 5


def _driver() -> str:
    """Returns the version of NVIDIA's driver, and that of JAX's plugin."""
    version: str = jax.devices()[0].client.platform_version
    if shutil.which("nvidia-smi") is None:
        return version
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return f"{done.stdout.strip()}; {version}"


class Results:
    """Cases of one program, written to its file as they come."""

    def __init__(self, path: pathlib.Path, program: str, max_s: float):
        self._path = path
        self._end_s = time.monotonic() + max_s
        device = jax.devices()[0]
        self.document: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "command": [program, *sys.argv[1:]],
            "device": device.device_kind,
            "platform": device.platform,
            "driver": _driver(),
            "versions": {"jax": jax.__version__, "jaxlib": jaxlib.version.__version__},
            "cases": [],
        }

    @property
    def is_late(self) -> bool:
        """Whether no further case is to begin."""
        return time.monotonic() >= self._end_s

    def add(self, **case: Any) -> None:
        """Keeps a case, and prints it as a line."""
        self.document["cases"].append(case)
        self.write()
        print(json.dumps(plain(case)), flush=True)

    def write(self, **facts: Any) -> None:
        """Writes the file, with further facts of the whole."""
        self.document.update(facts)
        content = json.dumps(plain(self.document), indent=1) + "\n"
        write_whole(self._path, content.encode())


def timed(step: Callable[[T], T], carry: T, *, least_s: float) -> Mapping[str, float]:
    """Returns the median seconds of a call and its range, and the calls of a round.

    Calls are enqueued one behind another, each with what the one before returned, and
    the device is awaited at the end of a round. The first two calls are discarded.
    """
    for _ in range(2):
        start_s = time.perf_counter()
        carry = jax.block_until_ready(step(carry))
        one_s = time.perf_counter() - start_s
    num_calls = int(np.clip(least_s / _ROUNDS / one_s, 1, 1000))
    times_s = []
    for _ in range(_ROUNDS):
        start_s = time.perf_counter()
        for _ in range(num_calls):
            carry = step(carry)
        jax.block_until_ready(carry)
        times_s.append((time.perf_counter() - start_s) / num_calls)
    low_s, median_s, high_s = np.quantile(times_s, (0.0, 0.5, 1.0)).tolist()
    return {"s": median_s, "low_s": low_s, "high_s": high_s, "calls": num_calls}
