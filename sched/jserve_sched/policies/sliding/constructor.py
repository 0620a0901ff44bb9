"""BatchConstructor: which prompts to finish now when some would be late.

SlidingServe 3.5, Algorithm 2. Every request at risk is tried as an *anchor*: the step
must end within its slack, and the rest of that step is filled by a 0/1 knapsack over
the requests that can wait at least as long. Of all anchors the one that finishes most
prompts wins, then the most value, then the most work (Eq. 21).

Weights are whole numbers of any unit; the policy takes blocks, since a block belongs to
one sequence. Where the paper is silent:

* The capacity also keeps the decodes in time (the paper's Eq. 17 counts TTFT alone).
* Late requests are neither anchors nor in the pool: they cannot be saved.
* At most 8 anchors, tightest first, and 32 prompts in the pool, by least slack: the
  rest of a long queue cannot be finished in one step.
* If no anchor can be in time, nothing is returned and the chunker decides.

`A` is the number of anchors, `J` of prompts.
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
) -> np.ndarray:
    """Returns the places of the prompts to finish, ascending; empty for none.

    Args:
      slack_s: `[J]` s_j, seconds; only those above 0 are looked at.
      weight: `[J]` int, r_j in units.
      is_at_risk: `[J]` bool, whether the full step would make it late.
      capacity: `[J]` int, units that fit into the slack of each, C_j.
    """
    # The pool by slack, and its anchors: at risk, and finished within their own slack.
    rank = np.lexsort((weight, slack_s))
    rank = rank[slack_s[rank] > 0][:_MAX_POOL]
    slack_s, weight = slack_s[rank], weight[rank]
    at_risk = is_at_risk[rank] & (weight <= capacity[rank]) & (weight > 0)
    anchors = np.flatnonzero(at_risk)[:_MAX_ANCHORS]
    if not anchors.size:
        return anchors
    # Each anchor's knapsack: what can wait as long fills the room beside it (Eq. 18).
    room = capacity[rank][anchors] - weight[anchors]
    in_pool = slack_s[None, :] >= slack_s[anchors, None]
    finite = np.minimum(slack_s, 1e9)
    slack_sum = (in_pool * finite).sum(axis=1, keepdims=True)
    weight_sum = (in_pool * weight).sum(axis=1, keepdims=True)
    each = 1.0 / (finite / slack_sum + weight / weight_sum)
    value = np.where(in_pool, each, 0.0)  # v_j
    free = value.copy()
    free[np.arange(len(anchors)), anchors] = 0.0  # has its room already
    taken = _knapsacks(free, weight, room)
    taken[np.arange(len(anchors)), anchors] = True
    # The best anchor: most prompts, then most value, then most work (Eq. 21).
    work, gain = (taken * weight).sum(axis=1), (taken * value).sum(axis=1)
    best = np.lexsort((work, gain, taken.sum(axis=1)))[-1]
    places: np.ndarray = np.sort(rank[taken[best]])
    return places


def _knapsacks(value: np.ndarray, weight: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Solves one 0/1 knapsack an anchor; returns what is taken, `[A, J]` bool.

    Dynamic programming over capacities, all anchors at once.

    Args:
      value: `[A, J]`; 0 keeps an item out.
      weight: `[J]` int, above 0.
      room: `[A]` int capacities.
    """
    num_anchors, num_items = value.shape
    most, sizes = int(room.max()), weight.tolist()
    best = np.zeros((num_anchors, most + 1))
    takes = np.zeros((num_items, num_anchors, most + 1), bool)
    # The best value of each capacity, item by item.
    for item, size in enumerate(sizes):
        if size > most:
            continue
        with_it, rest = (
            best[:, : most + 1 - size] + value[:, item, None],
            best[:, size:],
        )
        np.greater(with_it, rest, out=takes[item, :, size:])
        np.maximum(with_it, rest, out=rest)
    # The items behind the best value of each room.
    taken = np.zeros((num_anchors, num_items), bool)
    for anchor, left in enumerate(room.tolist()):
        for item in range(num_items - 1, -1, -1):
            if takes[item, anchor, left]:
                taken[anchor, item] = True
                left -= sizes[item]
    return taken
