"""The engine: plans carried out in compiled programs, one step a turn."""

__all__ = [
    "bucket_plan",
    "compile_cache",
    "engine",
    "facts",
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
