"""The settings of an engine; every default is written once, here."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from jserve_sched.buckets.strategies import FROM_FILE, make_strategy
from jserve_sched.buckets.table import DEFAULT_BLOCK_TOKENS

SIZES: dict[str, dict[str, int]] = {
    "cpu": {
        "max_num_seqs": 32,
        "max_num_batched_tokens": 544,
        "block_tokens": DEFAULT_BLOCK_TOKENS,
        "max_programs": 0,
        "kv_cache_bytes": 512 * 2**20,
        "page_size": 128,
    },
    "gpu": {
        "max_num_seqs": 128,
        "max_num_batched_tokens": 2176,
        "block_tokens": 64,
        "max_programs": 12,
        "kv_cache_bytes": 0,
        "page_size": 128,
    },
}
SIZES["tpu"] = SIZES["gpu"]
"""Defaults of `EngineConfig` by JAX's platform; a KV pool of 0 is what memory is left.

Those of GPU and TPU let a step of 2,048 prompt tokens run beside 128 decodes; they are
not measured yet.
"""
_MAX_PROFILED = 1000  # steps; a trace is kept in memory until it is written


def setting_text(name: str, value: Any) -> str:
    """Returns a number for `--help`: a size as 512MiB, if it is a multiple of 1MiB."""
    is_size = value and name.endswith("_bytes") and value % 2**20 == 0
    return f"{value >> 20}MiB" if is_size else str(value)


def check_range(name: str, value: float, least: float, most: float) -> None:
    """Checks a number against its limits.

    Raises:
      ValueError: If the number is outside, naming it and both limits.
    """
    if not least <= value <= most:
        raise ValueError(f"{name}={value} is not in {least}..{most}")


def check_readable(name: str, *paths: pathlib.Path | None) -> None:
    """Checks that the files that a setting names, if any, can be read.

    Raises:
      ValueError: If one cannot, naming setting and file.
    """
    for path in paths:
        if path is not None and (path.is_dir() or not os.access(path, os.R_OK)):
            raise ValueError(f"{name}={str(path)!r} is not a file that can be read")


def check_writable(name: str, path: pathlib.Path) -> None:
    """Checks that a file or folder can be written, or made if it does not exist.

    Raises:
      ValueError: If it cannot, naming it and the folder that is not writable.
    """
    found = next(one for one in (path, *path.absolute().parents) if one.exists())
    is_in_the_way = found != path and not found.is_dir()
    if is_in_the_way or not os.access(found, os.W_OK):
        raise ValueError(f"{name}={str(path)!r}: {str(found)!r} cannot be written")


def check_predictor(predictor: str) -> None:
    """Checks that `EngineConfig.predictor` is a name, or a folder with a checkpoint.

    Raises:
      ValueError: If it is neither.
    """
    folder = pathlib.Path(predictor).expanduser() / "checkpoint"
    if predictor not in ("table", "auto", "linear") and not folder.is_dir():
        raise ValueError(
            f"predictor={predictor} is not one of table, auto, linear, and not the "
            "folder of a trained one, which holds a checkpoint"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The engine and its scheduler; sizes that go by device are set by `for_device`.

    Attributes:
      model: Path of a Hugging Face folder, ORG/NAME on the hub, which is downloaded to
        its cache, or name of a model size: "tiny", a small model of Python's standard
        library, or "toy", "peer-19m", "llama-1b" or "llama-8b" with random weights.
      seed: Seed of random weights of a named size. [default: trained weights for tiny,
        else 0]
      dtype: Type of the computation and, but for --kv_dtype and --weights, of the rest:
        "float32", "bfloat16", or "auto", which is float32 on CPU, where bfloat16 is
        slow before jax 0.11.2, and bfloat16 elsewhere.
      weights: Type in which matrices are stored: "bfloat16", "int8", "fp8", or "auto",
        which is --dtype. int8 and fp8 have a scale for each output channel and take
        half the memory of bfloat16, with a small loss of accuracy; embedding, norms and
        biases remain in --dtype. fp8 needs a GPU of compute capability 8.9 or newer. On
        CPU both save memory, and steps take longer.
      kv_dtype: Type of the KV: "auto", which is --dtype, or "fp8" (float8_e4m3fn): the
        pool holds two or four times the tokens, with a loss of accuracy. Of the
        kernels only that of TPU takes it: GPUs take "page_loop".
      max_model_len: Most tokens of prompt and output together; 0 takes the model's
        limit.
      attention: Backend of attention: "cpu", which is quickest there, "page_loop",
        which runs everywhere, "gpu" and "tpu", which are kernels, or "auto", which
        takes what suits the device and the model.
      tensor_parallel: Number of devices that share the model, each with a part of its
        heads, and so of the KV, of its feed-forward layers and of its vocabulary.
      policy: Scheduling policy: ontime, sliding, qoserve, edf, fcfs, sjf, laxity or
        annealing, with options as in "edf:chunk_tokens=256", or a class of your own,
        as in "my_module.MyPolicy".
      predictor: Predictor of step times: "table" (timed at start), "auto" (networks
        too, trained on the server's own steps at idle priority), "linear"
        (SlidingServe's model, refitted while serving), or the folder of a checkpoint
        of jserve-train-predictor.
      length_estimator: Estimator of output lengths, by name and options: "mean" of
        answers so far, "quantile", as in "quantile:q=0.75", or "max_tokens", the limit.
      annealing_budget_ms: Most milliseconds of one search of the policy annealing; 0
        limits only the number of proposals, as simulations do.
      max_num_seqs: Most requests that run at once; 0 goes by device.
      max_num_batched_tokens: Most token positions in one step; 0 goes by device, with
        512 for prompts on CPU and 2048 elsewhere.
      max_queued_requests: Most requests that wait; more are refused with status 429.
      max_queue_wait_s: Seconds after which one that can no longer attain its SLO ends
        with status 503; 0 sets no limit. Best effort waits.
      step_timeout_s: Seconds after which a step that has not ended fails the server; a
        hundred times its predicted duration, if that is more; 0 sets no limit.
      enable_overlap: Whether a step is planned while the previous one runs. On CPU this
        gains at few rows, and nothing, or less, once steps use all cores.
      bucket_strategy: Strategy that chooses the compiled buckets, by name and options,
        as in "linear:block_gap=4"; "" takes "explicit" with --buckets, else "pow2".
      buckets: Bucket file (JSON), for the strategies "explicit" and "fitted".
      block_tokens: Tokens in one prefill block; 0 goes by device.
      max_programs: Most programs to compile; the least valuable edges are left out. 0
        sets no limit.
      warm_up_timing_s: Seconds to spend on timing programs, no more than compiling
        took; those that save most are timed first, and the times of the others are
        guessed, and learned from the steps of requests. 0 sets no limit.
      compile_cache_dir: Folder for compiled programs and step times; "" stores nothing.
      device_memory_fraction: Share of a GPU's or TPU's memory that may be used.
      kv_cache_bytes: Size of the KV pool on each device, K and V together; 0 on GPU and
        TPU takes what weights and steps leave of --device_memory_fraction. It is part
        of every program: another size compiles all of them again.
      page_size: Tokens in one KV page, a multiple of --block_tokens.
      enable_prefix_caching: Whether requests share the KV of equal prefixes.
      step_log: File that records the buckets and times of steps, without any text, for
        `jserve-fit-buckets`; "" records nothing.
      step_log_max_bytes: Most bytes of the step log, including its rotated part.
      profile_steps: Steps that are traced by `jax.profiler`, as in "100:120" for steps
        100 to 119, counted from 0 at start; "" traces none. Requests wait for a moment
        when the trace starts and when it is written.
      profile_dir: Folder of the trace; XProf, TensorBoard or Perfetto show it.
      capture_logits: Whether each step also returns its logits; for tests.
    """

    flag_groups: ClassVar[Mapping[str, str]] = {  # headings, by their first field
        "model": "Model",
        "policy": "Scheduling",
        "bucket_strategy": "Buckets and compilation",
        "device_memory_fraction": "Memory",
        "step_log": "Recording",
    }
    flag_defaults: ClassVar[Mapping[str, str]] = {  # as --help shows them
        name: f"by device: {setting_text(name, size)} on CPU, "
        f"{setting_text(name, SIZES['gpu'][name])} on GPU and TPU"
        for name, size in SIZES["cpu"].items()
        if size != SIZES["gpu"][name]
    } | {"page_size": str(SIZES["cpu"]["page_size"])}

    model: str = "tiny"
    seed: int | None = None
    dtype: str = "auto"
    weights: str = "auto"
    kv_dtype: str = "auto"
    max_model_len: int = 0
    attention: str = "auto"
    tensor_parallel: int = 1
    policy: str = "ontime"
    predictor: str = "table"
    length_estimator: str = "mean"
    annealing_budget_ms: float = 5.0
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    max_queued_requests: int = 1024
    max_queue_wait_s: float = 0.0
    step_timeout_s: float = 60.0
    enable_overlap: bool = True
    bucket_strategy: str = ""
    buckets: pathlib.Path | None = None
    block_tokens: int = 0
    max_programs: int | None = None
    warm_up_timing_s: float = 20.0
    compile_cache_dir: str = "~/.cache/jserve"
    device_memory_fraction: float = 0.9
    kv_cache_bytes: int = 0
    page_size: int = 0
    enable_prefix_caching: bool = True
    step_log: pathlib.Path | None = None
    step_log_max_bytes: int = 64 * 2**20
    profile_steps: str = ""
    profile_dir: pathlib.Path = pathlib.Path("out/profile")
    capture_logits: bool = False

    def __post_init__(self) -> None:
        # The bucket strategy and its file.
        if self.strategy not in FROM_FILE:
            make_strategy(self.strategy)  # raises for one that is unknown
        if (self.buckets is not None) != (self.strategy in FROM_FILE):
            raise ValueError(
                f"bucket_strategy={self.strategy!r} with "
                f"buckets={str(self.buckets or '')!r}: a bucket file goes with "
                f"{' and '.join(FROM_FILE)}, which need one, and with no other"
            )
        # Numbers.
        least_tokens = self.max_num_seqs + self.block_tokens
        for name, least, most in (
            ("max_num_seqs", 1, 4096),
            ("block_tokens", 1, 1024),
            ("max_num_batched_tokens", least_tokens, 2**20),
            ("page_size", max(self.block_tokens, 1), 4096),
            ("device_memory_fraction", 0.01, 1.0),
            ("kv_cache_bytes", 1, 2**50),
            ("max_model_len", 0, 2**24),
            ("max_queued_requests", 1, 2**20),
            ("max_queue_wait_s", 0.0, 86400.0),
            ("step_timeout_s", 0.0, 86400.0),
            ("annealing_budget_ms", 0.0, 1000.0),
            ("tensor_parallel", 1, 2**10),
            ("max_programs", 0, 2**16),
            ("warm_up_timing_s", 0.0, 86400.0),
            ("step_log_max_bytes", 2**16, 2**50),
        ):
            if name not in SIZES["cpu"] or getattr(self, name):
                check_range(name, getattr(self, name), least, most)
        if self.block_tokens and self.page_size % self.block_tokens:
            raise ValueError(
                f"page_size={self.page_size} is not a multiple of "
                f"block_tokens={self.block_tokens}"
            )
        # Files and names.
        check_readable("buckets", self.buckets)
        if self.step_log is not None:
            check_writable("step_log", self.step_log)
        if self.profiled_steps:
            check_writable("profile_dir", self.profile_dir)
        if not self.predictor:
            raise ValueError(
                "predictor='' is not table, auto, linear, or a checkpoint's folder"
            )
        for name, known in (
            ("dtype", ("auto", "float32", "bfloat16")),
            ("weights", ("auto", "bfloat16", "int8", "fp8")),
            ("kv_dtype", ("auto", "fp8")),
            ("attention", ("auto", "cpu", "page_loop", "gpu", "tpu")),
        ):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(known)}")

    def for_device(self, platform: str) -> "EngineConfig":
        """Returns the configuration with the sizes that go by device.

        More sequences than by default leave as many tokens of a step to prompts.

        Args:
          platform: Key of `SIZES`, as `jax.default_backend` names it.
        """
        sizes = SIZES.get(platform, SIZES["gpu"])
        chosen: dict[str, Any] = {
            name: size
            for name, size in sizes.items()
            if getattr(self, name) == getattr(EngineConfig, name)  # its default
        }
        more = max(self.max_num_seqs - sizes["max_num_seqs"], 0)
        if "max_num_batched_tokens" in chosen:
            chosen["max_num_batched_tokens"] += more
        return dataclasses.replace(self, **chosen)

    @property
    def strategy(self) -> str:
        """The bucket strategy that `bucket_strategy` asks for; never empty."""
        return self.bucket_strategy or ("explicit" if self.buckets else "pow2")

    @property
    def profiled_steps(self) -> range:
        """The steps that `profile_steps` names.

        Raises:
          ValueError: If it is not a range of 1 to 1000 steps.
        """
        if not self.profile_steps:
            return range(0)
        match = re.fullmatch(r"(\d{1,15}):(\d{1,15})", self.profile_steps)
        steps = range(int(match[1]), int(match[2])) if match else range(0)
        if not 1 <= len(steps) <= _MAX_PROFILED:
            raise ValueError(
                f"profile_steps={self.profile_steps!r} is not a range of 1 to "
                f"{_MAX_PROFILED} steps, such as 100:120"
            )
        return steps
