"""Step costs by arithmetic: a decoder's operations and bytes over a device's figures.

Nothing has to be measured, so it prices devices that are not at hand. A step's parts
run one after the other: the products of the layers, the head, attention of decodes and
of blocks. Each takes `hypot(compute, read)`, the root of the sum of the squares of its
times at the device's arithmetic and at its bandwidth. Where one is much longer than
the other, this is the roofline (Williams, Waterman and Patterson, CACM 2009); where
they are equal, neither hides behind the other, and products on NVIDIA GPUs take about
that long (`benchmarks/roofline_costs`).

Padding is charged as the programs compute it: padded rows and blocks go through the
products, the head is computed for the bucket's rows, and attention reads whole pages,
of real rows only.

`N` is the number of steps priced together, `F` the features of a step.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from jserve_sched.simulation.cost_model import CostModel
from jserve_sched.steps import features

_ITEM_BYTES = 2  # of a weight, an activation, a number in the KV cache: bfloat16
_MEMORY_SHARE = 0.9  # of a device's memory, for weights and KV
_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """One device: its vendor's figures, and the shares of them that kernels reach.

    Attributes:
      memory: Bytes of device memory.
      bandwidth: Bytes a second from device memory.
      operations: Bfloat16 operations a second of dense products, summed in float32.
      link: Bytes a second to another device, one way.
      link_s: Latency of a message to another device, seconds.
      products: Share of `operations` that products reach.
      attention: Share of `operations` that attention of blocks reaches.
      reading: Share of `bandwidth` with which weights and KV are read.
      mixed: Share of that with which decodes read KV in steps with prefill.
      key_s: Seconds that attention takes for each key of the longest row, in steps with
        prefill, if kernels do not divide a row's keys among cores.
      layer_s: Latency of a layer's small kernels, seconds.
      tile: Queries that share one read of a key: those of a kernel's tile, or of
        blocks that find it in a cache.
    """

    memory: float
    bandwidth: float
    operations: float
    link: float
    link_s: float
    products: float = 0.75
    attention: float = 0.4
    reading: float = 0.8
    mixed: float = 1.0
    key_s: float = 0.0
    layer_s: float = 10e-6
    tile: int = 128


# Peaks are of the vendors' data sheets. Links: half of a TPU's bidirectional figure, on
# one of two axes; NVLink one way; else what two RTX PRO 6000 reach over PCIe by
# LLMServingSim, with its latency. Shares: of the RTX cards fitted to the kernel times
# in jserve_tools/gpu_profiles; `products` and `reading` of A100 and H100 by Vidur's
# kernel tables (Agrawal et al., MLSys 2024), and those of H200 and B200 as H100's. All
# else is assumed, not measured.
_TPU = {"layer_s": 5e-6, "tile": 32}  # of the kernel, and no cache
_HOPPER = {"products": 0.77, "reading": 0.79}
_RTX_4090 = {
    "products": 0.99,
    "attention": 0.89,
    "reading": 0.875,
    "mixed": 0.4,
    "key_s": 30e-9,
}
_RTX_PRO_6000 = {
    "products": 0.76,
    "attention": 0.62,
    "reading": 0.855,
    "mixed": 0.57,
    "key_s": 21e-9,
}
_FIGURES: dict[str, tuple[Any, ...]] = {
    # Memory, GB/s, 10**12 operations/s; GB/s of a link and its microseconds.
    "v5e": (16 * _GIB, 819, 197, 100, 2, _TPU),
    "v6e": (32 * _GIB, 1638, 918, 200, 2, _TPU),
    "l4": (24e9, 300, 121, 16, 20, {}),
    "a100": (80 * _GIB, 2039, 312, 300, 5, {"products": 0.70, "reading": 0.76}),
    "h100": (80 * _GIB, 3352, 989, 450, 5, _HOPPER),
    "h200": (141e9, 4800, 989, 450, 5, _HOPPER),
    "b200": (180e9, 8000, 2250, 900, 5, _HOPPER),
    "rtx3090": (24 * _GIB, 936, 71, 16, 20, {"mixed": 0.5}),
    "rtx4090": (24 * _GIB, 1008, 165.2, 16, 20, _RTX_4090),
    "rtxpro6000": (96e9, 1597, 503.8, 16, 20, _RTX_PRO_6000),  # the Server Edition
}
DEVICES: dict[str, Device] = {
    name: Device(
        memory=memory,
        bandwidth=1e9 * bandwidth,
        operations=1e12 * operations,
        link=1e9 * link,
        link_s=1e-6 * link_us,
        **shares,
    )
    for name, (memory, bandwidth, operations, link, link_us, shares) in _FIGURES.items()
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
    """The sizes of a decoder, or of the part of it that one device holds."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int

    @property
    def layer_size(self) -> int:
        """Number of elements of a layer's matrices."""
        heads = 2 * self.num_heads + 2 * self.num_kv_heads
        return self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size)

    @property
    def head_size(self) -> int:
        """Number of elements of the head, and of the embedding."""
        return self.hidden_size * self.vocab_size

    @property
    def weight_bytes(self) -> int:
        """Bytes of all matrices, with an embedding beside the head."""
        return _ITEM_BYTES * (self.num_layers * self.layer_size + 2 * self.head_size)

    @property
    def token_bytes(self) -> int:
        """Bytes of a token's KV in all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * _ITEM_BYTES

    def part(self, num_devices: int) -> "Decoder":
        """Returns what each of several devices holds.

        Heads, the feed-forward part and the vocabulary are divided; of fewer KV heads
        than devices each device holds one.

        Raises:
          ValueError: If the heads or the feed-forward part cannot be divided.
        """
        for name in ("num_heads", "intermediate_size"):
            if num_devices < 1 or getattr(self, name) % num_devices:
                raise ValueError(
                    f"tensor_parallel={num_devices} does not divide "
                    f"{name}={getattr(self, name)}"
                )
        return dataclasses.replace(
            self,
            num_heads=self.num_heads // num_devices,
            num_kv_heads=-(-self.num_kv_heads // num_devices),
            intermediate_size=self.intermediate_size // num_devices,
            vocab_size=-(-self.vocab_size // num_devices),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RooflineCost(CostModel):
    """A machine of one device, or of equal devices that divide each layer.

    Attributes:
      decoder: The whole model.
      tensor_parallel: Number of devices.
    """

    device: Device
    decoder: Decoder
    tensor_parallel: int = 1

    @functools.cached_property
    def _part(self) -> Decoder:
        return self.decoder.part(self.tensor_parallel)

    def work(
        self, matrix: np.ndarray, block_tokens: int
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns what each device has to compute and to read, by part of the step.

        Returns:
          Part -> operations `[N]` and bytes `[N]`, for features `[N, F]`.
        """
        part, rows = self._part, matrix[:, features.NUM_ROWS]
        size = part.num_layers * part.layer_size
        # Scores and weighted values of a query and a key.
        pair = 4 * part.num_layers * part.num_heads * part.head_dim
        decode_keys = self.page_size * matrix[:, features.DECODE_PAGES]
        block_keys = self.page_size * matrix[:, features.BLOCK_PAGES]
        reads = part.token_bytes * block_tokens / max(block_tokens, self.device.tile)
        ones = np.ones(len(matrix))
        return {
            "products": (2 * size * _tokens(matrix, block_tokens), _bytes(size) * ones),
            "head": (
                2 * part.head_size * np.maximum(rows, 1),
                _bytes(part.head_size) * ones,
            ),
            "decodes": (pair * decode_keys, part.token_bytes * decode_keys),
            "blocks": (pair * block_tokens * block_keys, reads * block_keys),
        }

    def step_s(self, matrix: np.ndarray, block_tokens: int) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""
        device, part = self.device, self._part
        work = self.work(matrix, block_tokens)
        tokens = _tokens(matrix, block_tokens)
        is_mixed = features.scenarios(matrix) == features.MIXED
        bandwidth = device.bandwidth * device.reading

        def time_s(name: str, share: float, slower: np.ndarray | float = 1.0) -> Any:
            compute, read = work[name]
            compute_s = compute / (device.operations * share)
            return np.hypot(compute_s, read / (bandwidth * slower))

        # Products, and what stands between them: the feed-forward part's activation
        # reads two numbers and writes one, and a layer reads and writes its input.
        moved = _bytes(3 * part.intermediate_size + 2 * part.hidden_size) * tokens
        total: np.ndarray = part.num_layers * (moved / bandwidth + device.layer_s)
        total += time_s("products", device.products) + time_s("head", device.products)
        # Attention, which ends no earlier than its longest row.
        slower = np.where(is_mixed, device.mixed, 1.0)
        attention_s = time_s("decodes", device.attention, slower)
        attention_s += time_s("blocks", device.attention)
        used_blocks = np.ceil(matrix[:, features.PREFILL_TOKENS] / block_tokens)
        pages = matrix[:, features.BLOCK_PAGES] / np.maximum(used_blocks, 1)
        pages = np.maximum(pages, matrix[:, features.LONGEST_DECODE])
        row_s = device.key_s * self.page_size * pages * (used_blocks > 0)
        total += np.hypot(attention_s, part.num_layers * row_s)
        total += self.all_reduce_s(tokens)
        return total

    def all_reduce_s(self, tokens: np.ndarray) -> np.ndarray:
        """Returns the time `[N]` of a step's all-reduces, seconds.

        There are two in a layer, after attention and after the feed-forward part, each
        of `[tokens, hidden_size]`. In a ring of n devices each sends `2 (n - 1) / n` of
        it, in `2 (n - 1)` messages (Patarasuk and Yuan, JPDC 2009).

        Args:
          tokens: `[N]` token positions, padding included.
        """
        devices, decoder = self.tensor_parallel, self.decoder
        message_s = _bytes(decoder.hidden_size) * tokens / devices / self.device.link
        messages = 2 * decoder.num_layers * 2 * (devices - 1)
        found: np.ndarray = messages * (message_s + self.device.link_s)
        return found


def _bytes(num_items: int) -> float:
    return float(_ITEM_BYTES * num_items)


def _tokens(matrix: np.ndarray, block_tokens: int) -> np.ndarray:
    """Returns the token positions `[N]` that steps `[N, F]` compute."""
    positions: np.ndarray = (
        matrix[:, features.NUM_ROWS] + block_tokens * matrix[:, features.NUM_BLOCKS]
    )
    return positions


def roofline_cost(
    name: str, device: Device, decoder: Decoder, tensor_parallel: int = 1
) -> RooflineCost:
    """Returns a machine with the limits that a server takes on accelerators.

    Its KV pool is what weights leave of nine tenths of the devices' memory.

    Raises:
      ValueError: If the model cannot be divided, or leaves no room.
    """
    part = decoder.part(tensor_parallel)
    room_bytes = _MEMORY_SHARE * device.memory - part.weight_bytes
    num_kv_tokens = int(room_bytes // part.token_bytes)
    if num_kv_tokens < 1:
        raise ValueError(
            f"{name}: {part.weight_bytes / 1e9:.1f} GB of weights a device leave no "
            f"room for KV in 0.9 of {device.memory / 1e9:.1f} GB"
        )
    return RooflineCost(
        name=name,
        device=device,
        decoder=decoder,
        tensor_parallel=tensor_parallel,
        num_kv_tokens=num_kv_tokens,
        page_size=128,
        max_num_seqs=128,
        max_num_batched_tokens=2176,
    )
