"""Attention of a group of rows over paged keys and values.

A backend is a function of the type `Attend`; `reference.py` runs everywhere and
is what others are tested against.
"""

from typing import Protocol

import jax

from jserve_models.steps import RowGroup


class Attend(Protocol):
    """A backend: attends each query of a group of rows to its own sequence."""

    def __call__(
        self,
        q: jax.Array,
        k_cache: jax.Array,
        v_cache: jax.Array,
        group: RowGroup,
        first_page: jax.Array,
        *,
        scale: float,
    ) -> jax.Array:
        """Returns the weighted values, like `q`.

        Args:
          q: [rows, width, heads, D]; a query at position `i` sees keys at `0..i`.
          k_cache: The flat cache of `steps.KvCache`; so is `v_cache`.
          first_page: [] where page 0 of the group's page table stands in the caches.
          scale: Factor of the scores before their softmax; static.
        """
