"""Compiles the paged attention kernel for a GPU that is not there, in a child process.

  MOSAIC_GPU_DUMP_PTXAS=1 python -m tests.aot.kernel h200

A line of JSON follows what ptxas says of each case.
"""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time
from typing import Any

from tests import ROOT
from tests.aot.optimized_hlo import read_ptxas
from tests.aot.targets import ENVIRONMENT, TARGETS, Card, devices_of

# Shapes and options of a layer with 32 heads, 8 KV heads and 8,192 tokens of context.
_OPTIONS = {"window": 1000, "soft_cap": 30.0, "has_sinks": True}
CASES: dict[str, dict[str, Any]] = {
    **{f"decode {size}": {"head_dim": size} for size in (64, 128, 256)},
    "decode in splits": {"rows": 4},
    "decode float16": {"dtype": "float16"},
    "decode small pages": {"page_size": 32},
    "decode options": _OPTIONS,
    "decode wide group": {"num_heads": 128},
    **{f"prefill {size}": {"width": 32, "head_dim": size} for size in (64, 128, 256)},
    "prefill options": {"width": 32, **_OPTIONS},
}


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a thread of a kernel takes, as ptxas says.

    Attributes:
      spill_bytes: Registers that are stored in memory.
      compile_s: Seconds to trace and compile all around it.
    """

    registers: int
    spill_bytes: int
    compile_s: float


def kernel_resources(target: str) -> dict[str, Resources]:
    """Returns what each of `CASES` takes.

    Args:
      target: Key of `targets.TARGETS`.

    Raises:
      RuntimeError: If the child failed.
    """
    paths = [str(ROOT / part) for part in ("", "models", "sched", "tools")]
    nvidia = importlib.import_module("nvidia")
    added = {
        "PYTHONPATH": os.pathsep.join(paths),
        # The wheels' compilers, and not those of a toolkit on this machine.
        "XLA_FLAGS": f"--xla_gpu_cuda_data_dir={nvidia.__path__[0]}/cu13",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.aot.kernel", target],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, **added},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(
            f"compiling for {target} ended with {done.returncode}:\n"
            f"{done.stdout[-4000:]}"
        )
    found: dict[str, Resources] = {}
    text = ""  # what ptxas says of the one kernel of the next case
    for line in done.stdout.splitlines(keepends=True):
        text += line
        if line.startswith("{"):
            case, sizes = json.loads(line), read_ptxas(text)
            found[case["name"]] = Resources(
                sizes["most_registers"], sizes["spilled_bytes"], case["compile_s"]
            )
            text = ""
    return found


def main() -> None:
    """Compiles for the target in the first argument."""
    import jax
    import jax.numpy as jnp

    from jserve_models.attention import paged_mosaic
    from tests.models.attention import mosaic

    target = TARGETS[sys.argv[1]]
    assert isinstance(target.device, Card)
    capability = target.device.capability
    [device] = devices_of(target)
    sharding = jax.sharding.SingleDeviceSharding(device)

    def compile_case(
        *,
        width: int = 1,
        rows: int = 32,
        num_heads: int = 32,
        head_dim: int = 128,
        page_size: int = 128,
        dtype: str = "bfloat16",
        has_sinks: bool = False,
        **options: Any,
    ) -> None:
        def attend(*arrays: jax.Array) -> jax.Array:
            return paged_mosaic.paged_attention(
                *arrays,
                scale=head_dim**-0.5,
                sinks=jnp.zeros(num_heads) if has_sinks else None,
                has_tma=capability >= (9, 0),
                **options,
            )

        types = (
            ((rows, width, num_heads, head_dim), dtype),
            ((512, page_size, 16, head_dim), dtype),
            ((rows,), "int32"),
            ((rows,), "int32"),
            ((rows, 8192 // page_size), "int32"),
        )
        arguments = [jax.ShapeDtypeStruct(*one, sharding=sharding) for one in types]
        jax.jit(attend).lower(*arguments).compile()

    mesh = jax.sharding.Mesh([device], ("one",)).abstract_mesh
    for name, case in CASES.items():
        start_s = time.perf_counter()
        with mosaic.lowered_for(capability), jax.sharding.use_abstract_mesh(mesh):
            compile_case(**case)
        compile_s = time.perf_counter() - start_s
        print(json.dumps({"name": name, "compile_s": compile_s}), flush=True)


if __name__ == "__main__":
    main()
