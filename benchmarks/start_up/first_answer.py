"""Prints how long a server takes to its first answer, with empty and filled caches.

    python benchmarks/start_up/first_answer.py [flag of jserve ...]

Three starts each, in turns. Seconds by the clock, and of the processor: other processes
add to the first only.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

TURNS = 3
URL = "http://127.0.0.1:18431/v1/completions"
BODY = json.dumps({"prompt": "hello", "max_tokens": 1}).encode()


def main(flags: Sequence[str]) -> None:
    """Measures the turns."""
    print("cache    first answer s  processor s")
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS):
            for cache in ("empty", "filled"):
                wall_s, cpu_s = start([f"--compile_cache_dir={folder}/{turn}", *flags])
                print(f"{cache:7}  {wall_s:14.2f}  {cpu_s:11.2f}", flush=True)


def start(flags: Sequence[str]) -> tuple[float, float]:
    """Returns the seconds to a server's first answer; then the server is stopped."""
    start_s = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "jserve", "--port=18431", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not is_answered():
            assert server.poll() is None, "the server has ended"
            time.sleep(0.02)
        times = pathlib.Path(f"/proc/{server.pid}/stat").read_text().split()[13:15]
        cpu_s = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter() - start_s, cpu_s
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def is_answered() -> bool:
    """Returns whether a server answers a completion."""
    headers = {"content-type": "application/json"}
    try:
        urllib.request.urlopen(urllib.request.Request(URL, BODY, headers)).read()
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
