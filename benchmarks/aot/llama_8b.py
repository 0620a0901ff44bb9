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

from benchmarks.needs import Span, needs
from jserve.flags import define_config_flags
from jserve.program import run_program
from jserve.timing.roofline_prior import decoder_of
from jserve_sched.simulation.roofline import Decoder, Device
from jserve_tools.reporting.documents import commit, plain, write_whole
from jserve_tools.reporting.tables import render
from tests.aot.compiling import MODELS, Job, compile_programs, rows_and_blocks
from tests.aot.gate import faults
from tests.aot.targets import TARGETS

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


def weight_bytes(decoder: Decoder, weights: str) -> int:
    """Returns the bytes of all weights but the scales of quantised ones."""
    layers, head = decoder.num_layers * decoder.layer_size, decoder.head_size
    norms = (2 * decoder.num_layers + 1) * decoder.hidden_size
    return _ITEM_BYTES[weights] * (layers + head) + 2 * (head + norms)


def arithmetic(
    decoder: Decoder, device: Device, name: str, weights: str
) -> dict[str, Any]:
    """Returns what a step has to read and compute, and the seconds that it takes.

    All blocks are of one prompt, whose KV is read once.
    """
    num_rows, num_blocks = rows_and_blocks(name)
    spans = [Span(_CONTEXT, _CONTEXT + 1, True)] * num_rows
    if num_blocks:
        spans.append(Span(_CONTEXT, _CONTEXT + 32 * num_blocks, True))
    read_bytes, operations = needs(
        decoder,
        spans,
        item_bytes=_ITEM_BYTES[weights],
        token_bytes=decoder.token_bytes,
    )
    read_s = read_bytes / device.bandwidth
    compute_s = operations / device.operations
    return {
        "context_tokens": _CONTEXT,
        "read_bytes": read_bytes,
        "operations": operations,
        "read_s": read_s,
        "compute_s": compute_s,
        "roofline_s": max(read_s, compute_s),
    }


def room_tokens(decoder: Decoder, memory_bytes: float, other_bytes: float) -> int:
    """Returns the tokens of KV that a memory holds beside all else."""
    return max(int((memory_bytes - other_bytes) // decoder.token_bytes), 0)


def measure(name: str, config: Aot) -> dict[str, Any]:
    """Returns the report of one target."""
    kind, _, count = name.partition("-")
    num_devices = int(count or 1)
    target, model = TARGETS[kind], MODELS[config.model]
    device, part = target.figures, decoder_of(model).part(num_devices)
    page_size = Job.page_size
    memory_bytes = config.memory_fraction * device.memory
    for weights in _ITEM_BYTES:
        needed_bytes = weight_bytes(part, weights)
        num_tokens = room_tokens(part, memory_bytes, needed_bytes)
        if num_tokens >= _LEAST_TOKENS:
            break
    report: dict[str, Any] = {
        "device": target.kind,
        "num_devices": num_devices,
        "memory_bytes": device.memory,
        "bandwidth_bytes_s": device.bandwidth,
        "bfloat16_operations_s": device.operations,
        "weights": weights,
        "weight_bytes": needed_bytes,
        "arithmetic": {one: arithmetic(part, device, one, weights) for one in _STEPS},
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
    num_tokens = room_tokens(part, memory_bytes, needed_bytes + temporary_bytes)
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
