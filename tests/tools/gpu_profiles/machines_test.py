"""Machines to simulate: profiles of GPUs and engines, buckets, and wrong names."""

import csv
import dataclasses
import pathlib
import pickle

import numpy as np
import pytest

from jserve_models.hf.config import read_config
from jserve_sched.buckets.strategies import Continuous
from jserve_sched.buckets.table import Bucket, BucketTable
from jserve_sched.simulation.cost_model import CLOSED_FORMS, CostModel, OraclePredictor
from jserve_sched.simulation.gpu_costs import TableCost
from jserve_sched.simulation.roofline import DEVICES, RooflineCost
from jserve_sched.steps import features
from jserve_sched.timing.request_latency import fit_bilinear, priced_points
from jserve_tools.gpu_profiles.machines import (
    ATTENTION_COLUMNS,
    GPU_COST_MODELS,
    PROFILES,
    gpu_cost_model,
    load_machine,
    machine_files,
    read_kernel_times,
    read_points,
    simulated_table,
)
from jserve_tools.training.samples import Samples, write_samples
from tests import ROOT

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


def test_a_profile_of_an_engine_is_a_machine(tmp_path: pathlib.Path) -> None:
    machine = load_machine(f"table:{samples_file(tmp_path / 's.npz')}")
    model: CostModel = pickle.loads(pickle.dumps(machine))
    assert (model.num_kv_tokens, model.page_size) == (4096, 64)
    assert (model.max_num_seqs, model.max_num_batched_tokens) == (4, 68)
    assert (model.name, model.block_tokens) == ("table:s.npz", 32)
    full = features.uniform_features(
        Bucket(4, 2, 32), decode_pages=1, block_pages=1, page_size=64
    )
    assert model.step_s(full[None], 32)[0] == pytest.approx(
        1e-3 + 4e-4 + 64 * 2e-5, rel=0.02
    )


def test_a_folder_and_a_devices_figures_are_a_machine() -> None:
    folder = ROOT / "tests/golden/qwen3"
    spec = f"roofline:device=h200:model={folder}:tensor_parallel=2:link_gb_s=50"
    machine = load_machine(spec)
    assert isinstance(machine, RooflineCost)
    config = read_config(folder)
    sizes = dataclasses.asdict(machine.decoder)
    assert sizes == {name: getattr(config, name) for name in sizes}
    assert (machine.name, machine.tensor_parallel) == (spec, 2)
    assert machine.device == dataclasses.replace(DEVICES["h200"], link=50e9)
    assert machine_files(spec) == [folder / "config.json"]
    assert machine_files("roofline:device=h200:model=tiny") == []
    assert machine_files("table:a.npz") == [pathlib.Path("a.npz")]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("abacus", "cost_model=abacus is unknown; known: a100"),
        ("table:{folder}/none.npz", "none.npz"),
        ("table:{folder}/odd.npz", "do not say the engine's limits"),
        ("roofline:device=abacus:model=tiny", "device=abacus is unknown; known:.*h200"),
        ("roofline:device=h200", "roofline:model=... is missing"),
        ("roofline:device=h200:model={folder}", "has no config.json"),
        ("roofline:device=l4:model=llama-8b:tensor_parallel=3", "=3 does not divide"),
        ("roofline:device=h200:model=tiny:link_gb_s=-1", "link_gb_s=-1.0 is below 0"),
        ("roofline:device=h200:model=tiny:cards=2", "no option 'cards=2'"),
    ],
)
def test_a_machine_that_cannot_be_had_is_refused(
    spec: str, message: str, tmp_path: pathlib.Path
) -> None:
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


@pytest.fixture(
    scope="module",
    params=[name for name in GPU_COST_MODELS if name.endswith("-table")],
)
def table(request: pytest.FixtureRequest) -> TableCost:
    cost = gpu_cost_model(request.param)
    assert isinstance(cost, TableCost)
    return cost


def mixed_rows(path: pathlib.Path) -> np.ndarray:
    rows = read_points(path, ATTENTION_COLUMNS)
    return rows[(rows[:, 0] > 0) & (rows[:, 2] > 0)]


def test_a_profile_of_a_gpu_is_a_machine(table: TableCost) -> None:
    folder = PROFILES / table.name.split("-")[0]
    mixed = mixed_rows(folder / "attention.csv")
    found = table.mixed.at(*mixed[:, :4].T)
    np.testing.assert_allclose(found, mixed[:, 4] * 32e-6)
    calls = {"layernorm": 64, "embedding": 1, "final_layernorm": 1}
    with (folder / "dense.csv").open() as file:
        total_us = sum(
            calls.get(row["layer"], 32) * float(row["time_us"])
            for row in csv.DictReader(file)
            if row["tokens"] == "2048"
        )
    assert table.tokens.at(np.array([2048.0]))[0] == pytest.approx(
        total_us * 1e-6, rel=0.05
    )


def test_points_between_the_grid_are_near() -> None:
    mixed = mixed_rows(PROFILES / "rtxpro6000" / "attention_between.csv")
    times = read_kernel_times(PROFILES / "rtxpro6000")
    errors = times["mixed"].at(*mixed[:, :4].T) / (mixed[:, 4] * 32e-6) - 1.0
    assert len(errors) > 300
    assert np.median(np.abs(errors)) < 0.02
    assert abs(errors.mean()) < 0.02


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ("1,2.5", "layers", r"points\.csv: no field of name layers"),
        ("1,fast", "time_us", r"points\.csv: a cell is not a finite number"),
    ],
)
def test_points_are_checked(
    row: str, column: str, message: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "points.csv"
    path.write_text(f"tokens,time_us\n{row}\n{row}\n")
    with pytest.raises(ValueError, match=message):
        read_points(path, ("tokens", column))


@pytest.mark.parametrize("name", GPU_COST_MODELS)
def test_times_of_requests_are_bilinear_on_every_gpu(name: str) -> None:
    machine = gpu_cost_model(name)
    table = Continuous().table(
        max_num_seqs=machine.max_num_seqs,
        max_num_batched_tokens=machine.max_num_batched_tokens,
        block_tokens=1,
    )
    prefill, decode = priced_points(
        OraclePredictor(machine, table.block_tokens),
        table,
        page_size=machine.page_size,
        num_kv_tokens=machine.num_kv_tokens,
        max_num_batched_tokens=machine.max_num_batched_tokens,
    )
    for points, mean, worst in ((prefill, 0.1, 0.32), (decode, 0.05, 0.13)):
        predicted_s = fit_bilinear(points).of(points.batch, points.length)
        errors = np.abs(predicted_s / points.duration_s - 1)
        assert np.mean(errors) < mean and np.max(errors) < worst
