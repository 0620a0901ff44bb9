"""How `in_process.py` talks to its workers: JSON lines on stdin and stdout.

A worker first writes `{"versions": ..., "settings": ...}` when it is ready. Then,
for each line `{"prompts", "batch", "max_tokens"}`, it writes an `Answer`.

The one idea: it runs in any environment, so it imports the standard library alone.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What a job gave.

    Attributes:
      elapsed_s: from the first prompt in to the last token out.
      outputs: token ids, in the prompts' order.
      details: what else the worker saw.
    """

    elapsed_s: float
    outputs: list[list[int]]
    details: dict[str, Any]


Generate = Callable[[list[list[int]], int, int], Answer]


def serve_lines(describe: Callable[[], dict[str, Any]], generate: Generate) -> None:
    """Answers jobs until stdin ends.

    Args:
      describe: makes ready; returns versions and settings.
      generate: takes prompts, how many to run at once and the output's length.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print, too
    print(json.dumps(describe()), file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        answer = generate(job["prompts"], job["batch"], job["max_tokens"])
        print(json.dumps(answer._asdict()), file=answers, flush=True)
