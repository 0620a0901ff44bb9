import csv
import pathlib

import numpy as np
import pytest

from jserve_sched import features
from jserve_sched.buckets import Bucket
from jserve_sched.cost_model import CLOSED_FORMS
from jserve_sched.gpu_costs import TableCost
from jserve_tools.gpu_cost_models import (
    ATTENTION_COLUMNS,
    GPU_COST_MODELS,
    PROFILES,
    gpu_cost_model,
    read_kernel_times,
    read_points,
)


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


def test_a_table_has_its_name_and_the_limits_of_its_card(table: TableCost) -> None:
    closed = CLOSED_FORMS[table.name.removesuffix("-table")]
    assert gpu_cost_model(closed.name) is closed
    for limit in ("num_kv_tokens", "page_size", "max_num_seqs"):
        assert getattr(table, limit) == getattr(closed, limit)


def test_grid_points_come_back(table: TableCost) -> None:
    mixed = mixed_rows(PROFILES / table.name.split("-")[0] / "attention.csv")
    found = table.mixed.at(*mixed[:, :4].T)
    np.testing.assert_allclose(found, mixed[:, 4] * 32e-6)


def test_kernels_are_counted_as_often_as_they_run(table: TableCost) -> None:
    folder = PROFILES / table.name.split("-")[0]
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


def test_tables_and_closed_forms_agree(table: TableCost) -> None:
    closed = CLOSED_FORMS[table.name.removesuffix("-table")]
    rows = np.array(
        [
            features.uniform_features(
                Bucket(num_rows, num_blocks, 32),
                decode_pages=pages,
                block_pages=pages if num_blocks else 0,
                page_size=16,
            )
            for num_rows in (8, 64)
            for num_blocks in (0, 16)
            for pages in (16, 64)
        ]
    )
    ratio = table.step_s(rows, 32) / closed.step_s(rows, 32)
    assert (np.abs(ratio - 1.0) < 0.3).all(), ratio


def test_padding_never_saves_time(table: TableCost) -> None:
    rng = np.random.default_rng(0)
    for num_rows, num_blocks in rng.integers(1, 50, (20, 2)).tolist():
        exact = features.uniform_features(
            Bucket(num_rows, num_blocks, 32),
            decode_pages=20,
            block_pages=20,
            page_size=16,
        )
        padded = features.without_padding(exact, used_rows=64, used_blocks=64)
        alone_s, padded_s = table.step_s(np.array([exact, padded]), 32)
        assert 0 < alone_s <= padded_s


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ("1,2.5", ("layers",), r"points\.csv: .*lacks \['layers'\]"),
        ("1,fast", ("tokens", "time_us"), r"points\.csv: .*'fast'"),
        ("1,", ("tokens", "time_us"), r"points\.csv: .*''"),
        ("1", ("tokens", "time_us"), r"points\.csv: a cell is empty"),
    ],
)
def test_points_are_checked(
    row: str, columns: tuple[str, ...], message: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "points.csv"
    path.write_text(f"tokens,time_us\n{row}\n")
    with pytest.raises(ValueError, match=message):
        read_points(path, columns)
