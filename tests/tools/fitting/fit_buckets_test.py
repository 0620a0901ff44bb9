"""jserve-fit-buckets: what it fits to, what it writes, and when it refuses."""

import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import pytest

from jserve_sched.buckets.strategies import Explicit
from jserve_sched.buckets.table import BucketTable, table_from_json
from jserve_sched.steps import features
from jserve_sched.timing.predictor import StepSample
from jserve_sched.timing.table import TablePredictor
from jserve_tools.fitting.config import FitConfig
from jserve_tools.fitting.recorded_fits import fit
from tests import ROOT
from tests.programs import finish, start
from tests.tools.fitting.step_logs_test import HEADER

A100 = "a100-llama3-8b"
SAMPLES = ROOT / "benchmarks" / "buckets" / "samples.npz"
TABLE = BucketTable((4, 8, 16), (0, 1, 2, 4, 8))


def record(
    folder: pathlib.Path,
    *,
    earlier: Sequence[int] = (3,),
    later: int = 3,
    num_steps: int = 300,
    table: BucketTable = TABLE,
    leaves_work: int = 0,
    **others: Any,
) -> pathlib.Path:
    """Writes a log of steps of 13 rows and some blocks, others in the later half."""
    limits = {"max_num_seqs": 16, "max_num_batched_tokens": 272, "policy": "edf"}
    header = HEADER | limits | {"buckets": table.to_json()} | others
    lines: list[Any] = [header]
    for number in range(num_steps):
        is_early = 2 * number < num_steps
        blocks = earlier[number % len(earlier)] if is_early else later
        used = (13, blocks)
        bucket = table.fit(*used)
        edges = (bucket.num_rows, bucket.num_blocks)
        lines.append(
            [0.05 * number, *edges, *used, 1, 1, leaves_work, 0.02, 0.015, 0.022]
        )
    path = folder / "steps.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def config(path: pathlib.Path, **others: Any) -> FitConfig:
    return FitConfig(step_log=(path,), cost_model=A100, **others)


def test_the_file_that_is_written_is_one_that_a_server_loads(
    tmp_path: pathlib.Path,
) -> None:
    output = tmp_path / "folder" / "buckets.json"
    log = record(tmp_path, later=6)
    program = start(
        *("-m", "jserve_tools.fit_buckets", f"--step_log={log}"),
        *(f"--cost_model={A100}", "--prior_share=0", "--max_programs=8"),
        f"--output={output}",
    )
    _, report = finish(program)
    text = output.read_text()
    table = table_from_json(text)
    assert 13 in table.row_edges
    assert {3, 6} <= set(table.block_edges)
    # Loaded as a server loads it, with the same limits.
    served = Explicit(row_edges=table.row_edges, block_edges=table.block_edges).table(
        max_num_seqs=16, max_num_batched_tokens=272, block_tokens=32
    )
    assert served.num_programs <= 8
    file: dict[str, Any] = json.loads(text)
    assert file["fit"]["policies"] == ["edf"]
    assert file["fit"]["command"][0] == "jserve-fit-buckets"
    assert report["row_edges"] == list(table.row_edges)
    assert report["fit"] == file["fit"]


def times(base_s: float) -> dict[str, Any]:
    predictor = TablePredictor(TABLE)
    predictor.fit(
        StepSample(
            features.uniform_features(
                bucket, decode_pages=1, block_pages=1, page_size=128
            ),
            base_s + 1e-4 * bucket.num_tokens,
        )
        for bucket in TABLE.buckets
    )
    return predictor.to_json()


def test_without_a_cost_model_steps_are_priced_as_last_measured(
    tmp_path: pathlib.Path,
) -> None:
    folders = [tmp_path / name for name in ("old", "new", "cold")]
    known = (times(2e-3), times(1e-3), None)
    for folder in folders:
        folder.mkdir()
    logs = [
        record(folder, num_steps=100, step_times=one)
        for folder, one in zip(folders, known, strict=True)
    ]
    found = fit(FitConfig(step_log=tuple(logs), prior_share=0.0))["fit"]
    assert found["step_times"] == "the log's"
    # Steps of 13 rows and 3 blocks ran as 16 and 4; fitted they take 1 + 10.9 ms.
    assert found["expected_s"] == pytest.approx(11.9e-3)
    for one, message in (
        (None, "holds no step times"),
        (times(1e-3) | {"no_pages_s": [[1.0]]}, "the step times in the step log"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(FitConfig(step_log=(record(tmp_path, step_times=one),)))


def test_edges_fall_below_the_time_limits_of_the_classes(
    tmp_path: pathlib.Path,
) -> None:
    # 16 rows and 4 blocks take 15.4 ms, 3.2 ms a block: 6 blocks fit in the limit.
    wide = BucketTable((16,), (0, 4, 8))
    facts: Any = {"step_times": times(1e-3), "table": wide, "earlier": (4,), "later": 4}
    limits = [{"name": "chat", "tbt_s": 22e-3}, {"name": "batch", "tbt_s": None}]
    for classes, has_edge in ((limits, True), ([], False)):
        log = record(tmp_path, **facts, leaves_work=1, service_classes=classes)
        given: Any = {"prior_share": 0.0, "max_programs": 3}
        found = fit(FitConfig(step_log=(log,), **given))
        assert (6 in found["block_edges"]) == has_edge


def test_blocks_beyond_a_full_set_of_rows_count_as_the_most(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    wide = BucketTable((2, 16), (0, 4, 8, 12))
    log = record(tmp_path, table=wide, earlier=(12,), later=12)
    with caplog.at_level(logging.WARNING, logger="jserve"):
        found = fit(config(log))
    assert "up to 12 prefill blocks, more than the 8 that fit beside 16" in caplog.text
    assert found["block_edges"][-1] == 8


def test_a_profile_of_other_pages_is_refused(tmp_path: pathlib.Path) -> None:
    log, spec = record(tmp_path, page_size=64), f"table:{SAMPLES}"
    with pytest.raises(
        ValueError, match=r"\(32, 64\) in the step log, but \(32, 128\)"
    ):
        fit(FitConfig(step_log=(log,), cost_model=spec))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"step_log": ()}, "give step_log: "),
        ({"step_log": ("none",)}, "step_log=.none. is not a file"),
        ({"max_programs": 1}, "max_programs=1 is below 2"),
        ({"prior_share": 1.0}, "prior_share=1.0 is not in 0.0..0.99"),
        ({"output": "."}, "output=. is a folder"),
        ({}, "199 steps are too few to fit buckets to: at least 200"),
    ],
)
def test_mistakes_are_refused(
    given: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    log = record(tmp_path, num_steps=199)
    arguments = {"step_log": (log,), "output": tmp_path / "buckets.json", **given}
    paths = {
        "step_log": tuple(map(pathlib.Path, arguments["step_log"])),
        "output": pathlib.Path(arguments["output"]),
    }
    with pytest.raises((ValueError, OSError), match=message):
        fit(FitConfig(**arguments | paths))
