"""What must hold of every compiled program of the engine."""

import collections
from typing import Any

from jserve.engine.memory import step_bytes
from jserve_models.config import ModelConfig
from jserve_models.sharding import device_config, shared_config
from jserve_sched.buckets.table import Bucket
from tests.aot.compiling import MODELS, Job, is_head, rows_and_blocks
from tests.aot.targets import TARGETS

KERNELS = {"tpu": "tpu_custom_call", "gpu": "mosaic_gpu_v2"}
"""Target of the custom call that is the kernel, by attention backend that has one."""

# By kind of program: adjusts logits, masks them, truncates, finds log-probabilities.
_CONDITIONALS = {"draw": 4}
_MOST_REGISTERS = 168  # so that three thread blocks of 128 threads share a core
# Where rows are few the NVIDIA kernel divides their keys among up to 256 thread blocks,
# each of which leaves 64 answers of 128 numbers, float32; and these are added up.
_SPLIT_BYTES = 2 * 256 * 64 * 128 * 4
_LEAST_BYTES = 8 * 2**20  # whatever a program's sizes
# A layer's on TPU, where weights are fetched ahead of their use, each in up to four
# slices: of 51 MiB in a decode of Llama-3.1-8B 28 go if each is fetched in one.
_FETCH_BYTES = 2 * 2**20
# Arrays like the logits that a head may hold at once. Where they are small, XLA writes
# what each of the 15 digits of a threshold weighs before it sums it up on some GPUs.
_LOGITS = {"head": 9, "draw": 24}


def _device_model(job: Job) -> ModelConfig:
    """Returns what one device computes of the model."""
    return device_config(
        shared_config(MODELS[job.model], job.num_devices), job.num_devices
    )


def most_temporary_bytes(job: Job, name: str) -> int:
    """Returns the bound of what a program may need beside arguments and results."""
    config = _device_model(job)
    num_rows, num_blocks = rows_and_blocks(name)
    if is_head(name):
        num_arrays = _LOGITS[name[:4]] + 2 * (job.num_devices > 1)  # to gather them
        return 4 * num_arrays * num_rows * config.vocab_size
    tokens = num_rows + num_blocks * 32
    taken = config.experts.per_token if config.experts else 1
    width = (
        (3 + taken) * config.hidden_size
        + 3 * taken * config.intermediate_size
        + 2 * config.num_heads * config.head_dim
    )
    num_bytes = _LEAST_BYTES + 4 * tokens * width
    if job.backend == "gpu":
        num_bytes += _SPLIT_BYTES
    if TARGETS[job.target].platform == "tpu":
        num_bytes += config.num_layers * _FETCH_BYTES
    if job.backend not in KERNELS:
        # The page loop gathers a page of each row, and copies it to transpose it.
        page_bytes = 2 * job.page_size * 2 * config.num_kv_heads * config.head_dim
        num_bytes += 2 * (num_rows + num_blocks) * page_bytes
    return num_bytes


def faults(job: Job, report: dict[str, Any]) -> list[str]:
    """Returns the conditions that a program violates, each with what violates it."""
    name = report["program"]
    num_rows, num_blocks = rows_and_blocks(name)
    num_layers = 0 if is_head(name) else MODELS[job.model].num_layers
    platform = TARGETS[job.target].platform
    found = []

    def check(is_kept: bool, condition: str, what: object) -> None:
        if not is_kept:
            found.append(f"{condition}: {what}")

    used = report["attention"]
    check(used == job.backend, "the device's attention backend is chosen", used)
    # Memory.
    kept, cache = report["alias_bytes"], report["kv_bytes"]
    check(
        kept >= cache or is_head(name),
        "the cache is updated in place",
        f"{kept} of {cache} bytes",
    )
    discard = report["num_discard_pages"]
    check(
        discard == MODELS[job.model].num_layers,
        "each layer has a discard page",
        f"{discard} pages",
    )
    needed, bound = report["temporary_bytes"], most_temporary_bytes(job, name)
    check(needed <= bound, "temporaries are bounded", f"{needed} of {bound} bytes")
    planned = step_bytes(
        _device_model(job),
        Bucket(num_rows, num_blocks),
        num_slots=job.num_slots,
        page_size=job.page_size,
        itemsize=2,
    )
    check(needed <= planned, "the memory planned suffices", f"{needed} of {planned}")
    moves = report["cache_moves"]
    check(not moves, "nothing copies a layer's cache", moves)
    casts = report["weight_casts"]
    check(not casts, "no weight is dequantised to memory", casts)
    # Between devices.
    if job.num_devices > 1:
        sent = collections.Counter(opcode for opcode, _ in report["collectives"])
        # Of a step each layer's two sums, and the embedding's.
        wanted = (
            {"all-gather": 1} if is_head(name) else {"all-reduce": 2 * num_layers + 1}
        )
        check(sent == wanted, "only sums and logits go between devices", dict(sent))
    loose = report["num_unplaced"]
    check(not loose, "results are where the next program takes them", loose)
    # The kernel, or the page loop.
    num_groups = (num_rows > 0) + (num_blocks > 0)
    most_loops = num_groups * num_layers
    if kernel := KERNELS.get(job.backend):
        most_loops = 0
        num_calls = report["calls"].get(kernel, 0)
        # XLA for TPU has its own for tokens that are grouped by expert.
        has_own = platform == "tpu" and MODELS[job.model].experts is not None
        grouped = 4 if has_own else 0
        check(
            num_layers <= num_calls <= (num_groups + grouped) * num_layers,
            "each layer is a kernel for each group of rows, or one for all",
            report["calls"],
        )
    if job.backend == "gpu" and not num_blocks:
        registers, spilled = report["most_registers"], report["spilled_bytes"]
        check(
            bool(num_layers) <= (registers > 0) and registers <= _MOST_REGISTERS,
            "registers of the kernel are bounded",
            registers,
        )
        check(not spilled, "the kernel spills no register", f"{spilled} bytes")
    lowered = report["lowered_kernels"]
    num_kinds = num_groups * len(set(MODELS[job.model].windows or (None,)))
    check(lowered <= num_kinds, "a kernel is lowered once for all layers", lowered)
    branches = report["conditionals"]
    most_branches = _CONDITIONALS.get(name[:4], 0)
    check(len(branches) <= most_branches, "only the sampler branches", branches)
    # On GPU a host is in the way of all that is not known to it; on TPU all stays on
    # the device, and weights are fetched ahead of their use by copies.
    if platform == "gpu":
        loops = report["dynamic_loops"]
        check(len(loops) <= most_loops, "no loop depends on data", loops)
        moves = report["weight_moves"]
        check(not moves, "nothing copies a layer's weight", moves)
        thunks = report["thunks"]
        check(thunks == ["kCommandBuffer"], "the host launches one graph", thunks)
    return found
