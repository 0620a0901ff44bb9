"""Whether an on-time set has KV pages, while answers grow and end as predicted."""

import numpy as np

from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.sliding.sorter import surplus
from jserve_sched.requests.facts import Facts


def too_large(
    view: SchedulerView,
    prompts: Facts,
    num_steps: np.ndarray,
    late: np.ndarray,
    weight: np.ndarray,
) -> np.ndarray:
    """Returns `[P]` which prompts to give up so that the others find pages in time.

    The rule is that of time: by due time, and whenever pages would be short the prompt
    with most pages for its weight so far. `num_steps` `[P]` are left until each is due;
    `late` are given up already.
    """
    page_size, is_begun = view.ledger.page_size, prompts.is_running > 0
    held = np.array([len(one.pages) for one in prompts.requests], np.float64)
    held = np.where(is_begun, held, prompts.start // page_size)
    pages = np.maximum(np.ceil(prompts.known_tokens / page_size) - held, 0.0)
    free = view.ledger.num_available - pages[is_begun].sum()  # theirs already
    pages[is_begun] = 0.0
    facts = [
        (one.num_dispatched_tokens, one.expected_tokens_left, len(one.pages))
        for one in view.decodes
    ]
    tokens, left, own = np.array(facts, np.float64).reshape(-1, 3).T
    grown = np.maximum(np.ceil((tokens + left) / page_size) - own, 0.0)
    if pages.sum() + grown.sum() <= free:  # the usual case
        return np.zeros(len(late), bool)
    # [P, D]: pages that decodes take until each due time, or give back by then.
    steps = np.maximum(num_steps, 0.0)[:, None]
    growth = np.maximum(np.ceil((tokens + steps) / page_size) - own, 0.0)
    room = free - np.where(left <= steps, -own, growth).sum(axis=1)
    room[late | is_begun | (prompts.guard > 0) | np.isinf(num_steps)] = np.inf
    return surplus(room, pages, weight=weight)
