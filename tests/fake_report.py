"""A made-up report with everything in it: five strategies, four policies."""

import itertools
from typing import Any

import numpy as np

from jserve_sched.report import wilson_interval

POLICIES = ("fcfs", "edf", "qoserve", "sliding")
BLOCK_EDGES = {
    "pow2": (0, 1, 2, 4, 8, 16, 32, 64),
    "two_bit": (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64),
    "linear:block_gap=8": tuple(range(0, 65, 8)),
    "pad_limit:relative=0.25": (0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 28, 35, 44, 64),
    "fitted": (0, 1, 3, 5, 7, 11, 14, 19, 27, 40, 64),
}
ROW_EDGES = (1, 2, 4, 8, 16, 32)
CLASSES = {"interactive": 240, "batch": 160}


def fake_report(
    *,
    policies: tuple[str, ...] = POLICIES,
    strategies: tuple[str, ...] = tuple(BLOCK_EDGES),
    loads: tuple[float, ...] = (0.9,),
) -> dict[str, Any]:
    """A report as jserve-bench writes it; the same for the same arguments."""
    rng = np.random.default_rng(7)
    tokens = 32 + np.arange(0, 2049, 32)
    return {
        "schema_version": 2,
        "commit": "0123456789ab",
        "device": "cpu",
        "jax": "0.10.2",
        "machine": {"processor": "x86_64", "num_cpus": 2},
        "command": ["jserve-bench", "--launch", "--policies=" + ",".join(policies)],
        "server": {"model": "tiny", "max_model_len": 16384},
        "workload": {"trace": "azure_conv.csv", "num_rows": 400, "seed": 0},
        "staircase": {
            "num_rows": 32,
            "tokens": tokens.tolist(),
            "seconds": (0.004 + 4e-5 * tokens + 4e-9 * tokens**2).tolist(),
        },
        "runs": [
            _run(rng, strategy, policy, load)
            for load, strategy, policy in itertools.product(loads, strategies, policies)
        ],
    }


def _promises(rng: np.random.Generator, num: int, share: float) -> dict[str, Any]:
    num_met = int(rng.binomial(num, share))
    return {
        "num_requests": num,
        "num_finished": num,
        "num_violations": num - num_met,
        "attainment": num_met / num,
        "attainment_ci95": list(wilson_interval(num_met, num)),
    }


def _times(scale: float) -> dict[str, float]:
    return {"mean": scale, "p50": 0.7 * scale, "p90": 2 * scale, "p99": 4 * scale}


def _start_up(rng: np.random.Generator, num: int, program_s: float) -> dict[str, Any]:
    return {
        "ready_s": 0.8 + 8 * program_s,
        "warm_s": 0.8 + num * program_s,
        "compile_s": num * program_s,
        "executable_bytes": int(num * 180_000 * rng.uniform(0.9, 1.1)),
        "programs": [],
    }


def _run(
    rng: np.random.Generator, strategy: str, policy: str, load: float
) -> dict[str, Any]:
    names = list(BLOCK_EDGES)
    place = names.index(strategy) if strategy in names else 0
    blocks = BLOCK_EDGES.get(strategy, BLOCK_EDGES["pow2"])
    skill = 0.03 * POLICIES.index(policy) if policy in POLICIES else 0.0
    share = min(0.72 + skill + 0.03 * place - 0.3 * (load - 0.9), 0.99)
    classes = {
        name: _promises(rng, num, share if name == "interactive" else 0.97)
        for name, num in CLASSES.items()
    }
    num_violations = sum(one["num_violations"] for one in classes.values())
    num = sum(CLASSES.values())
    num_programs = len(blocks) * len(ROW_EDGES) - 2
    bucket, block = 0.3 / (1 + place), 0.02 + 0.01 * place
    used = rng.geometric(0.12, 1400) * (rng.random(1400) < 0.6) * 40 + 20
    counts, edges = np.histogram(used, bins=np.arange(0, 2049, 32))
    programs = [
        {
            "num_rows": rows,
            "num_blocks": edge,
            "num_steps": int(800 / (1 + 2 * row) / (1 + column) ** 1.5),
            "used_tokens_mean": 0.8 * (rows + 32 * edge),
            "bucket_s": 0.004 + 1e-3 * edge,
            "step_s_p50": 0.004 + 1.1e-3 * edge,
            "total_s": 1.0,
        }
        for row, rows in enumerate(reversed(ROW_EDGES))
        for column, edge in enumerate(blocks)
    ]
    return {
        "policy": policy,
        "bucket_strategy": strategy,
        "load": load,
        "qps": 21.0 * load,
        "seed": 0,
        "num_requests": num,
        "num_finished": num,
        "num_violations": num_violations,
        "attainment": 1 - num_violations / num,
        "by_class": classes,
        "ttft_s": _times(0.5 - 0.05 * place),
        "tbt_s": _times(0.02),
        "e2e_s": _times(1.5),
        "num_steps": 1400,
        "steps_per_s": 118.0 + 3 * place,
        "pad_share_tokens": bucket + block,
        "pad_share_bucket": bucket,
        "pad_share_block": block,
        "pad_share_time": 0.6 * bucket,
        "step_s": _times(0.008),
        "num_programs": num_programs,
        "num_compiles_after_warmup": 0,
        "buckets": {
            "row_edges": list(ROW_EDGES),
            "block_edges": list(blocks),
            "block_tokens": 32,
        },
        "start_up": _start_up(rng, num_programs, 0.21),
        "start_up_warm": _start_up(rng, num_programs, 0.02),
        "steps_by_program": programs,
        "step_tokens": {"edges": edges.tolist(), "counts": counts.tolist()},
    }
