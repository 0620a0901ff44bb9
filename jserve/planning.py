"""What the scheduler of a server plans by: its policy and its request latency."""

import dataclasses
import json
import logging
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import scipy.optimize  # noqa: F401  A request waits for the first fit: import it now.

from jserve.compiled_annealing import best_kernel
from jserve.config import EngineConfig
from jserve.predictor_checkpoint import PredictorFacts, first_difference
from jserve_sched.clock import Clock, WallClock
from jserve_sched.policies import PlannedAdmission, Policy, SearchLimit, make_policy
from jserve_sched.request_latency import RequestLatency, request_latency_from_json

_LOG = logging.getLogger("jserve")


def serving_policy(config: EngineConfig, clock: Clock | None = None) -> Policy:
    """Returns the policy that serves; one that searches has its kernel compiled.

    A simulation counts the changes that a search tries, so that it can be repeated; a
    server counts milliseconds too, since its engine waits.

    Args:
      config: The policy, and how long a search may take.
      clock: Ends searches; None takes the machine's.

    Raises:
      ValueError: If the policy is invalid.
    """
    policy = make_policy(config.policy)
    budget_ms = config.annealing_budget_ms
    if not isinstance(policy, PlannedAdmission):
        if budget_ms != EngineConfig.annealing_budget_ms:
            _LOG.warning(
                "annealing_budget_ms=%g limits nothing: policy %r does not search",
                budget_ms,
                config.policy,
            )
        return policy
    if policy.max_batch > config.max_num_seqs:
        raise ValueError(
            f"policy {config.policy!r}: max_batch={policy.max_batch} is above "
            f"max_num_seqs={config.max_num_seqs}"
        )
    limit = SearchLimit(clock or WallClock(), budget_ms / 1e3 or math.inf)
    return dataclasses.replace(policy, kernel=best_kernel(), limit=limit)


class RequestLatencyFile(NamedTuple):
    """A request latency, and what it holds for.

    Attributes:
      path: Where it was read.
      latency: What it says.
      measured_with: Fields of `PredictorFacts`; others than these may differ.
    """

    path: pathlib.Path
    latency: RequestLatency
    measured_with: Mapping[str, Any]

    def fault(self, engine: PredictorFacts) -> str:
        """Returns why it is of no use to an engine, which is logged; "" if it is."""
        difference = first_difference(self.measured_with, engine)
        if difference is None:
            return ""
        _LOG.warning(
            "request latency %r %s: it is fitted to the step predictor instead",
            str(self.path),
            difference[1],
        )
        return difference[0]


def read_request_latency(config: EngineConfig) -> RequestLatencyFile | None:
    """Returns what the config's file says; None without a file.

    Raises:
      ValueError: If it cannot be read, or is not such a file.
    """
    path = config.request_latency
    if path is None:
        return None
    try:
        text = path.read_text()
        latency = request_latency_from_json(text)
        facts = json.loads(text).get("measured_with", {})
        if not isinstance(facts, dict):
            raise ValueError(f"measured_with={facts!r} is not a JSON object")
    except (OSError, ValueError) as error:
        raise ValueError(f"request_latency={str(path)!r}: {error}") from None
    return RequestLatencyFile(path, latency, facts)
