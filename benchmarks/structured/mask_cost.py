"""What masks of a grammar cost: the TPOT of masked rows, and of the rows beside them.

    python -m benchmarks.structured.mask_cost --output=out/mask_cost.json

The engine's loop serves `tiny` in this process, without HTTP. Turns alternate: 32 plain
requests at once, then as many of which 8 must write a JSON object. Every answer has
exactly `--max_tokens`: the plain ones stop at no token, and the object has a list that
is longer than that. A ratio is taken within one pair of turns, between medians of TPOT.

At temperature 0 a masked row also takes its steps from the head that finds the largest
logit to the one that draws; at temperature 1 all rows draw in both turns.
"""

import json
import pathlib
import queue
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats
from absl import flags

from jserve.build import build_loop
from jserve.config import EngineConfig
from jserve.engine.loop import EngineLoop
from jserve.program import ProgramError, run_program
from jserve.records.events import Health, TokenEvent
from jserve.text.constraints import Constraint, Constraints
from jserve.text.tokenizer import load_tokenizer
from jserve_sched.requests.request import Request, SamplingParams
from jserve_tools.reporting.documents import commit, write_whole

NUM_ROWS = 32
NUM_MASKED = 8
Steps = queue.SimpleQueue[Sequence[TokenEvent]]
WORDS = {"type": "array", "items": {"type": "string"}, "minItems": 1000}
SCHEMA = {"type": "object", "properties": {"words": WORDS}, "required": ["words"]}

_OUTPUT = flags.DEFINE_string("output", "", "JSON file to write as well.")
_NUM_PAIRS = flags.DEFINE_integer("pairs", 15, "Pairs of turns.", lower_bound=7)
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 256, "Tokens of each answer.", lower_bound=2, upper_bound=2000
)


def run_turn(
    loop: EngineLoop, steps: Steps, temperature: float, constraint: Constraint | None
) -> tuple[float, float]:
    """Returns the median TPOT of the first `NUM_MASKED` rows, and of the others.

    Args:
      constraint: What the first rows are held to; None leaves them plain.
    """
    rng = np.random.default_rng(0)  # all turns have the same prompts
    for index in range(NUM_ROWS):
        is_masked = constraint is not None and index < NUM_MASKED
        loop.submit(
            Request(
                request_id=str(index),
                arrival_s=time.monotonic(),
                prompt_tokens=rng.integers(32, 127, 32),
                max_tokens=_MAX_TOKENS.value,
                sampling=SamplingParams(temperature=temperature, seed=index),
                constraint=constraint.copy() if constraint and is_masked else None,
            )
        )
    times_s: list[list[float]] = [[] for _ in range(NUM_ROWS)]
    num_left = NUM_ROWS
    while num_left:
        for event in steps.get(timeout=60.0):
            times_s[int(event.request_id)].append(event.time_s)
            num_left -= event.finish_reason is not None
    assert {*map(len, times_s)} == {_MAX_TOKENS.value}
    tpots_s = [(one[-1] - one[0]) / (len(one) - 1) for one in times_s]
    masked_s, others_s = tpots_s[:NUM_MASKED], tpots_s[NUM_MASKED:]
    return statistics.median(masked_s), statistics.median(others_s)


def summarise(ratios: Sequence[float]) -> dict[str, Any]:
    """Returns the median, and its 95 % interval by the bootstrap."""
    found = scipy.stats.bootstrap(
        [ratios], np.median, random_state=np.random.default_rng(0), method="percentile"
    ).confidence_interval
    median = statistics.median(ratios)
    return {"median": median, "low": float(found.low), "high": float(found.high)}


def main(argv: Sequence[str]) -> None:
    """Prints one JSON document, by temperature."""
    del argv
    loop, steps = build_loop(EngineConfig()), Steps()
    loop.set_listener(steps.put)
    loop.start()
    if not loop.wait_until(Health.WARM, 600.0):
        raise ProgramError("the engine did not become warm in 600 s")
    held = Constraints(load_tokenizer(None), loop.vocab_size).make("json", SCHEMA)
    cases: list[dict[str, Any]] = []
    for temperature in (0.0, 1.0):
        turns = [
            run_turn(loop, steps, temperature, constraint)
            for constraint in (None, held) * (_NUM_PAIRS.value + 1)
        ]
        # [pairs, plain or masked turn, masked or other rows]; the first pair warms up.
        pairs = np.reshape(turns, (-1, 2, 2))[1:]
        masked, others = (pairs[:, 1] / pairs[:, 0]).T.tolist()
        plain_ms = 1e3 * float(np.median(pairs[:, 0]))
        cases.append(
            {
                **{"temperature": temperature, "plain_tpot_ms": plain_ms},
                "masked_rows": summarise(masked) | {"ratios": masked},
                "other_rows": summarise(others) | {"ratios": others},
            }
        )
    compiles = loop.stats().num_compiles_after_warmup
    loop.stop()
    text = json.dumps(
        {
            **{"commit": commit(), "max_tokens": _MAX_TOKENS.value},
            **{"compiles_after_warm_up": compiles, "cases": cases},
        },
        indent=1,
    )
    print(text)
    if _OUTPUT.value:
        write_whole(pathlib.Path(_OUTPUT.value), f"{text}\n".encode())


if __name__ == "__main__":
    run_program(sys.modules[__name__])
