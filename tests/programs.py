"""Programs as people run them: in processes, since importing one defines its flags."""

import json
import os
import subprocess
import sys
from typing import Any

from tests import ROOT

# The sources, installed or not.
SOURCES = os.pathsep.join(
    str(ROOT / part) for part in (".", "models", "sched", "tools")
)


def start(*arguments: str) -> subprocess.Popen[str]:
    """Starts Python, such as with `-m` and a module, from these sources."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": SOURCES},
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, dict[str, Any]]:
    """Waits for a program; returns what it printed, and its last line as JSON."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out, json.loads(out.splitlines()[-1])
