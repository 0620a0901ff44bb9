"""What the scheduler of a server plans by: its policy and its request latency."""

import logging
import math

from jserve.compiled_annealing import best_kernel
from jserve.config import EngineConfig, read_setting
from jserve.timing.checkpoint import PredictorFacts, first_difference
from jserve_sched.clock import WallClock
from jserve_sched.planning.latency_source import LatencySource
from jserve_sched.policies.annealing.policy import SearchLimit
from jserve_sched.policies.base import Policy
from jserve_sched.policies.registry import make_policy
from jserve_sched.timing.request_latency import (
    RequestLatency,
    request_latency_from_json,
)

_LOG = logging.getLogger("jserve")


def serving_policy(config: EngineConfig, latency: RequestLatency | None) -> Policy:
    """Returns the policy that serves; one that searches has its kernel compiled.

    A simulation counts the changes that a search tries, so that it can be repeated; a
    server counts milliseconds too, since its engine waits.

    Args:
      latency: Times of whole requests; None fits them to the step predictor.

    Raises:
      ValueError: If the policy is invalid.
    """
    return make_policy(
        config.policy,
        latency=LatencySource(latency),
        make_kernel=best_kernel,
        limit=SearchLimit(WallClock(), config.annealing_budget_ms / 1e3 or math.inf),
    )


def read_request_latency(config: EngineConfig) -> RequestLatency | None:
    """Returns the request latency in the config's file; None without a file.

    Raises:
      ValueError: If it cannot be read, or is not such a file.
    """
    path, parse = config.request_latency, request_latency_from_json
    return None if path is None else read_setting("request_latency", path, parse)


def latency_fault(latency: RequestLatency | None, engine: PredictorFacts) -> str:
    """Returns why a file's latency is not used, which is logged; "" if it is."""
    facts = latency.measured_with if latency else {}
    fault, text = first_difference(facts, engine) or ("", "")
    if fault:
        _LOG.warning(
            "the request latency %s: it is fitted to the step predictor instead", text
        )
    return fault
