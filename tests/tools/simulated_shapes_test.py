import pytest

from jserve_sched.buckets import BucketTable
from jserve_sched.cost_model import CLOSED_FORMS
from jserve_tools.simulated_shapes import Shapes

A100 = CLOSED_FORMS["a100-llama3-8b"]
FILE = BucketTable((16, 256), (0, 4, 28), block_tokens=64)


def test_strategies_without_a_file() -> None:
    shapes = Shapes(file=None, block_tokens=32)
    assert shapes.table("none", A100).block_tokens == 1
    assert shapes.table("linear:block_gap=7", A100).block_edges[:4] == (0, 1, 7, 14)
    # What is fitted later begins as pow2, which sets its budget.
    assert shapes.needs_fit("fitted") and not shapes.needs_fit("pow2")
    assert shapes.table("fitted", A100) == shapes.table("pow2", A100)
    with pytest.raises(ValueError, match="explicit needs buckets, a file"):
        shapes.table("explicit", A100)
    with pytest.raises(ValueError, match="'cubes' is unknown"):
        shapes.table("cubes", A100)


def test_a_file_or_a_budget_that_would_do_nothing_is_refused() -> None:
    with_file, without = (Shapes(file=one, block_tokens=32) for one in (FILE, None))
    with_file.check_used(["pow2", "explicit"], None)
    with_file.check_used(["fitted"], None)
    without.check_used(["pow2", "fitted"], 9)
    without.check_used(["pow2"], None)
    with pytest.raises(ValueError, match="strategies explicit and fitted, not pow2"):
        with_file.check_used(["pow2"], None)
    with pytest.raises(ValueError, match=r"max_programs=9 is for .* not pow2, linear"):
        without.check_used(["pow2", "linear"], 9)
    with pytest.raises(ValueError, match=r"max_programs=9 is for .* without buckets"):
        with_file.check_used(["fitted"], 9)


@pytest.mark.parametrize("strategy", ["explicit", "fitted"])
def test_a_file_has_its_own_edges_and_blocks(strategy: str) -> None:
    shapes = Shapes(file=FILE, block_tokens=32)
    assert not shapes.needs_fit(strategy)
    table = shapes.table(strategy, A100)
    assert (table.row_edges, table.block_edges) == (FILE.row_edges, FILE.block_edges)
    assert table.block_tokens == 64
    assert shapes.table("pow2", A100).block_tokens == 32
    few = BucketTable((16,), (0, 4), block_tokens=64)
    with pytest.raises(ValueError, match="16 is not max_num_seqs=256"):
        Shapes(file=few, block_tokens=32).table(strategy, A100)
