"""BatchConstructor: which prompts to finish now when some would be late.

SlidingServe 3.5, Algorithm 2. Every request at risk is tried as an *anchor*: the step
must end within its slack, and the rest of that step is filled by a 0/1 knapsack over
the requests that can wait at least as long. Of all anchors the one that finishes most
prompts wins, then the most value, then the most work (Eq. 21).

Weights are whole numbers of any unit; the policy takes blocks, since a block belongs to
one sequence. Where the paper is silent:

* The capacity also keeps the decodes in time (the paper's Eq. 17 counts TTFT alone).
* Late requests are no anchors and not in the pool: they cannot be saved.
* At most 8 anchors, tightest first, and 32 prompts in the pool, by
  least slack: the rest of a long queue cannot be finished in one step.
* No anchor can be met: nothing is returned, and the chunker decides.

`A` is the number of anchors, `J` of prompts, `C` the largest capacity.
"""

import numpy as np

_MAX_ANCHORS = 8
_MAX_POOL = 32


def select(
    *,
    slack_s: np.ndarray,
    weight: np.ndarray,
    is_at_risk: np.ndarray,
    capacity: np.ndarray,
    max_anchors: int = _MAX_ANCHORS,
) -> np.ndarray:
    """Returns the places of the prompts to finish, ascending; empty for none.

    Args:
      slack_s: `[J]` s_j, seconds; only those above 0 are looked at.
      weight: `[J]` int, r_j in units.
      is_at_risk: `[J]` bool, whether the full step would make it late.
      capacity: `[J]` int, units that fit into the slack of each, C_j; read at the
        places of anchors alone.
      max_anchors: Requests at risk that are tried.
    """
    rank = np.lexsort((weight, slack_s))
    rank = rank[slack_s[rank] > 0][:_MAX_POOL]
    slack_s, weight = slack_s[rank], weight[rank]
    at_risk = is_at_risk[rank] & (weight <= capacity[rank]) & (weight > 0)
    anchors = np.flatnonzero(at_risk)[:max_anchors]
    if not anchors.size:
        return anchors
    room = capacity[rank][anchors] - weight[anchors]
    in_pool = slack_s[None, :] >= slack_s[anchors, None]
    value = _values(slack_s, weight, in_pool)
    taken = _knapsacks(
        np.where(in_pool, value, -np.inf), weight, room, excluded=anchors
    )
    taken[np.arange(len(anchors)), anchors] = True
    scores = (
        (taken * weight).sum(axis=1),
        np.where(taken, value, 0.0).sum(axis=1),
        taken.sum(axis=1),
    )
    best = np.lexsort(scores)[-1]
    places: np.ndarray = np.sort(rank[taken[best]])
    return places


def _values(slack_s: np.ndarray, weight: np.ndarray, in_pool: np.ndarray) -> np.ndarray:
    """Returns v_j for each anchor's pool, `[A, J]` (Eq. 18)."""
    finite = np.minimum(slack_s, 1e9)
    slack_sum = (in_pool * finite).sum(axis=1, keepdims=True)
    weight_sum = (in_pool * weight).sum(axis=1, keepdims=True)
    value: np.ndarray = 1.0 / (finite / slack_sum + weight / weight_sum)
    return value


def _knapsacks(
    value: np.ndarray, weight: np.ndarray, room: np.ndarray, *, excluded: np.ndarray
) -> np.ndarray:
    """Solves one 0/1 knapsack an anchor; returns what is taken, `[A, J]` bool.

    Dynamic programming over capacities, all anchors at once.

    Args:
      value: `[A, J]`; -inf keeps an item out.
      weight: `[J]` int, above 0.
      room: `[A]` int capacities.
      excluded: `[A]` the one item of each row that is in already.
    """
    num_anchors, num_items = value.shape
    value = value.copy()
    value[np.arange(num_anchors), excluded] = -np.inf
    most = int(room.max())
    best = np.zeros((num_anchors, most + 1))
    takes = np.zeros((num_items, num_anchors, most + 1), bool)
    for item in range(num_items):
        size = int(weight[item])
        if size > most:
            continue
        with_it = best[:, : most + 1 - size] + value[:, item, None]
        gains = with_it > best[:, size:]
        takes[item, :, size:] = gains
        best[:, size:] = np.where(gains, with_it, best[:, size:])
    taken = np.zeros((num_anchors, num_items), bool)
    left = room.copy()
    rows = np.arange(num_anchors)
    for item in range(num_items - 1, -1, -1):
        chosen = takes[item, rows, left]
        taken[:, item] = chosen
        left = left - np.where(chosen, int(weight[item]), 0)
    return taken
