"""What the scheduler of a server plans by: its policy, lengths, and request latency.

The one idea: a simulation counts the changes that a search tries, so that it can be
repeated; a server counts milliseconds, since its engine waits. Here one becomes the
other, by the speed measured on this machine.
"""

import dataclasses
import json
import logging
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from jserve.compiled_annealing import best_kernel, proposals_per_s
from jserve.config import EngineConfig
from jserve.predictor_checkpoint import PredictorFacts, first_difference
from jserve_sched.clock import Clock, WallClock
from jserve_sched.policies import PlannedAdmission, Policy, SearchLimit, make_policy
from jserve_sched.request_latency import RequestLatency, request_latency_from_json

_LOG = logging.getLogger("jserve")
_MAX_PROPOSALS = 50_000  # a search; drawing its chance takes time and memory as well
_SEARCH_FLAGS = ("annealing_budget_ms", "annealing_interval_s")


def serving_policy(config: EngineConfig, clock: Clock | None = None) -> Policy:
    """Returns the policy that serves; one that searches has its kernel compiled.

    What a policy's own options say goes before the config.

    Args:
      config: which one, and how long a search may take.
      clock: ends searches; None takes the machine's.

    Raises:
      ValueError: if the policy is no good.
    """
    policy = make_policy(config.policy)
    if not isinstance(policy, PlannedAdmission):
        _warn_of_idle(config)
        return policy
    if policy.max_batch > config.max_num_seqs:
        raise ValueError(
            f"policy {config.policy!r}: max_batch={policy.max_batch} is above "
            f"max_num_seqs={config.max_num_seqs}"
        )
    chosen = {one.partition("=")[0] for one in config.policy.split(":")[1:]}
    kernel = best_kernel()
    proposals, budget_s = policy.proposals, math.inf
    if config.annealing_budget_ms and "proposals" not in chosen:
        budget_s = config.annealing_budget_ms / 1e3
        max_batch = policy.max_batch or config.max_num_seqs
        speed = proposals_per_s(kernel, policy.window, max_batch)
        proposals = min(max(round(speed * budget_s), 1), _MAX_PROPOSALS)
        _LOG.info(
            "annealing: %d proposals in %g ms", proposals, config.annealing_budget_ms
        )
    interval_s = policy.interval_s
    if config.annealing_interval_s and "interval_s" not in chosen:
        interval_s = config.annealing_interval_s
    return dataclasses.replace(
        policy,
        kernel=kernel,
        proposals=proposals,
        interval_s=interval_s,
        limit=SearchLimit(clock or WallClock(), budget_s),
    )


def _warn_of_idle(config: EngineConfig) -> None:
    default = EngineConfig()
    idle = [
        f"{name}={getattr(config, name):g}"
        for name in _SEARCH_FLAGS
        if getattr(config, name) != getattr(default, name)
    ]
    if idle:
        _LOG.warning(
            "%s: nothing to limit, policy %r searches for no plan",
            ", ".join(idle),
            config.policy,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestLatencyFile:
    """A request latency, and what it holds for.

    Attributes:
      path: where it was read.
      latency: what it says.
      measured_with: fields of `PredictorFacts`; what it does not name it holds for.
    """

    path: pathlib.Path
    latency: RequestLatency
    measured_with: Mapping[str, Any]

    def fault(self, engine: PredictorFacts) -> str:
        """Returns why it is of no use to an engine, which is logged; "" if it is."""
        difference = first_difference(self.measured_with, engine)
        if difference is None:
            return ""
        fault, sentence = difference
        _LOG.warning(
            "request latency %r %s: it is fitted to the step predictor instead",
            str(self.path),
            sentence,
        )
        return fault


def read_request_latency(config: EngineConfig) -> RequestLatencyFile | None:
    """Returns what the config's file says; None without a file.

    Raises:
      ValueError: if it cannot be read, or is not such a file.
    """
    path = config.request_latency
    if path is None:
        return None
    try:
        text = path.read_text()
        latency = request_latency_from_json(text)
        facts = json.loads(text).get("measured_with", {})
        if not isinstance(facts, dict):
            raise ValueError(f"measured_with={facts!r} is no JSON object")
    except (OSError, ValueError) as error:
        raise ValueError(f"request_latency={str(path)!r}: {error}") from None
    return RequestLatencyFile(path=path, latency=latency, measured_with=facts)
