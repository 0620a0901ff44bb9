"""The study of SlidingServe: settings for every row, and ratios beside the paper's."""

import json

from benchmarks.slidingserve import paper, study
from tests import ROOT


def test_every_tuned_row_has_settings() -> None:
    path = ROOT / "benchmarks/slidingserve/settings.json"
    chosen = json.loads(path.read_text())["choices"]
    main = [name for name in study.ROWS if name not in study._ADDED]
    wanted = [
        *study.cases(main, paper.WORKLOADS),
        *study.cases(study._ADDED, [paper.ABLATION_WORKLOAD]),
    ]
    assert {(one["shape"], one["workload"], one["row"]) for one in chosen} == {
        case for case in wanted if study.ROWS[case[2]].is_tuned
    }
    assert {one["limit_tokens"] for one in chosen} <= set(study.LIMITS_TOKENS)
    for one in chosen:
        assert one["options"] in study.ROWS[one["row"]].options


def test_ratios_are_paired_by_seed() -> None:
    qps = {"edf": [2.0, 0.0], "qoserve": [2.0, 4.0], "sliding": [3.0, 4.0]}
    found = {("buckets", "mixed_v1", name): some for name, some in qps.items()}
    ratios = study.goodput_tables(found, "buckets")["ratios-buckets"]
    assert ratios.splitlines()[2:] == [
        "| sliding / qoserve | 1.25 (1.00 to 1.50); 1.15 / 1.19 |"
    ]
