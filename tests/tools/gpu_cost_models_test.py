import pathlib

import numpy as np
import pytest

from jserve_sched import features
from jserve_sched.bucket_strategies import PowersOfTwo
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

TABLES = ("rtx4090-llama3.1-8b-table", "rtxpro6000-llama3.1-8b-table")


@pytest.fixture(scope="module", params=TABLES)
def table(request: pytest.FixtureRequest) -> TableCost:
    cost = gpu_cost_model(request.param)
    assert isinstance(cost, TableCost)
    return cost


@pytest.mark.parametrize("name", GPU_COST_MODELS)
def test_every_name_gives_a_model_of_that_name(name: str) -> None:
    assert gpu_cost_model(name).name == name


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'gtx1' is unknown; known: .*rtx4090"):
        gpu_cost_model("gtx1")


def test_limits_are_those_of_the_card(table: TableCost) -> None:
    closed = CLOSED_FORMS[table.name.removesuffix("-table")]
    for limit in (
        "num_kv_tokens",
        "page_size",
        "max_num_seqs",
        "max_num_batched_tokens",
    ):
        assert getattr(table, limit) == getattr(closed, limit)


def test_grid_points_come_back(table: TableCost) -> None:
    folder = PROFILES / table.name.split("-")[0]
    rows = read_points(folder / "attention.csv", ATTENTION_COLUMNS)
    mixed = rows[(rows[:, 0] > 0) & (rows[:, 2] > 0)]
    found = table.times.mixed.at(*mixed[:, :4].T)
    np.testing.assert_allclose(found, mixed[:, 4] * 32e-6)


def test_points_between_the_grid_are_near() -> None:
    rows = read_points(
        PROFILES / "rtxpro6000" / "attention_between.csv", ATTENTION_COLUMNS
    )
    mixed = rows[(rows[:, 0] > 0) & (rows[:, 2] > 0)]
    times = read_kernel_times(PROFILES / "rtxpro6000", num_layers=32)
    errors = times.mixed.at(*mixed[:, :4].T) / (mixed[:, 4] * 32e-6) - 1.0
    assert len(errors) > 300
    assert np.median(np.abs(errors)) < 0.02
    assert abs(errors.mean()) < 0.02


def test_tables_and_closed_form_tell_the_same_story(table: TableCost) -> None:
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
    buckets = PowersOfTwo().table(
        max_num_seqs=64, max_num_batched_tokens=2048, block_tokens=32
    )
    for num_rows, num_blocks in ((3, 0), (5, 3), (33, 17), (40, 40)):
        exact = features.uniform_features(
            Bucket(num_rows, num_blocks, 32),
            decode_pages=20,
            block_pages=20,
            page_size=16,
        )
        bucket = buckets.fit(num_rows, num_blocks)
        padded = features.without_padding(
            exact, used_rows=bucket.num_rows, used_blocks=bucket.num_blocks
        )
        alone_s, padded_s = table.step_s(np.array([exact, padded]), 32)
        assert 0 < alone_s <= padded_s


def test_points_are_checked(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("tokens,time_us\n1,2.5\n")
    assert read_points(path, ("tokens", "time_us")).tolist() == [[1, 2.5]]
    with pytest.raises(ValueError, match=r"lacks \['layers'\]"):
        read_points(path, ("layers",))
    path.write_text("tokens,time_us\n1,fast\n")
    with pytest.raises(ValueError, match=r"points\.csv: .*'fast'"):
        read_points(path, ("tokens", "time_us"))
    path.write_text("tokens,time_us\n1\n")
    with pytest.raises(ValueError, match=r"points\.csv: .* empty"):
        read_points(path, ("tokens", "time_us"))
