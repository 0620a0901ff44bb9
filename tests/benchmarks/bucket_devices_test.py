"""The comparison of bucket strategies on devices: its committed results."""

import json

from benchmarks.buckets.devices import compare
from tests import ROOT

FOLDER = ROOT / "benchmarks" / "buckets" / "devices"


def test_the_committed_table_is_that_of_the_committed_runs() -> None:
    runs = json.loads((FOLDER / "report.json").read_text())["runs"]
    assert f"{compare.table(runs)}\n" == (FOLDER / "table.md").read_text()
    assert len(runs) == 2 * 2 * 2 * 4 * 3
