"""A synthetic report with all the data that a page shows."""

import itertools
from typing import Any

import numpy as np

POLICIES = ("fcfs", "edf", "sliding")
BLOCK_EDGES = {"pow2": (0, 1, 2, 4, 8, 16, 32, 64), "fitted": (0, 1, 3, 5, 11, 27, 64)}
ROW_EDGES = (1, 8, 32)
CLASSES = {"interactive": 240, "batch": 160}


def small_run(num_attained: int = 180, num: int = 200, **fields: Any) -> dict[str, Any]:
    """Returns the fields of a run that cells need, and those that a test adds."""
    counts = {"num_requests": num, "num_violations": num - num_attained}
    return {"policy": "fcfs", "load": 0.9, "seed": 0, "qps": 2.0} | counts | fields


def small_report(*runs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Returns a report of runs, with fields that a test adds."""
    return {"schema_version": 2, "device": "cpu", "runs": list(runs)} | fields


def fake_report(
    *,
    policies: tuple[str, ...] = POLICIES,
    strategies: tuple[str, ...] = tuple(BLOCK_EDGES),
    loads: tuple[float, ...] = (0.9, 1.2),
) -> dict[str, Any]:
    """A report as jserve-bench writes it, the same for equal arguments."""
    rng = np.random.default_rng(7)
    tokens = 32 + np.arange(0, 2049, 32)
    return {
        "schema_version": 2,
        "date": "2026-01-02T03:04:05+00:00",
        "version": "0.1.0",
        "commit": "0123456789ab",
        "device": "cpu",
        "machine": {"processor": "x86_64", "num_cpus": 2},
        "command": ["jserve-bench", "--launch", "--policies=" + ",".join(policies)],
        "server": {"model": "tiny", "max_model_len": 16384},
        "workload": {
            "trace": "azure_conv.csv",
            "num_rows": 400,
        },
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


def _requests(rng: np.random.Generator, name: str, num: int) -> list[dict[str, Any]]:
    times = rng.lognormal(-1, 0.5, (num, 3)).round(6).tolist()
    rows = [
        {"service_class": name, "ttft_s": ttft, "tbt_p99_s": tbt / 9, "e2e_s": 4 * e2e}
        for ttft, tbt, e2e in times
    ]
    if name == "interactive":
        rows = [row | {"slo": {"ttft_s": 2.25, "tbt_s": 0.05}} for row in rows]
    return rows


def _run(
    rng: np.random.Generator, strategy: str, policy: str, load: float
) -> dict[str, Any]:
    place = list(BLOCK_EDGES).index(strategy) if strategy in BLOCK_EDGES else 0
    skill = 0.06 * POLICIES.index(policy) if policy in POLICIES else 0.0
    blocks = BLOCK_EDGES.get(strategy, BLOCK_EDGES["pow2"])
    share = min(0.8 + skill + 0.02 * place - 0.4 * (load - 0.9), 0.99)
    by_class = {}
    for name, num in CLASSES.items():
        late = int(num * (1 - share)) if name == "interactive" else 2
        by_class[name] = {
            "num_requests": num,
            "num_violations": late + 1,
            "violations_by_cause": {"error": 1, "late_first_token": late},
        }
    start = {"ready_s": 2.0, "warm_s": 9.0, "compile_s": 8.0, "executable_bytes": 10**6}
    made = {"trace_s": 0.2, "compile_s": 1.5, "executable_bytes": 2**20}
    return {
        "policy": policy,
        "bucket_strategy": strategy,
        "load": load,
        "qps": 21.0 * load,
        "seed": 0,
        "num_requests": sum(CLASSES.values()),
        "num_violations": sum(one["num_violations"] for one in by_class.values()),
        "by_class": by_class,
        "failures": [
            {"reason": "error", "count": 2, "message": "connection reset by peer"}
        ],
        "output_tokens_per_s": 800.0,
        "steps_per_s": 118.0,
        "pad_share_tokens": 0.3 - 0.1 * place,
        "pad_share_time": 0.2 - 0.1 * place,
        "num_programs": len(blocks) * len(ROW_EDGES),
        "num_compiles_after_warmup": 0,
        "buckets": {
            "row_edges": list(ROW_EDGES),
            "block_edges": list(blocks),
            "block_tokens": 32,
        },
        "start_up": start
        | {"programs": [made | {"program": "B32xNB16", "source": "compiled"}]},
        "steps_by_program": [
            {
                "num_rows": rows,
                "num_blocks": edge,
                "num_steps": 100 - edge,
                "used_tokens_mean": 0.8 * (rows + 32 * edge),
                "bucket_s": 0.004 + 1e-3 * edge,
            }
            for rows in ROW_EDGES
            for edge in blocks
        ],
        "requests": [
            row for name, num in CLASSES.items() for row in _requests(rng, name, num)
        ],
    }
