"""Paged attention on NVIDIA GPUs: one Pallas Mosaic GPU kernel for sm_80 and newer.

A thread block holds a tile of a row's queries that share a KV head, and walks through
the blocks of keys that they see, by way of the row's page table. Scores, online softmax
and weighted values stay in registers (FlashAttention-2: Dao, 2023, algorithm 1). Where
rows are few, several thread blocks divide a row's keys, and their answers are joined by
log-sum-exp (Flash-Decoding: Dao, Haziza, Massa and Sizov, 2023). The `i`-th block of
keys belongs to split `i % num_splits`: a row's result does not depend on other rows.

Products are `mma.sync` on every card. Keys and values come to shared memory one block
ahead of their use, by TMA from Hopper on and by `cp.async` before. Compiled ahead of
time for A100, L4, H200 and B200, not yet run on them.

Letters: `H` query heads, `K` KV heads, `D` head size, `P` tokens in a page.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu

plgpu: Any = mosaic_gpu  # that of JAX 0.11.2 or newer: `fault` says if it is older

DTYPES = ("bfloat16", "float16")
HEAD_DIMS = (64, 128, 256)
PAGE_SIZES = (32, 64, 128, 256)

_MASKED = -1e30  # finite: minus infinity would make rows without keys NaN
_LOG2E = math.log2(math.e)  # exponentials are powers of two
_SLOTS = 2  # blocks of keys in shared memory: one in use, one on its way
_State = tuple[jax.Array, jax.Array, jax.Array]  # weighted values, maximum, total


def fault(dtype: jax.typing.DTypeLike, head_dim: int, page_size: int) -> str | None:
    """Returns in one line what the kernel does not take; None if it takes all."""
    if not hasattr(plgpu, "mma"):
        return f"needs Mosaic GPU's mma, of JAX 0.11.2, and this is {jax.__version__}"
    for name, value, known in (
        ("dtype", jnp.dtype(dtype).name, DTYPES),
        ("head_dim", head_dim, HEAD_DIMS),
        ("page_size", page_size, PAGE_SIZES),
    ):
        if value not in known:
            return f"takes no {name}={value}, but {', '.join(map(str, known))}"
    return None


def paged_attention(
    q: jax.Array,
    kv_pages: jax.Array,
    starts: jax.Array,
    kv_lens: jax.Array,
    page_table: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
    num_splits: int | None = None,
    has_tma: bool = True,
) -> jax.Array:
    """Attends each row's queries to the keys in its pages, causally.

    A decode is a row of width 1; the chunk of a prompt is one wide row, or several.

    Args:
      q: [rows, width, H, D]; the first query of a row is at position `starts[row]`.
      kv_pages: [pages, P, 2K, D]; key of head `h` at `2h`, its value at `2h + 1`.
        Values must be finite, those past a row's last key too.
      starts: [rows] int32.
      kv_lens: [rows] int32 number of keys in a row's pages; a row without any is
        padding, and its answers are zero.
      page_table: [rows, max_pages] int32; the first entry of each row must be a page
        that there is, entries past its keys may be anything.
      scale: Factor of the scores.
      window: Number of keys that a query sees, its own included; None for all.
      soft_cap: Bound `c` of the scores, which become `c tanh(score / c)`.
      sinks: [H] float32 scores that take part in the softmax and have no value.
      num_splits: Number of thread blocks that divide the keys of a row; None takes as
        many as keep the kernel at 256 thread blocks, and 32 at most.
      has_tma: Whether the card is sm_90 or newer, which copies by TMA.

    Returns:
      [rows, width, H, D], in the type of `q`.

    Raises:
      ValueError: If the kernel does not take such arrays; see `fault`.
    """
    rows, width, num_heads, head_dim = q.shape
    num_pages, page_size, num_kv_heads = *kv_pages.shape[:2], kv_pages.shape[2] // 2
    if (reason := fault(q.dtype, head_dim, page_size)) is not None:
        raise ValueError(f"paged attention {reason}")
    group_size = num_heads // num_kv_heads
    # Sizes: a tile's answers take 64 registers of each thread, or fewer.
    most = min(width * group_size, 64, 8192 // head_dim)
    tile = next(size for size in (16, 32, 64) if size >= most)
    num_tiles = pl.cdiv(width * group_size, tile)
    block = min(page_size, 64 if head_dim <= 128 else 32)
    if num_splits is None:
        wanted = min(256 // (rows * num_kv_heads * num_tiles), 32)
        num_splits = max(min(wanted, page_table.shape[1] * page_size // block), 1)
    # Queries that share a KV head stand together, padded to whole tiles.
    queries = q.reshape(rows, width, num_kv_heads, group_size, head_dim)
    queries = queries.transpose(0, 2, 1, 3, 4).reshape(rows, num_kv_heads, -1, head_dim)
    padding = [(0, 0), (0, num_tiles * tile - width * group_size)]
    queries = jnp.pad(queries, [(0, 0), *padding, (0, 0)])
    first_best = jnp.full((num_kv_heads, num_tiles * tile), _MASKED, jnp.float32)
    if sinks is not None:
        sinks = sinks.reshape(num_kv_heads, group_size) * _LOG2E
        first_best = jnp.pad(jnp.tile(sinks, (1, width)), padding)
    # The kernel; what a split leaves behind stays float32.
    lead = (num_splits, rows, num_kv_heads, num_tiles * tile)
    is_split = num_splits > 1
    sums = jax.ShapeDtypeStruct(lead if is_split else (1, 1, 1, 1), jnp.float32)
    answer_dtype = jnp.float32 if is_split else q.dtype
    answers, best, total = plgpu.kernel(
        _Kernel(
            tile=tile,
            block=block,
            group_size=group_size,
            head_dim=head_dim,
            page_size=page_size,
            scale=scale,
            window=window,
            soft_cap=soft_cap,
            has_sinks=sinks is not None,
            num_splits=num_splits,
            has_tma=has_tma,
        ),
        kernel_name="paged_attention",
        out_type=(jax.ShapeDtypeStruct((*lead, head_dim), answer_dtype), sums, sums),
        grid=(num_splits, rows, num_kv_heads, num_tiles),
        grid_names=("split", "row", "head", "tile"),
        scratch_types=(
            _shared((tile, head_dim), q.dtype, 64),
            _shared((_SLOTS, block, 2 * head_dim), q.dtype, 64),
            _shared((tile, block), q.dtype, 32),
            *([plgpu.Barrier(num_barriers=_SLOTS)] if has_tma else []),
        ),
    )(
        starts,
        kv_lens,
        page_table,
        queries,
        kv_pages.reshape(num_pages, page_size, -1),  # what cp.async can slice
        first_best,
    )
    if is_split:
        share = jnp.exp2(best - best.max(axis=0))
        total = jnp.maximum((total * share).sum(axis=0), 1e-30)
        answers = (answers * share[..., None]).sum(axis=0) / total[..., None]
    answers = answers.reshape(*lead[1:], head_dim)[:, :, : width * group_size]
    answers = answers.reshape(rows, num_kv_heads, width, group_size, head_dim)
    joined: jax.Array = answers.transpose(0, 2, 1, 3, 4).reshape(q.shape)
    return joined.astype(q.dtype)


def _shared(shape: tuple[int, ...], dtype: jax.typing.DTypeLike, columns: int) -> Any:
    """Returns an array in shared memory that is read without bank conflicts.

    Args:
      columns: How many 2-byte columns are read at once.
    """
    tiling = plgpu.TilingTransform((8, columns))
    return plgpu.SMEM(
        shape, dtype, transforms=(tiling, plgpu.SwizzleTransform(2 * columns))
    )


def _store(ref: Any, value: jax.Array) -> None:
    """Stores to device memory, whatever part of its 32-byte sectors a warp has."""
    if hasattr(plgpu, "store"):
        plgpu.store(ref, value, optimized=False)
    else:  # JAX 0.11.2, which asks for no whole sectors
        ref[...] = value


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """What a thread block does; sizes and options are part of its code.

    Query `i` of a row and KV head belongs to the row's token `i // group_size`.
    """

    tile: int
    block: int  # number of keys that are taken into account at a time
    group_size: int
    head_dim: int
    page_size: int
    scale: float
    window: int | None
    soft_cap: float | None
    has_sinks: bool
    num_splits: int
    has_tma: bool

    def __call__(self, *refs: Any) -> None:
        """Writes the answers of one tile, or one split's part of them."""
        starts, kv_lens, page_table, q, kv_pages, first_best, *refs_left = refs
        answers, bests, totals, q_smem, kv_smem, weights_smem, *barrier = refs_left
        split, row, head = (lax.axis_index(name) for name in ("split", "row", "head"))
        first_query = lax.axis_index("tile") * self.tile
        tile = pl.ds(first_query, self.tile)
        start, kv_len = starts[row], kv_lens[row]
        # Blocks that a query of the tile sees, from `begin` to `end` in steps.
        last = start + lax.div(first_query + (self.tile - 1), self.group_size)
        end = lax.div(jnp.minimum(last + 1, kv_len) + (self.block - 1), self.block)
        begin = split
        if self.window is not None:
            first = start + lax.div(first_query, self.group_size)
            begin += lax.div(jnp.maximum(first + 1 - self.window, 0), self.block)
        num_steps = self.num_splits
        trips = lax.div(jnp.maximum(end - begin, 0) + (num_steps - 1), num_steps)

        def first_key(trip: jax.Array) -> jax.Array:
            return (begin + trip * num_steps) * self.block

        def fetch(trip: jax.Array) -> None:
            key, slot = first_key(trip), lax.rem(trip, _SLOTS)
            if not self.has_tma:  # cp.async cannot be left out: any block will do
                key = jnp.clip(key, 0, jnp.maximum(end - 1, 0) * self.block)
            tokens = pl.ds(lax.rem(key, self.page_size), self.block)
            columns = pl.ds(2 * self.head_dim * head, 2 * self.head_dim)
            page = page_table[row, lax.div(key, self.page_size)]
            pair = kv_pages.at[page, tokens, columns], kv_smem.at[slot]
            if self.has_tma:
                plgpu.copy_gmem_to_smem(*pair, barrier[0].at[slot])
            else:
                in_bounds = plgpu.OOBFillMode.PROMISE_IN_BOUNDS
                plgpu.copy_gmem_to_smem(*pair, oob_mode=in_bounds)

        def add_block(trip: jax.Array, state: _State) -> _State:
            # The next block is on its way while this one is awaited and used.
            if self.has_tma:
                plgpu.commit_smem()  # the next one's slot has been read
                pl.when(trip + 1 < trips)(lambda: fetch(trip + 1))
                plgpu.barrier_wait(barrier[0].at[lax.rem(trip, _SLOTS)])
            else:
                fetch(trip + 1)
                plgpu.wait_gmem_to_smem(1)
            block = kv_smem.at[lax.rem(trip, _SLOTS)]
            keys = block.at[:, pl.ds(0, self.head_dim)].transpose((1, 0))
            values = block.at[:, pl.ds(self.head_dim, self.head_dim)]
            scores = self._add_product(self._zeros(self.block), q_smem, keys, 64)
            scores = self._capped(scores)
            is_seen = self._is_seen(first_query, first_key(trip), start, kv_len)
            scores = jnp.where(is_seen, scores, _MASKED)
            # The online softmax: what is summed so far shrinks to the new maximum.
            weighted, old, total = state
            best = jnp.maximum(old, scores.max(axis=1))
            shrink = jnp.exp2(old - best)
            weights = jnp.exp2(scores - lax.broadcast_in_dim(best, scores.shape, [0]))
            total = total * shrink + weights.sum(axis=1)
            weighted *= lax.broadcast_in_dim(shrink, weighted.shape, [0])
            # Out of the layout of sums, by way of shared memory, into that of factors.
            weights_smem[...] = weights.astype(weights_smem.dtype)
            weighted = self._add_product(weighted, weights_smem, values, 32)
            return weighted, best, total

        # Fetch the first block and the queries.
        if self.has_tma:
            pl.when(trips > 0)(lambda: fetch(jnp.int32(0)))
        else:
            fetch(jnp.int32(0))
        q_smem[...] = self._load(q.at[row, head, tile], "MMA_LHS")
        # Nothing is seen yet but a sink: a key whose value is zero, and split 0's.
        row_layout = self._layout("MMA_ACC").reduce(1)
        best = plgpu.load(first_best.at[head, tile], layout=row_layout, optimized=False)
        total = plgpu.layout_cast(jnp.zeros(self.tile, jnp.float32), row_layout)
        if self.has_sinks:
            best += jnp.where(split == 0, 0.0, _MASKED)
            total += jnp.where(split == 0, 1.0, 0.0)
        state = self._zeros(self.head_dim), best, total
        weighted, best, total = lax.fori_loop(0, trips, add_block, state)
        # Store the answers, or what it takes to join them.
        if not self.has_tma:
            plgpu.wait_gmem_to_smem(0)
        place = (split, row, head, tile)
        if self.num_splits == 1:
            total = lax.broadcast_in_dim(total, weighted.shape, [0])
            weighted = (weighted / jnp.maximum(total, 1e-30)).astype(answers.dtype)
        else:
            _store(bests.at[place], best)
            _store(totals.at[place], total)
        _store(answers.at[place], weighted)

    def _layout(self, name: str) -> Any:
        """Returns how a factor, or a sum of products, stands in registers."""
        warps = self.tile // 16  # along the queries; the others divide the columns
        return plgpu.Layout[name](jnp.bfloat16, m_warps=warps)  # for any 16 bits

    def _load(self, ref: Any, name: str) -> jax.Array:
        array: jax.Array = plgpu.load(ref, layout=self._layout(name), optimized=False)
        return array

    def _zeros(self, columns: int) -> jax.Array:
        """Returns a sum of products [tile, columns] before the first."""
        zeros = jnp.zeros((self.tile, columns), jnp.float32)
        array: jax.Array = plgpu.layout_cast(zeros, self._layout("MMA_ACC"))
        return array

    def _add_product(
        self, total: jax.Array, left: Any, right: Any, depth: int
    ) -> jax.Array:
        """Returns `total` and a product of matrices in shared memory.

        Of the axis that it sums over, registers hold `depth` at a time.
        """
        for begin in range(0, left.shape[1], depth):
            part = pl.ds(begin, depth)
            total = plgpu.mma(
                total,
                self._load(left.at[:, part], "MMA_LHS"),
                self._load(right.at[part], "MMA_RHS"),
            )
        return total

    def _capped(self, scores: jax.Array) -> jax.Array:
        """Returns the scores as powers of two, scaled and capped."""
        if self.soft_cap is None:
            return scores * (self.scale * _LOG2E)
        # tanh(x) = 1 - 2 / (1 + exp(2x)), also where that is infinite.
        power = jnp.exp2(scores * (2 * _LOG2E * self.scale / self.soft_cap))
        return (1 - 2 / (1 + power)) * (self.soft_cap * _LOG2E)

    def _is_seen(
        self, first_query: jax.Array, first_key: jax.Array, start: Any, kv_len: Any
    ) -> jax.Array:
        """Returns which keys each query sees, [tile, block]."""
        shape, layout = (self.tile, self.block), self._layout("MMA_ACC")
        query: jax.Array = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=layout)
        key: jax.Array = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=layout)
        key += first_key
        position = start + lax.div(first_query + query, self.group_size)
        is_seen: jax.Array = (key <= position) & (key < kv_len)
        if self.window is not None:
            is_seen &= key > position - self.window
        return is_seen
