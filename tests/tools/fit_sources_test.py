import logging
import pathlib
from typing import Any

import numpy as np
import pytest

from jserve.step_recorder import StepRecorder
from jserve_sched import features
from jserve_sched.bucket_fitting import fit_buckets
from jserve_sched.buckets import BucketTable
from jserve_sched.predictor import StepSample
from jserve_sched.table_predictor import TablePredictor
from jserve_tools.fit_comparison import (
    MOST_FITTED,
    compare_strategies,
    strategies_table,
)
from jserve_tools.fit_sources import MIN_STEPS, FitSource, recorded_source
from jserve_tools.samples import Samples, write_samples
from jserve_tools.step_logs import RecordedStep

TABLE = BucketTable((2, 4, 8), (0, 1, 2, 4, 8), 32)
HEADER: dict[str, Any] = {
    "block_tokens": 32,
    "page_size": 128,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 264,
    "policy": "edf",
    "buckets": TABLE.to_json(),
    "service_classes": [],
}


def step_times(**others: Any) -> dict[str, Any]:
    """Times of a server whose steps take 1 ms and 0.1 ms a token."""
    table = TablePredictor(TABLE, max_pages_per_row=8)
    table.fit(
        StepSample(
            features.uniform_features(
                bucket, decode_pages=1, block_pages=1, page_size=128
            ),
            1e-3 + 1e-4 * bucket.num_tokens,
        )
        for bucket in TABLE.buckets
    )
    return table.to_json() | others


def record(
    path: pathlib.Path, *, num_steps: int = 300, times: Any = None, **others: Any
) -> pathlib.Path:
    """Records steps of 3 blocks and 5 rows, and in the later half some of 6 blocks."""
    recorder = StepRecorder(path, HEADER | {"step_times": times} | others, 2**20)
    for number in range(num_steps):
        blocks = 6 if number % 4 == 0 and 2 * number >= num_steps else 3
        recorder.append(
            RecordedStep(
                end_s=0.05 * number,
                num_rows=8,
                num_blocks=4 if blocks == 3 else 8,
                used_rows=5,
                used_blocks=blocks,
                decode_pages=1,
                block_pages=1,
                leaves_work=False,
                bucket_s=0.02,
                used_s=0.015,
                duration_s=0.022,
            )
        )
    recorder.close()
    return path


def source(folder: pathlib.Path, **others: Any) -> FitSource:
    return recorded_source([record(folder / "log", times=step_times(), **others)], None)


def test_recorded_steps_are_priced_by_what_the_server_measured(
    tmp_path: pathlib.Path,
) -> None:
    found = source(tmp_path)
    assert found.num_steps == 300
    assert found.limits == {
        **{"max_num_seqs": 8, "max_num_batched_tokens": 264, "block_tokens": 32}
    }
    assert found.earlier.blocks.tolist() == [3]
    assert found.later.blocks.tolist() == [3, 6]
    # 150 steps, 37 of them at numbers that four divides.
    assert found.later.weight.tolist() == [113.0, 37.0]
    assert found.facts["policies"] == ["edf"]
    assert found.facts["measured_over_predicted"] == pytest.approx(1.1)
    full = features.uniform_features(
        TABLE.fit(8, 4), decode_pages=1, block_pages=1, page_size=128
    )
    assert found.step_s(full[None])[0] == pytest.approx(1e-3 + 1e-4 * 136)


def test_edges_are_put_where_the_steps_are(tmp_path: pathlib.Path) -> None:
    found = source(tmp_path)
    table = fit_buckets(
        found.later,
        found.step_s,
        **found.limits,
        page_size=found.page_size,
        max_programs=8,
    )
    assert 5 in table.row_edges
    assert {3, 6} <= set(table.block_edges)


def test_strategies_are_compared_on_both_halves(tmp_path: pathlib.Path) -> None:
    found = source(tmp_path)
    rows = compare_strategies(
        found.earlier,
        found.later,
        found.step_s,
        limits=found.limits,
        page_size=found.page_size,
        max_programs=6,
        prior_share=0.0,
    )
    by_name = {
        row.bucket_strategy: row for row in rows if row.bucket_strategy != "fitted"
    }
    assert list(by_name) == ["pow2", "two_bit", "linear", "pad_limit"]
    # Steps of 5 rows and 3 blocks run as 8 and 4: 1 + 13.6 ms, where 1 + 10.1 do.
    assert by_name["pow2"].earlier.expected_s == pytest.approx(14.6e-3)
    assert by_name["pow2"].earlier.pad_share_time == pytest.approx(1 - 11.1 / 14.6)
    fitted = {row.num_programs: row for row in rows if row.bucket_strategy == "fitted"}
    for row in by_name.values():
        rivals = [one for num, one in fitted.items() if num <= row.num_programs]
        assert min(one.earlier.expected_s for one in rivals) <= row.earlier.expected_s
    assert 6 in fitted
    assert fitted[6].earlier.pad_share_time == pytest.approx(0.0, abs=1e-9)
    # It never saw 6 blocks, which come later.
    assert fitted[6].later.pad_share_time > 0.05
    lines = strategies_table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[2].split()[:4] == ["pow2", "15", "14.600", "23.97"]


def test_nothing_is_fitted_with_thousands_of_programs(tmp_path: pathlib.Path) -> None:
    found = source(tmp_path)
    limits = {"max_num_seqs": 64, "max_num_batched_tokens": 2048, "block_tokens": 32}
    rows = compare_strategies(
        found.earlier,
        found.later,
        lambda matrix: 1e-3 + 1e-5 * matrix[:, features.NUM_BLOCKS],
        limits=limits,
        page_size=found.page_size,
        max_programs=6,
        prior_share=0.0,
    )
    (linear,) = [row for row in rows if row.bucket_strategy == "linear"]
    fitted = [row for row in rows if row.bucket_strategy == "fitted"]
    assert linear.num_programs > MOST_FITTED
    assert len(fitted) == 4  # with as many as the three others have, and with 6
    assert max(row.num_programs for row in fitted) <= MOST_FITTED
    notes = strategies_table(rows).splitlines()[2 + len(rows) :]
    assert notes == [
        f"no edges are fitted with linear's {linear.num_programs} programs, which are "
        "over 200"
    ]


def test_steps_of_more_blocks_than_are_fitted_count_as_the_most(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Beside 8 rows 168 tokens hold 5 blocks; a table of one's own had 8 beside few.
    limits = {"max_num_seqs": 8, "max_num_batched_tokens": 168}
    with caplog.at_level(logging.WARNING, "jserve"):
        found = source(tmp_path, **limits)
    assert found.later.blocks.tolist() == [3, 5]
    assert found.later.last_block.tolist() == [3, 5]
    (line,) = caplog.messages
    assert line.startswith("37 of 300 steps want up to 6 prefill blocks, more than the")
    table = fit_buckets(
        found.later,
        found.step_s,
        **found.limits,
        page_size=found.page_size,
        max_programs=8,
    )
    assert table.max_blocks == 5


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (None, "holds no step times, which a server adds once it is warm: give cost"),
        ({}, "the step times in the step log: 'buckets'"),
        (step_times(base_s=[[1.0]]), "do not agree with their own buckets"),
        (step_times(base_s=np.zeros((4, 5)).tolist()), "a step time is 0"),
    ],
)
def test_step_times_that_are_no_good_are_told(
    times: Any, message: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ValueError, match=message):
        recorded_source([record(tmp_path / "log", times=times)], None)


def test_too_few_steps_are_told_with_the_least(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=f"199 steps .* at least {MIN_STEPS}"):
        source(tmp_path, num_steps=199)


def test_a_gpu_may_price_recorded_steps(tmp_path: pathlib.Path) -> None:
    path = record(tmp_path / "log")
    found = recorded_source([path], "a100-llama3-8b")
    assert found.facts["step_times"] == "a100-llama3-8b"
    full = features.uniform_features(
        TABLE.fit(8, 8), decode_pages=1, block_pages=1, page_size=128
    )
    assert found.step_s(full[None])[0] > 0.0107


def test_a_profile_of_another_engine_is_refused(tmp_path: pathlib.Path) -> None:
    shapes = BucketTable((2, 8), (0, 8), 32)
    rows = np.stack(
        [
            features.uniform_features(
                bucket, decode_pages=1, block_pages=1, page_size=64
            )
            for bucket in shapes.buckets
        ]
    )
    write_samples(
        tmp_path / "samples.npz",
        Samples(
            features=rows,
            duration_s=np.full((2, len(rows)), 0.01),
            split=np.zeros(len(rows), np.int8),
            timed_features=rows,
            timed_s=np.full(len(rows), 0.01),
            facts={
                "buckets": shapes.to_json(),
                "num_kv_tokens": 4096,
                "max_model_len": 1024,
                "engine": {
                    "page_size": 64,
                    "max_num_seqs": 8,
                    "max_num_batched_tokens": 264,
                },
            },
        ),
    )
    spec = f"table:{tmp_path / 'samples.npz'}"
    with pytest.raises(ValueError, match=r"page_size=128, but .* measured with 64"):
        recorded_source([record(tmp_path / "log")], spec)
