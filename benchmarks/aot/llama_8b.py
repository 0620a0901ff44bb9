"""What Llama-3.1-8B takes on devices that are not here, by their compilers.

  make aot

For each target two steps of the engine are compiled, a decode of 32 rows and the same
beside 512 tokens of prompts, and the heads of 32 rows. `compiled` says what the
compiler reports: bytes on the device, and its seconds on this machine. `arithmetic`
says what the step has to read and to compute, from the model's shapes, and how long
that takes at the vendor's figures of bandwidth and arithmetic: a bound from below, and
no measurement. `fits` says how many tokens of KV the device's memory leaves, and so how
many rows of a context. Weights are bfloat16, or int8 where these leave no room.
"""

import dataclasses
import datetime
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from jserve.flags import define_config_flags
from jserve.program import run_program
from jserve_models.config import NAMED, ModelConfig
from jserve_tools.reporting.documents import commit, plain, write_whole
from jserve_tools.reporting.tables import render
from tests.aot.compiling import Job, compile_programs, rows_and_blocks
from tests.aot.gate import faults
from tests.aot.targets import TARGETS, Target

_MODEL = "llama-8b"
_STEPS = ("B32xNB0", "B32xNB16")
_PROGRAMS = (*_STEPS, "head32", "draw32")
_CONTEXT = 2048  # tokens before each row and prompt of the steps
_CONTEXTS = (2048, 8192, 32768, 131072)
_LEAST_TOKENS = 16384  # of KV, without which weights are stored in fewer bits
_ITEM_BYTES = {"auto": 2, "int8": 1}  # of a matrix; all else, and KV, is bfloat16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aot:
    """What is compiled, and where the results go.

    Attributes:
      targets: Devices, with commas between.
      memory_fraction: Share of a device's memory that the engine may take.
      output: Folder of the JSON files, one for each device.
    """

    targets: str = "v5e,v6e,l4,a100,h100,h200"
    memory_fraction: float = 0.9
    output: pathlib.Path = pathlib.Path("benchmarks/aot")

    def __post_init__(self) -> None:
        for name in self.targets.split(","):
            if name not in TARGETS:
                raise ValueError(f"targets={name} is not one of {', '.join(TARGETS)}")


_read = define_config_flags(Aot, group="Ahead of time")


def matrices(config: ModelConfig) -> tuple[int, int]:
    """Returns the elements of a layer's matrices, and those of the head."""
    width = 2 * config.num_heads + 2 * config.num_kv_heads
    layer = config.hidden_size * config.head_dim * width
    layer += 3 * config.hidden_size * config.intermediate_size
    return layer, config.hidden_size * config.vocab_size


def token_bytes(config: ModelConfig) -> int:
    """Returns the bytes of a token's KV over all layers."""
    return config.num_layers * 2 * config.num_kv_heads * config.head_dim * 2


def weight_bytes(config: ModelConfig, weights: str) -> int:
    """Returns the bytes of all weights but the scales of quantised ones."""
    layer, head = matrices(config)
    norms = (2 * config.num_layers + 1) * config.hidden_size
    num_bytes = _ITEM_BYTES[weights] * (config.num_layers * layer + head)
    return num_bytes + 2 * (head + norms)


def arithmetic(target: Target, name: str, weights: str) -> dict[str, Any]:
    """Returns what a step has to read and compute, and the seconds that it takes.

    All blocks are of one prompt, whose KV is read once.
    """
    config = NAMED[_MODEL]
    layer, head = matrices(config)
    num_rows, num_blocks = rows_and_blocks(name)
    num_prompt = 32 * num_blocks
    num_prompts = min(num_blocks, 1)
    matrix_bytes = _ITEM_BYTES[weights] * (config.num_layers * layer + head)
    num_keys = num_rows * (_CONTEXT + 1) + num_prompts * (_CONTEXT + num_prompt)
    read_bytes = matrix_bytes + num_keys * token_bytes(config)
    pairs = num_rows * (_CONTEXT + 1) + num_prompt * (_CONTEXT + (num_prompt + 1) / 2)
    operations = 2.0 * config.num_layers * layer * (num_rows + num_prompt)
    operations += 2 * head * (num_rows + num_prompts)
    operations += 4 * config.num_layers * config.num_heads * config.head_dim * pairs
    read_s, compute_s = read_bytes / target.bandwidth, operations / target.flops
    return {
        "context_tokens": _CONTEXT,
        "read_bytes": read_bytes,
        "operations": operations,
        "read_s": read_s,
        "compute_s": compute_s,
        "roofline_s": max(read_s, compute_s),
    }


def room_tokens(memory_bytes: float, other_bytes: float) -> int:
    """Returns the tokens of KV that a memory holds beside all else."""
    return max(int((memory_bytes - other_bytes) // token_bytes(NAMED[_MODEL])), 0)


def measure(name: str, config: Aot) -> dict[str, Any]:
    """Returns the report of one target."""
    target, model = TARGETS[name], NAMED[_MODEL]
    page_size = Job.page_size
    memory_bytes = config.memory_fraction * target.memory_bytes
    for weights in _ITEM_BYTES:
        needed_bytes = weight_bytes(model, weights)
        num_tokens = room_tokens(memory_bytes, needed_bytes)
        if num_tokens >= _LEAST_TOKENS:
            break
    report: dict[str, Any] = {
        "device": target.kind,
        "memory_bytes": target.memory_bytes,
        "bandwidth_bytes_s": target.bandwidth,
        "bfloat16_operations_s": target.flops,
        "weights": weights,
        "weight_bytes": needed_bytes,
        "arithmetic": {one: arithmetic(target, one, weights) for one in _STEPS},
    }
    # A pool of half the room is compiled; its size changes no other figure.
    job = Job(
        target=name,
        model=_MODEL,
        programs=_PROGRAMS,
        num_pages=num_tokens // (2 * page_size),
        weights=weights,
        context_pages=model.max_model_len // page_size,
    )
    compiled = compile_programs(job)
    temporary_bytes = max(one["temporary_bytes"] for one in compiled)
    num_tokens = room_tokens(memory_bytes, needed_bytes + temporary_bytes)
    return report | {
        "jax": compiled[0]["jax"],
        "attention": compiled[0]["attention"],
        "compiled": {
            one["program"]: {
                **{key: one[key] for key in one if key.endswith(("_s", "_bytes"))},
                "calls": one["calls"],
                "thunks": one["thunks"],
                "faults": faults(job, one),
            }
            for one in compiled
        },
        "fits": {
            "memory_fraction": config.memory_fraction,
            "num_tokens": num_tokens,
            "rows_by_context": {size: num_tokens // size for size in _CONTEXTS},
        },
    }


def main(argv: Sequence[str]) -> None:
    """Compiles for each target, writes its JSON file and prints a line."""
    del argv
    config = _read()
    rows = [["device", "compile s", "temporaries MiB", "roofline ms", "KV tokens"]]
    for name in config.targets.split(","):
        report = {
            "commit": commit(),
            "command": ["llama_8b.py", *sys.argv[1:]],
            "date": datetime.date.today().isoformat(),
            "model": _MODEL,
            **measure(name, config),
        }
        content = json.dumps(plain(report), indent=1) + "\n"
        write_whole(config.output / f"{name}.json", content.encode())
        parts = report["compiled"].values()
        rows.append(
            [
                report["device"],
                " ".join(f"{one['compile_s']:.0f}" for one in parts),
                " ".join(f"{one['temporary_bytes'] / 2**20:.0f}" for one in parts),
                " ".join(
                    f"{1e3 * one['roofline_s']:.1f}"
                    for one in report["arithmetic"].values()
                ),
                str(report["fits"]["num_tokens"]),
            ]
        )
    print(render(rows))


if __name__ == "__main__":
    run_program(sys.modules[__name__])
