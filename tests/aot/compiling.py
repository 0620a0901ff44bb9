"""Compiles programs of the engine for a device that is not there, in a child process.

  python -m tests.aot.compiling '{"target": "h200", "programs": ["B32xNB0"]}'

One device a process: compiled kernels are remembered without their device, and what
fails in a compiler may end the process. Each program is one line of JSON.
"""

import contextlib
import ctypes
import dataclasses
import importlib
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from jserve_models.config import NAMED, Experts, ModelConfig
from tests import ROOT
from tests.aot.optimized_hlo import num_unplaced, read_hlo, read_ptxas, read_thunks
from tests.aot.targets import ENVIRONMENT, TARGETS, Card, Target, devices_of

# Llama-like, with all that a layer may have.
_SMALL = ModelConfig(
    name="small",
    vocab_size=4096,
    hidden_size=512,
    num_layers=3,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=1536,
    max_model_len=8192,
    qkv_bias=True,
    qk_norm=True,
)
_QWEN3_32B = ModelConfig(
    name="qwen3-32b",
    vocab_size=151936,
    hidden_size=5120,
    num_layers=64,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=25600,
    rope_theta=1000000.0,
    rms_norm_eps=1e-6,
    qk_norm=True,
    max_model_len=40960,
)
_CAPPED = dataclasses.replace(
    _SMALL,
    windows=(1024, None, 1024),
    local_rope_theta=1e4,
    norm_offset=True,
    post_norms=True,
    activation="gelu_tanh",
    attention_soft_cap=50.0,
    logit_soft_cap=30.0,
    embedding_scale=20.0,
)
_EXPERTS = dataclasses.replace(_SMALL, experts=Experts(count=8, per_token=2))
MODELS = {
    **NAMED,
    "small": _SMALL,
    "capped": _CAPPED,
    "experts": _EXPERTS,
    "sinks": dataclasses.replace(_SMALL, windows=(128, None, 128), sinks=True),
    "few heads": dataclasses.replace(_SMALL, num_kv_heads=2),
    "qwen3-32b": _QWEN3_32B,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Programs to compile for one device.

    Attributes:
      target: Key of `targets.TARGETS`.
      programs: Names of programs: "B8xNB4" is a step of 8 rows and 4 blocks, "head8"
        and "draw8" are heads of 8 rows, greedy and drawn.
      model: Key of `MODELS`.
      num_slots: Requests that may run at once.
      num_pages: KV pages in the pool, of `page_size` tokens.
      context_pages: KV pages of the longest context.
      attention: Attention backend; "" for that of the platform, which has its name.
      weights: Storage of the matrices, of `matrices.STORAGES`.
      kv_dtype: Type of the KV.
      num_devices: Devices that share the model.
    """

    target: str
    programs: tuple[str, ...]
    model: str = "small"
    num_slots: int = 32
    num_pages: int = 512
    page_size: int = 128
    context_pages: int = 64
    attention: str = ""
    weights: str = "auto"
    kv_dtype: str = "bfloat16"
    num_devices: int = 1

    @property
    def backend(self) -> str:
        """Name of the attention backend."""
        return self.attention or TARGETS[self.target].platform


def compile_programs(job: Job) -> list[dict[str, Any]]:
    """Returns the report of each program; see `reports`.

    Raises:
      RuntimeError: If the child failed.
    """
    paths = [str(ROOT / part) for part in ("", "models", "sched", "tools")]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "tests.aot.compiling"]
    done = subprocess.run(
        [*command, json.dumps(dataclasses.asdict(job))],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(
            f"compiling for {job.target} ended with {done.returncode}:\n"
            f"{done.stdout[-1000:]}\n{done.stderr[-4000:]}"
        )
    return [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]


def reports(job: Job, dump: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields what each program is, in the process that compiles it.

    Args:
      dump: Folder in which XLA leaves its thunks.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jserve.engine.programs import DeviceState, Programs
    from jserve.engine.sampling import empty_slots
    from jserve_models.decoder import Decoder
    from jserve_models.registry import abstract_model
    from jserve_models.sharding import make_mesh, placement

    mesh = make_mesh(devices_of(TARGETS[job.target], job.num_devices))
    # The engine's programs, of shapes alone.
    config = MODELS[job.model]
    attention = _attention(job)
    model = abstract_model(
        config,
        dtype=jnp.bfloat16,
        mesh=mesh,
        attention=attention,
        weights=job.weights,
    )
    where = placement(mesh, model.attention.KV_AXES)
    kv: Any = tuple(
        jax.ShapeDtypeStruct(shape, job.kv_dtype, sharding=where)
        for shape in model.kv_shapes(job.num_pages, job.page_size)
    )
    hosts: Any = (
        np.empty(job.num_slots, np.int32),
        np.empty((job.num_slots + 1, job.context_pages), np.int32),
        empty_slots(job.num_slots, config.vocab_size),
    )
    others = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement(mesh)),
        hosts,
    )
    state = DeviceState(kv, *others)
    programs = Programs(
        model=model,
        state=state,
        captures_logits=False,
    )
    num_pages, _ = model.attention.pool_size(state.kv, config.num_layers)
    kv_bytes = _device_bytes(state.kv)
    weight_shapes = {
        placement(mesh, leaf.axes[1:]).shard_shape(leaf.shape[1:])
        for leaf in Decoder(model.config).leaves
        if leaf.axes[0] == "layers" and len(leaf.shape) > 2
    }
    weight_bytes = _device_bytes(model.leaves)
    if job.backend == "gpu":
        _name_capability(TARGETS[job.target], model.attention)
    # Kernels are lowered for the device that the mesh in context names.
    for name in job.programs:
        start_s = time.perf_counter()
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            lowered = programs.lower(_program(name))
        traced_s = time.perf_counter()
        with _stdout_to(dump / "ptxas.txt"):
            compiled = lowered.compile()
        end_s = time.perf_counter()
        memory: Any = compiled.memory_analysis()
        yield {
            "target": job.target,
            "program": name,
            "num_unplaced": num_unplaced(lowered.as_text()),
            "attention": attention.__name__.rpartition(".")[2],
            "jax": jax.__version__,
            "trace_s": traced_s - start_s,
            "compile_s": end_s - traced_s,
            "weight_bytes": weight_bytes,
            "kv_bytes": kv_bytes,
            "num_discard_pages": state.kv[0].shape[0] - config.num_layers * num_pages,
            "argument_bytes": memory.argument_size_in_bytes,
            "output_bytes": memory.output_size_in_bytes,
            "alias_bytes": memory.alias_size_in_bytes,
            "temporary_bytes": memory.temp_size_in_bytes,
            "code_bytes": memory.generated_code_size_in_bytes,
            "lowered_kernels": lowered.as_text().count("@mosaic_gpu_v2"),
            **read_hlo(
                compiled.as_text() or "", kv_bytes // config.num_layers, weight_shapes
            ),
            **read_ptxas((dump / "ptxas.txt").read_text()),
            "thunks": read_thunks(dump, f"jit_step_{name}"),
        }


def _device_bytes(arrays: Any) -> int:
    """Returns the bytes of abstract arrays on each device."""
    import jax

    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(arrays)
    )


@contextlib.contextmanager
def _stdout_to(path: pathlib.Path) -> Iterator[None]:
    """What libraries print meanwhile goes to a file."""
    sys.stdout.flush()
    kept = os.dup(1)
    with path.open("w") as file:
        os.dup2(file.fileno(), 1)
        try:
            yield
        finally:
            ctypes.CDLL(None).fflush(None)
            os.dup2(kept, 1)
            os.close(kept)


def _attention(job: Job) -> Any:
    """Returns the attention backend; on TPU it is the product's choice."""
    import numpy as np

    from jserve_models.attention import AttentionUse
    from jserve_models.attention.choose import choose_attention

    platform = TARGETS[job.target].platform
    if job.attention or platform == "gpu":  # where the choice would ask a live device
        return importlib.import_module(f"jserve_models.attention.{job.backend}")
    use = AttentionUse(
        config=MODELS[job.model],
        platform=platform,
        dtype=np.dtype(job.kv_dtype),
        num_rows=max(sum(rows_and_blocks(name)) for name in job.programs),
        page_size=job.page_size,
        max_pages_per_row=job.context_pages,
    )
    return choose_attention("auto", use)[0]


def _name_capability(target: Target, backend: Any) -> None:
    """Says what JAX and the backend ask a live GPU for: its compute capability."""
    from jax.experimental.mosaic.gpu import utils

    assert isinstance(target.device, Card)
    major, minor = target.device.capability
    private: Any = utils
    private._infer_arch = lambda: (major, minor)
    backend.compute_capability = lambda: major + minor / 10


def _program(name: str) -> Any:
    """Returns the program of a name."""
    from jserve.engine.program_kinds import Head
    from jserve_sched.buckets.table import Bucket

    if is_head(name):
        return Head(int(name[4:]), name.startswith("draw"))
    return Bucket(*rows_and_blocks(name))


def is_head(name: str) -> bool:
    """Whether a program is a head, and not a step."""
    return name.startswith(("head", "draw"))


def rows_and_blocks(name: str) -> tuple[int, int]:
    """Returns the decode rows and prefill blocks of a step; a head is all rows."""
    if is_head(name):
        return int(name[4:]), 0
    num_rows, num_blocks = name.removeprefix("B").split("xNB")
    return int(num_rows), int(num_blocks)


def main() -> None:
    """Compiles the job in the first argument."""
    job = Job(**json.loads(sys.argv[1]))
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as dump:
        if TARGETS[job.target].platform == "gpu":
            nvidia = importlib.import_module("nvidia")
            # The wheels' compilers, and not those of a toolkit on this machine.
            flags = (
                f"--xla_dump_to={dump} --xla_dump_hlo_as_text "
                f"--xla_gpu_cuda_data_dir={nvidia.__path__[0]}/cu13"
            )
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
        for report in reports(job, pathlib.Path(dump)):
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
