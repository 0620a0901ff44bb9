"""What an engine and a server may be told; every default is written once, here."""

import dataclasses
import pathlib

from jserve_sched.bucket_strategies import FROM_FILE
from jserve_sched.buckets import DEFAULT_BLOCK_TOKENS


def check_range(name: str, value: float, least: float, most: float) -> None:
    """Checks a number against its limits.

    Raises:
      ValueError: if it is outside, naming it and both limits.
    """
    if not least <= value <= most:
        raise ValueError(f"{name}={value} is not in {least}..{most}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The engine and its scheduler.

    Attributes:
      model: a named size or the path of a Hugging Face folder.
      seed: draws the weights of a named size (a folder brings its own).
      dtype: of weights and KV, "float32" or "bfloat16"; "auto" takes float32 on
        CPU, where bfloat16 is slow before jax 0.11.2, and bfloat16 elsewhere.
      policy: the scheduling policy, by name.
      predictor: what prices a step: "table" (timed at start), "linear" (SlidingServe's
        model, refitted while serving), or the folder of a trained checkpoint.
      bucket_strategy: chooses the compiled shapes, by name and options, such as
        "linear:block_gap=4"; "" takes "explicit" with `buckets`, "pow2" without.
      buckets: a bucket file, for the strategies "explicit" and "fitted".
      max_programs: most programs to compile; the edges that are worth least are
        left out. 0 sets no limit.
      max_compile_s: seconds to spend on compiling; shapes that would take longer are
        left out, but for the few that every step needs. 0 sets no limit.
      max_model_len: most tokens of prompt and output together; 0 takes the
        model's own.
      max_num_seqs: most requests running at once.
      max_num_batched_tokens: most token positions in one step.
      block_tokens: tokens in one prefill block, Q.
      page_size: tokens in one KV page.
      kv_cache_bytes: size of the KV pool, K and V together.
      enable_prefix_caching: whether requests share the KV of equal prefixes.
      max_queued_requests: most requests waiting; more are refused with 429.
      length_estimator: guesses how long answers will be, by name and options:
        "max_tokens" (what the request allows), "mean", or "quantile", as in
        "quantile:q=0.75".
      request_latency: file of `jserve-train-predictor --kind=request` that says how
        long whole requests take; without it, or if it was measured with another device,
        model, dtype or page size, that is fitted to the step predictor.
      annealing_budget_ms: most milliseconds that one search of the policies annealing
        and annealing+sliding takes; 0 limits their proposals alone, as simulations do.
      enable_overlap: whether a step is planned while the last one runs. On CPU it
        gains at few rows and nothing, or less, once steps fill the cores.
      compile_cache_dir: where compiled programs and step times persist; "" for
        nowhere.
      step_log: file in which steps are recorded, their shapes and times without any
        text, for `jserve-fit-buckets`; "" records nothing.
      step_log_max_bytes: most bytes the record takes, its older half included.
      capture_logits: whether each step also returns its logits; for tests.
    """

    model: str = "tiny"
    seed: int = 0
    dtype: str = "auto"
    policy: str = "edf"
    predictor: str = "table"
    bucket_strategy: str = ""
    buckets: pathlib.Path | None = None
    max_programs: int = 0
    max_compile_s: float = 0.0
    max_model_len: int = 0
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 544
    block_tokens: int = DEFAULT_BLOCK_TOKENS
    page_size: int = 128
    kv_cache_bytes: int = 512 * 2**20
    enable_prefix_caching: bool = True
    max_queued_requests: int = 1024
    length_estimator: str = "max_tokens"
    request_latency: pathlib.Path | None = None
    annealing_budget_ms: float = 5.0
    enable_overlap: bool = True
    compile_cache_dir: str = "~/.cache/jserve"
    step_log: pathlib.Path | None = None
    step_log_max_bytes: int = 64 * 2**20
    capture_logits: bool = False

    def __post_init__(self) -> None:
        if not self.bucket_strategy:
            name = "pow2" if self.buckets is None else FROM_FILE[0]
            object.__setattr__(self, "bucket_strategy", name)  # frozen for all others
        if (self.buckets is not None) != (self.bucket_strategy in FROM_FILE):
            raise ValueError(
                f"bucket_strategy={self.bucket_strategy!r} with "
                f"buckets={str(self.buckets or '')!r}: a bucket file goes with "
                f"{' and '.join(FROM_FILE)}, which need one, and with no other"
            )
        check_range("max_num_seqs", self.max_num_seqs, 1, 4096)
        check_range("block_tokens", self.block_tokens, 1, 1024)
        check_range(
            "max_num_batched_tokens",
            self.max_num_batched_tokens,
            self.max_num_seqs + self.block_tokens,
            2**20,
        )
        check_range("page_size", self.page_size, self.block_tokens, 4096)
        if self.page_size % self.block_tokens:
            raise ValueError(
                f"page_size={self.page_size} is not a multiple of "
                f"block_tokens={self.block_tokens}"
            )
        check_range("kv_cache_bytes", self.kv_cache_bytes, 1, 2**50)
        check_range("max_model_len", self.max_model_len, 0, 2**24)
        check_range("max_queued_requests", self.max_queued_requests, 1, 2**20)
        check_range("annealing_budget_ms", self.annealing_budget_ms, 0.0, 1000.0)
        check_range("max_programs", self.max_programs, 0, 2**16)
        check_range("max_compile_s", self.max_compile_s, 0.0, 86400.0)
        check_range("step_log_max_bytes", self.step_log_max_bytes, 2**16, 2**50)
        if not self.predictor:
            raise ValueError(
                "predictor='' is not one of table, linear, or a checkpoint's folder"
            )
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(
                f"dtype={self.dtype!r} is not one of auto, float32, bfloat16"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The HTTP face.

    Attributes:
      host: address to listen on.
      port: port to listen on; 0 takes a free one and prints it.
      served_model_name: the name clients use; "" takes the model's.
      service_classes: JSON file of service classes; None has best effort only.
      default_service_class: the class of a request that names none.
      api_key_file: file whose lines are accepted keys; None accepts everyone.
      drain_timeout_s: how long SIGTERM waits for running requests.
      max_body_bytes: largest request body accepted.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str = ""
    service_classes: pathlib.Path | None = None
    default_service_class: str = "best_effort"
    api_key_file: pathlib.Path | None = None
    drain_timeout_s: float = 30.0
    max_body_bytes: int = 8 * 2**20

    def __post_init__(self) -> None:
        check_range("port", self.port, 0, 65535)
        check_range("drain_timeout_s", self.drain_timeout_s, 0.0, 86400.0)
        check_range("max_body_bytes", self.max_body_bytes, 1024, 2**31)
