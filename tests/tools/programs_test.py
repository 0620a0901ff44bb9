"""What holds for every program: its help is there at once, and lists its flags."""

import pytest

from tests.programs import start

CODE = """
import runpy, sys
sys.argv = ["program", "--help"]
try:
    runpy.run_module({module!r}, run_name="__main__")
finally:
    heavy = "jax flax scipy optax altair fastapi pydantic uvicorn aiohttp numpy"
    print("imported", *sorted(set(heavy.split()) & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("module", "texts"),
    [
        ("jserve_tools.bench", ("--trace", "--extra_body", "Servers:")),
        ("jserve_tools.simulate", ("--declared_max_tokens", "--policies")),
        ("jserve_tools.fit_buckets", ("--prior_share",)),
        ("jserve_tools.profile_steps", ("--rounds", "--kv_cache_bytes")),
        ("jserve_tools.train_model", ("--num_long_steps",)),
        ("jserve_tools.train_predictor", ("--weight_decay",)),
    ],
)
def test_help_lists_the_flags_and_imports_nothing_slow(
    module: str, texts: tuple[str, ...]
) -> None:
    out, err = start("-c", CODE.format(module=module)).communicate(timeout=60)
    for text in texts:
        assert text in out, err
    # NumPy alone is quick enough for programs that compute in their own process.
    imported = out.splitlines()[-1].split()[1:]
    assert imported == ["numpy"] * (module.endswith(("steps", "model", "predictor")))
