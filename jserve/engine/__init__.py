"""The engine: plans carried out in compiled programs, one step a turn."""

__all__ = [
    "bucket_plan",
    "cluster",
    "compile_cache",
    "engine",
    "facts",
    "followers",
    "interface",
    "loop",
    "machine",
    "memory",
    "packing",
    "profiler",
    "program_store",
    "programs",
    "recent_steps",
    "sampling",
    "sizing",
    "warm_up",
]
