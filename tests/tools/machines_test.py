"""Machines to simulate: profiles of engines, their buckets, and wrong names."""

import pathlib
import pickle

import numpy as np
import pytest

from jserve_sched import features
from jserve_sched.buckets import Bucket, BucketTable
from jserve_sched.cost_model import CLOSED_FORMS, CostModel
from jserve_tools.machines import load_machine, simulated_table, with_limits
from jserve_tools.samples import Samples, write_samples

A100 = CLOSED_FORMS["a100-llama3-8b"]


def samples_file(path: pathlib.Path, **facts: object) -> pathlib.Path:
    table = BucketTable((2, 4), (0, 1, 2), block_tokens=32)
    rows = np.stack(
        [
            features.uniform_features(
                bucket, decode_pages=pages, block_pages=pages, page_size=64
            )
            for bucket in table.buckets
            for pages in (1, 2, 4)
        ]
    )
    cost_s = 1e-3 + 1e-4 * rows[:, features.NUM_DECODES]
    cost_s += 2e-5 * rows[:, features.PREFILL_TOKENS]
    engine = {"page_size": 64, "max_num_seqs": 4, "max_num_batched_tokens": 68}
    write_samples(
        path,
        Samples(
            features=rows,
            duration_s=np.stack([cost_s] * 3),
            split=np.zeros(len(rows), np.int8),
            timed_features=rows,
            timed_s=cost_s,
            facts={
                "buckets": table.to_json(),
                "num_kv_tokens": 4096,
                "max_model_len": 1024,
                "engine": engine,
            }
            | facts,
        ),
    )
    return path


@pytest.mark.parametrize("kind", ["linear", "table"])
def test_a_profile_of_an_engine_is_a_machine(kind: str, tmp_path: pathlib.Path) -> None:
    machine = load_machine(f"{kind}:{samples_file(tmp_path / 's.npz')}")
    model: CostModel = pickle.loads(pickle.dumps(machine.cost_model))
    assert (model.num_kv_tokens, model.page_size) == (4096, 64)
    assert (model.max_num_seqs, model.max_num_batched_tokens) == (4, 68)
    assert (model.name, machine.block_tokens) == (f"{kind}:s.npz", 32)
    full = features.uniform_features(
        Bucket(4, 2, 32), decode_pages=1, block_pages=1, page_size=64
    )
    assert model.step_s(full[None], 32)[0] == pytest.approx(
        1e-3 + 4e-4 + 64 * 2e-5, rel=0.02
    )
    assert with_limits(model, max_num_seqs=2, page_size=None).max_num_seqs == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("abacus", "'abacus' is unknown"),
        ("linear:{folder}/s.npz:more", "mlp alone takes a checkpoint"),
        ("mlp:{folder}/s.npz", "mlp alone takes a checkpoint"),
        ("mlp:{folder}/s.npz:{folder}/none", "checkpoint"),
        ("table:{folder}/none.npz", "none.npz"),
        ("table:{folder}/odd.npz", "do not say the engine's limits"),
    ],
)
def test_a_machine_that_cannot_be_had_is_refused(
    spec: str, message: str, tmp_path: pathlib.Path
) -> None:
    samples_file(tmp_path / "s.npz")
    samples_file(tmp_path / "odd.npz", engine=None)
    with pytest.raises(ValueError, match=message):
        load_machine(spec.format(folder=tmp_path))


def test_strategies_make_tables_of_a_machines_limits() -> None:
    assert simulated_table("none", A100, None, 32).block_tokens == 1
    linear = simulated_table("linear:block_gap=7", A100, None, 32)
    assert linear.block_edges[:4] == (0, 1, 7, 14)
    # What is fitted later begins as pow2, which sets its budget.
    pow2 = simulated_table("pow2", A100, None, 32)
    assert simulated_table("fitted", A100, None, 32) == pow2
    file = BucketTable((16, 256), (0, 4, 28), block_tokens=64)
    for strategy in ("explicit", "fitted"):
        table = simulated_table(strategy, A100, file, 32)
        assert (table.row_edges, table.block_edges) == ((16, 256), (0, 4, 28))
        assert table.block_tokens == 64
    assert simulated_table("pow2", A100, file, 32) == pow2
    few = BucketTable((16,), (0, 4), block_tokens=64)
    with pytest.raises(ValueError, match="16 is not max_num_seqs=256"):
        simulated_table("explicit", A100, few, 32)
