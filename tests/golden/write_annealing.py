"""Writes annealing.json: 200 small instances and the best plans there are.

The program that found an optimum may change; the optimum may not. Sums of latencies
are whole nanoseconds.

Usage: python tests/golden/write_annealing.py
"""

import dataclasses
import json
import pathlib
import sys

import numpy as np

from jserve_sched.annealing_exhaustive import best_plan

FOLDER = pathlib.Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from annealing_instances import NO_LIMIT, draw  # noqa: E402

NUM_INSTANCES = 200


def main() -> None:
    """Draws instances until enough of them have an optimum with a job met."""
    rng = np.random.default_rng(2025)
    lines: list[str] = []
    while len(lines) < NUM_INSTANCES:
        instance = draw(
            rng,
            int(rng.integers(2, 9)),
            (1, 2, 4)[len(lines) % 3],
            max_kv_tokens=int(rng.choice([NO_LIMIT, 1500])),
            start_ms=int(rng.choice([0, 2000])),
            max_waited_ms=int(rng.choice([0, 3000])),
            ttlt_s=float(rng.choice([8, 15, 30])),
            ttft_s=float(rng.choice([3, 10])),
        )
        _, score = best_plan(instance.problem())
        if score.num_met:
            row = [dataclasses.asdict(instance), score.num_met, score.total_ns]
            lines.append(json.dumps(row, separators=(",", ":")))
    text = "[\n" + ",\n".join(lines) + "\n]\n"
    (FOLDER / "annealing.json").write_text(text)


if __name__ == "__main__":
    main()
