"""Attention of a group of rows over paged keys and values.

A backend is a function of the type `Attend`; `reference.py` runs everywhere and
is what others are tested against.
"""

from collections.abc import Callable

import jax

from jserve_models.steps import RowGroup

Attend = Callable[[jax.Array, jax.Array, jax.Array, RowGroup, jax.Array], jax.Array]
"""(q [rows, width, heads, D], k_cache, v_cache, group, first_page []) -> like q.

The caches are the flat ones of `steps.KvCache`; page `p` of the group's page table
is `first_page + p` there. A query at position `i` sees keys at `0..i`.
"""
