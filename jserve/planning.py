"""What the scheduler of a server plans by: its policy, lengths, and request latency.

The one idea: a simulation counts the changes that a search tries, so that it can be
repeated; a server counts milliseconds, since its engine waits. Here one becomes the
other, by the speed measured on this machine.
"""

import dataclasses
import logging
import math

from jserve.compiled_annealing import best_kernel, proposals_per_s
from jserve.config import EngineConfig
from jserve_sched.clock import Clock, WallClock
from jserve_sched.policies import PlannedAdmission, Policy, SearchLimit, make_policy
from jserve_sched.request_latency import RequestLatency, request_latency_from_json

_LOG = logging.getLogger("jserve")
_MAX_PROPOSALS = 50_000  # a search; drawing its chance takes time and memory as well


def serving_policy(config: EngineConfig, clock: Clock | None = None) -> Policy:
    """Returns the policy that serves; one that searches has its kernel compiled.

    Args:
      config: which one, and how long a search may take.
      clock: ends searches; None takes the machine's.

    Raises:
      ValueError: if the policy is no good.
    """
    policy = make_policy(config.policy)
    if not isinstance(policy, PlannedAdmission):
        return policy
    kernel = best_kernel()
    proposals, budget_s = policy.proposals, math.inf
    if config.annealing_budget_ms:
        budget_s = config.annealing_budget_ms / 1e3
        max_batch = policy.max_batch or config.max_num_seqs
        speed = proposals_per_s(kernel, policy.window, max_batch)
        proposals = min(max(round(speed * budget_s), 1), _MAX_PROPOSALS)
        _LOG.info(
            "annealing: %d proposals in %g ms", proposals, config.annealing_budget_ms
        )
    return dataclasses.replace(
        policy,
        kernel=kernel,
        proposals=proposals,
        interval_s=config.annealing_interval_s or policy.interval_s,
        limit=SearchLimit(clock or WallClock(), budget_s),
    )


def read_request_latency(config: EngineConfig) -> RequestLatency | None:
    """Returns what the config's file says; None without a file.

    Raises:
      ValueError: if it cannot be read, or is not such a file.
    """
    path = config.request_latency
    if path is None:
        return None
    try:
        return request_latency_from_json(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"request_latency={str(path)!r}: {error}") from None
