"""SlidingServe's published numbers, which tables show beside those of jserve.

All are from arXiv 2606.05933v1, measured on two RTX 3090 with tensor parallelism, and
are in this file so that they can be checked. Goodputs and ablation are printed
there; the overload shares were read off its Fig. 5, to about 2 points.
"""

WORKLOADS = ("sharegpt", "arxiv_v1", "arxiv_v2", "mixed_v1", "mixed_v2")
POLICIES = ("edf", "qoserve", "sliding")
QWEN, LLAMA = "Qwen2.5-7B", "Llama3-8B"

# Fig. 4: requests a second with at most 1 % violations; workloads in order.
_GOODPUT_QPS = {
    QWEN: {
        "edf": (2.80, 0.60, 0.35, 1.50, 1.30),
        "qoserve": (3.20, 0.85, 0.50, 1.70, 1.50),
        "sliding": (3.50, 1.00, 0.65, 1.95, 1.70),
    },
    LLAMA: {
        "edf": (2.30, 0.45, 0.25, 1.25, 1.10),
        "qoserve": (3.00, 0.80, 0.40, 1.55, 1.35),
        "sliding": (3.30, 0.95, 0.50, 1.85, 1.55),
    },
}

# Fig. 5, Qwen2.5-7B: requests a second.
OVERLOAD_QPS = {
    "sharegpt": (3.6, 3.8, 4.0, 4.2),
    "arxiv_v1": (1.10, 1.25, 1.40, 1.55),
    "arxiv_v2": (0.7, 0.8, 0.9, 1.0),
    "mixed_v1": (2.1, 2.3, 2.5, 2.7),
    "mixed_v2": (1.75, 2.0, 2.25, 2.5),
}

# Fig. 5, Qwen2.5-7B: requests that violate their SLO at these loads, percent.
OVERLOAD_PERCENT = {
    "sharegpt": {
        "edf": (38, 78, 83, 85),
        "qoserve": (8, 19, 53, 78),
        "sliding": (8, 18, 23, 26),
    },
    "arxiv_v1": {
        "edf": (83, 88, 92, 93),
        "qoserve": (82, 88, 91, 93),
        "sliding": (42, 56, 66, 76),
    },
    "arxiv_v2": {
        "edf": (86, 90, 91, 98),
        "qoserve": (84, 87, 90, 92),
        "sliding": (56, 60, 65, 71),
    },
    "mixed_v1": {
        "edf": (74, 81, 85, 90),
        "qoserve": (71, 78, 80, 88),
        "sliding": (41, 44, 46, 50),
    },
    "mixed_v2": {
        "edf": (61, 68, 81, 86),
        "qoserve": (53, 67, 74, 84),
        "sliding": (8, 41, 48, 64),
    },
}

# Table 4, Qwen2.5-7B on mixed_v1: goodput, and percent of violations at 3 a second.
ABLATION_WORKLOAD = "mixed_v1"
ABLATION_QPS = (1.50, 1.75, 1.85, 1.95)
ABLATION_PERCENT = (100.0, 81.5, 58.6, 50.5)
ABLATION_LOAD_QPS = 3.0


def goodput_qps(workload: str, policy: str, model: str = QWEN) -> float:
    """Returns a published goodput, requests per second."""
    return _GOODPUT_QPS[model][policy][WORKLOADS.index(workload)]


def goodput_ratio(workload: str, policy: str, base: str, model: str) -> float:
    """Returns a policy's published goodput divided by that of `base`."""
    return goodput_qps(workload, policy, model) / goodput_qps(workload, base, model)
