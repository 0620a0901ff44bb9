"""The engine: plans carried out in compiled programs, one step a turn."""

__all__ = [
    "bucket_plan",
    "compile_cache",
    "engine",
    "facts",
    "interface",
    "loop",
    "machine",
    "packing",
    "program_store",
    "programs",
    "sampling",
    "step_records",
    "warm_up",
]
