"""What Llama-3.1-8B, or Qwen3-32B, takes on devices that are not here.

  make aot
  python -m benchmarks.aot.llama_8b --model=qwen3-32b --targets=v5e-8,h100-4

For each target two steps of the engine are compiled, a decode of 32 rows and the same
beside 512 tokens of prompts, and the heads of 32 rows. `compiled` says what the
compiler reports: bytes on the device, and its seconds on this machine. `arithmetic`
says what the step has to read and to compute, from the model's shapes, and how long
that takes at the vendor's figures of bandwidth and arithmetic: a bound from below, and
no measurement. `fits` says how many tokens of KV the device's memory leaves, and so how
many rows of a context. Weights are bfloat16, or int8 where these leave no room. Of
devices that share a model, all figures are those of one.
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
from jserve_models.config import ModelConfig
from jserve_models.sharding import device_config, shared_config
from jserve_tools.reporting.documents import commit, plain, write_whole
from jserve_tools.reporting.tables import render
from tests.aot.compiling import MODELS, Job, compile_programs, rows_and_blocks
from tests.aot.gate import faults
from tests.aot.targets import TARGETS, Target

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
      model: Key of `compiling.MODELS`.
      targets: Devices, with commas between; "h100-4" is four that share the model.
      memory_fraction: Share of a device's memory that the engine may take.
      output: Folder of the JSON files, one for each device.
    """

    model: str = "llama-8b"
    targets: str = "v5e,v6e,l4,a100,h100,h200"
    memory_fraction: float = 0.9
    output: pathlib.Path = pathlib.Path("benchmarks/aot")

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"model={self.model} is not one of {', '.join(MODELS)}")
        for name in self.targets.split(","):
            if name.partition("-")[0] not in TARGETS:
                raise ValueError(f"targets={name} is not one of {', '.join(TARGETS)}")


_read = define_config_flags(Aot, group="Ahead of time")


def device_part(config: ModelConfig, num_devices: int) -> ModelConfig:
    """Returns what each device has of a model."""
    part = device_config(shared_config(config, num_devices), num_devices)
    return dataclasses.replace(part, vocab_size=config.vocab_size // num_devices)


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


def arithmetic(
    config: ModelConfig, target: Target, name: str, weights: str
) -> dict[str, Any]:
    """Returns what a step has to read and compute, and the seconds that it takes.

    All blocks are of one prompt, whose KV is read once.
    """
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


def room_tokens(config: ModelConfig, memory_bytes: float, other_bytes: float) -> int:
    """Returns the tokens of KV that a memory holds beside all else."""
    return max(int((memory_bytes - other_bytes) // token_bytes(config)), 0)


def measure(name: str, config: Aot) -> dict[str, Any]:
    """Returns the report of one target."""
    kind, _, count = name.partition("-")
    num_devices = int(count or 1)
    target, model = TARGETS[kind], device_part(MODELS[config.model], num_devices)
    page_size = Job.page_size
    memory_bytes = config.memory_fraction * target.memory_bytes
    for weights in _ITEM_BYTES:
        needed_bytes = weight_bytes(model, weights)
        num_tokens = room_tokens(model, memory_bytes, needed_bytes)
        if num_tokens >= _LEAST_TOKENS:
            break
    report: dict[str, Any] = {
        "device": target.kind,
        "num_devices": num_devices,
        "memory_bytes": target.memory_bytes,
        "bandwidth_bytes_s": target.bandwidth,
        "bfloat16_operations_s": target.flops,
        "weights": weights,
        "weight_bytes": needed_bytes,
        "arithmetic": {one: arithmetic(model, target, one, weights) for one in _STEPS},
    }
    # A pool of half the room is compiled; its size changes no other figure.
    job = Job(
        target=kind,
        num_devices=num_devices,
        model=config.model,
        programs=_PROGRAMS,
        num_pages=num_tokens // (2 * page_size),
        weights=weights,
        context_pages=model.max_model_len // page_size,
    )
    compiled = compile_programs(job)
    temporary_bytes = max(one["temporary_bytes"] for one in compiled)
    num_tokens = room_tokens(model, memory_bytes, needed_bytes + temporary_bytes)
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
            "model": config.model,
            **measure(name, config),
        }
        content = json.dumps(plain(report), indent=1) + "\n"
        file = name if config.model == Aot.model else f"{config.model}-{name}"
        write_whole(config.output / f"{file}.json", content.encode())
        parts = report["compiled"].values()
        rows.append(
            [
                f"{report['num_devices']} {report['device']}",
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
