"""Writes annealing.json: small instances and the best plans there are.

What stands behind a set of jobs only asks how late that set ends. So of all plans of
one set (any order, any batches) those suffice that no other beats in all three of end,
jobs attained and sum of latencies. Sets are built up batch by batch, which covers every
order and every batching without listing them, as the paper's straw man does.

Usage: python tests/golden/write_annealing.py
"""

import dataclasses
import itertools
import json
import pathlib
import sys

import numpy as np

from jserve_sched.policies.annealing.problem import AnnealingProblem, Score

FOLDER = pathlib.Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from tests.annealing_instances import NO_LIMIT, draw  # noqa: E402

NUM_INSTANCES = 60


def best_score(problem: AnnealingProblem) -> Score:
    """Returns the highest G there is; of plans with G = 0 the shortest."""
    num_jobs, max_batch = problem.exec_s.shape
    batches = {
        sum(1 << job for job in jobs): list(jobs)
        for size in range(1, max_batch + 1)
        for jobs in itertools.combinations(range(num_jobs), size)
        if size == 1 or problem.kv_tokens[list(jobs)].sum() <= problem.max_kv_tokens
    }
    # Of each set, as bits: (end, jobs attained, sum of latencies) of its plans.
    kept = [[(problem.start_s, 0, 0.0)]]
    for whole in range(1, 1 << num_jobs):
        plans = []
        for last, jobs in batches.items():
            if last & whole != last:
                continue
            exec_s = problem.exec_s[jobs, len(jobs) - 1]
            latest_s = problem.latest_s[jobs, len(jobs) - 1]
            own_s = float(np.sum(exec_s + problem.waited_s[jobs]))
            for end_s, num_attained, total_s in kept[whole ^ last]:
                plans.append(
                    (
                        end_s + float(np.max(exec_s)),
                        num_attained + int(np.sum(latest_s >= end_s)),
                        total_s + own_s + len(jobs) * end_s,
                    )
                )
        kept.append([])
        for plan in sorted(plans, key=lambda one: (one[0], -one[1], one[2])):
            if not any(one[1] >= plan[1] and one[2] <= plan[2] for one in kept[whole]):
                kept[whole].append(plan)
    return max((Score(*one[1:]) for one in kept[-1]), key=lambda score: score.merit)


def main() -> None:
    """Draws instances until enough of them have an optimum with a job attained."""
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
        score = best_score(instance.problem())
        if score.num_attained:
            row = [dataclasses.asdict(instance), score.num_attained, score.total_s]
            lines.append(json.dumps(row, separators=(",", ":")))
    text = "[\n" + ",\n".join(lines) + "\n]\n"
    (FOLDER / "annealing.json").write_text(text)


if __name__ == "__main__":
    main()
