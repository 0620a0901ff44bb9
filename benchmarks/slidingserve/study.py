"""SlidingServe's experiments in the simulator, beside the paper's numbers.

  python -m benchmarks.slidingserve.study                # under an hour
  python -m benchmarks.slidingserve.study --num_requests=3000 --num_seeds=5
  python -m benchmarks.slidingserve.study --stages=tune  # prints settings.json

The stages are goodput (the paper's Fig. 4), overload (Fig. 5) and ablation (Table 4),
each without padding (continuous) and with buckets. Prints tables, and writes
overload.png to out/slidingserve. An interrupted call goes on where it stopped.
"""

import dataclasses
import itertools
import json
import pathlib
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from absl import flags

from benchmarks.slidingserve import paper
from benchmarks.study import Run, draw, grid, interval, mean, print_tables, simulate
from jserve.program import run_program
from jserve_sched.outcomes import wilson_interval

LIMITS_TOKENS = (160, 192, 224, 256, 320, 384, 512, 768, 1024, 2176)
SHAPES = {"continuous": "none", "buckets": "pow2"}
_FULL_STEP_TOKENS = 2176  # 2,048 prompt tokens beside all 128 slots
_SETTINGS = pathlib.Path(__file__).parent / "settings.json"
_FOLDER = pathlib.Path("out/slidingserve")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One scheduler of the comparison, at its best.

    Attributes:
      policy: Policy with its fixed options.
      options: Further options to tune, as alternatives.
      predictor: Predictor of step times.
      is_tuned: Whether its step limit and options are searched; otherwise it has full
        steps and the policy's defaults.
      shapes: Shapes on which it is compared.
    """

    policy: str
    options: Sequence[str] = ("",)
    predictor: str = "oracle"
    is_tuned: bool = True
    shapes: Sequence[str] = tuple(SHAPES)


_ALPHA = tuple(f":alpha={alpha}" for alpha in (0.2, 0.5, 1.0))
_WORK = tuple(f":alpha_s_per_token={weight}" for weight in (0.0002, 0.0, 0.001, 0.008))
_PUBLISHED = "sliding:published=on"
PUBLISHED, LINEAR = "sliding, as published", "sliding, linear predictor"
ROWS = {
    "fcfs": Row(policy="fcfs", shapes=("buckets",)),
    "sjf": Row(policy="sjf", shapes=("buckets",)),
    "edf": Row(policy="edf"),
    "qoserve": Row(policy="qoserve", options=_WORK),
    PUBLISHED: Row(policy=_PUBLISHED, options=_ALPHA),
    "sliding": Row(policy="sliding", is_tuned=False),
    LINEAR: Row(
        policy="sliding", predictor="linear", is_tuned=False, shapes=("continuous",)
    ),
    "+ SlidingChunker": Row(policy=f"{_PUBLISHED}:sorter=off:constructor=off"),
    "+ MLPS": Row(policy=f"{_PUBLISHED}:constructor=off", options=_ALPHA),
}
_ADDED = ("+ SlidingChunker", "+ MLPS")
_ABLATION = ("edf", *_ADDED, PUBLISHED, "sliding")
_RATIOS = (
    *(("sliding", "qoserve"), ("sliding", "edf"), ("qoserve", "edf")),
    *(("sliding", PUBLISHED), (PUBLISHED, "qoserve"), (LINEAR, "sliding")),
)
Case = tuple[str, str, str]  # shape, workload, row


def cases(rows: Iterable[str], workloads: Sequence[str]) -> list[Case]:
    """Returns what is compared."""
    every = itertools.product(SHAPES, workloads, rows)
    return [one for one in every if one[0] in ROWS[one[2]].shapes]


def measure(todo: Mapping[Case, Mapping[str, Any]]) -> dict[Case, list[Run]]:
    """Returns the runs of each case, at its tuned settings; values are more flags."""
    chosen = {
        (one["shape"], one["workload"], one["row"]): one
        for one in json.loads(_SETTINGS.read_text())["choices"]
    }
    calls = []
    for case, more in todo.items():
        shape, workload, name = case
        row, limit_tokens, options = ROWS[name], _FULL_STEP_TOKENS, ""
        if row.is_tuned:
            if case not in chosen:
                raise ValueError(f"no settings for {', '.join(case)}: --stages=tune")
            limit_tokens = chosen[case]["limit_tokens"]
            options = chosen[case]["options"]
        calls.append(
            {
                **machine(shape, workload, limit_tokens),
                **{"policies": row.policy + options, "predictor": row.predictor},
                **{"seed": 1, "num_seeds": flags.FLAGS.num_seeds, **more},
            }
        )
    return dict(zip(todo, simulate(_FOLDER, calls), strict=True))


def machine(shape: str, workload: str, limit_tokens: int) -> dict[str, Any]:
    """Returns the flags of the machine and its load."""
    return {
        **{"workload": workload, "num_requests": flags.FLAGS.num_requests},
        **{"bucket_strategies": SHAPES[shape], "max_num_batched_tokens": limit_tokens},
        **{"max_num_seqs": 128, "max_model_len": 65_536},
    }


def search(todo: Sequence[Case]) -> dict[Case, list[float]]:
    """Returns the goodput of each case and seed, requests per second."""
    found = measure({case: {"goodput": True} for case in todo})
    return {
        case: [one["qps"] for one in runs[0]["goodput_seeds"]]
        for case, runs in found.items()
    }


def tune() -> None:
    """Prints the best settings of each row, on a seed that no result uses."""
    choices = []
    todo = [
        *cases((name for name in ROWS if name not in _ADDED), flags.FLAGS.workloads),
        *cases(_ADDED, [paper.ABLATION_WORKLOAD]),
    ]
    for shape, workload, name in todo:
        row = ROWS[name]
        if not row.is_tuned:
            continue
        policies = {row.policy + one: one for one in row.options}
        calls = [
            {
                **machine(shape, workload, limit_tokens),
                **{"policies": [*policies], "goodput": True, "seed": 0},
            }
            for limit_tokens in LIMITS_TOKENS
        ]
        runs = itertools.chain.from_iterable(simulate(_FOLDER, calls))
        best = max(runs, key=lambda run: cast(float, run["goodput_qps"]))
        choice = {"shape": shape, "workload": workload, "row": name}
        choice |= {"limit_tokens": best["max_num_batched_tokens"]}
        choice |= {"options": policies[best["policy"]], "qps": best["goodput_qps"]}
        choices.append(json.dumps(choice))
    print('{"choices": [\n  ' + ",\n  ".join(choices) + "\n]}")


def goodput_tables(found: Mapping[Case, Sequence[float]], shape: str) -> dict[str, str]:
    """Returns goodputs, and ratios paired by seed, beside the paper's."""
    cells: dict[tuple[str, str], str] = {}
    ratios: dict[tuple[str, str], str] = {}
    for (_, workload, name), qps in found.items():
        middle, low, high = interval(qps)
        cells[name, workload] = f"{middle:.2f} ({max(low, 0.0):.2f} to {high:.2f})"
        for upper, lower in _RATIOS:
            base = found.get((shape, workload, lower))
            if name != upper or base is None or min(base) <= 0:
                continue
            ratio = [ours / theirs for ours, theirs in zip(qps, base, strict=True)]
            text = (
                f"{statistics.fmean(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})"
            )
            if {upper, lower} <= set(paper.POLICIES):
                text += "; " + " / ".join(
                    f"{paper.goodput_ratio(workload, upper, lower, model):.2f}"
                    for model in (paper.QWEN, paper.LLAMA)
                )
            ratios[f"{upper} / {lower}", workload] = text
    workloads = dict.fromkeys(workload for _, workload, _ in found)
    for workload, model, policy in itertools.product(
        workloads, (paper.QWEN, paper.LLAMA), paper.POLICIES
    ):
        published_qps = paper.goodput_qps(workload, policy, model)
        cells[f"*paper, {model}: {policy}*", workload] = f"{published_qps:.2f}"
    return {
        f"goodput-{shape}": grid("requests/s", cells),
        f"ratios-{shape}": grid("ratio of goodputs", ratios),
    }


def percent(runs: Sequence[Run]) -> tuple[float, float, float]:
    """Returns violations in % over all seeds, and their 95 % interval."""
    num_requests = sum(run["num_requests"] for run in runs)
    num_late = sum(run["num_violations"] for run in runs)
    low, high = wilson_interval(num_late, num_requests)
    return 100 * num_late / num_requests, 100 * low, 100 * high


def scales(workloads: Sequence[str]) -> dict[tuple[str, str], float]:
    """Returns the factors on the paper's loads, by shape and workload.

    With them both machines are equally far above their goodputs of `sliding`.
    """
    found = search(cases(["sliding"], workloads))
    return {
        case[:2]: statistics.fmean(qps) / paper.goodput_qps(case[1], "sliding")
        for case, qps in found.items()
    }


def overload() -> None:
    """Prints violations and TTFT above goodput, and draws the violations."""
    scale = scales(flags.FLAGS.workloads)
    todo = cases(paper.POLICIES, flags.FLAGS.workloads)
    rates = {
        case: [float(f"{qps * scale[case[:2]]:.4g}") for qps in loads]
        for case in todo
        for loads in [paper.OVERLOAD_QPS[case[1]]]
    }
    found = measure({case: {"qps": qps} for case, qps in rates.items()})
    values = []
    tables: dict[str, dict[tuple[str, str], str]] = {}
    for (shape, workload, name), runs in found.items():
        for place, qps in enumerate(rates[shape, workload, name]):
            some = [run for run in runs if run["qps"] == qps]
            share, low, high = percent(some)
            of_paper = paper.OVERLOAD_PERCENT[workload][name][place]
            load = paper.OVERLOAD_QPS[workload][place]
            load /= paper.goodput_qps(workload, "sliding")
            row = f"{workload} {qps:.2f}/s ({load:.2f} x)"
            ttft = [f"{mean(some, 'ttft_s', key):.1f}" for key in ("p50", "p90", "p99")]
            text = f"{share:.1f} ({low:.1f} to {high:.1f}) / {of_paper}"
            tables.setdefault(f"overload-{shape}", {})[row, name] = text
            tables.setdefault(f"ttft-{shape}", {})[row, name] = ", ".join(ttft)
            labels = {"shape": shape, "workload": workload, "load": load, "row": name}
            ours = {"percent": share, "low": low, "high": high, "by": "ours"}
            values += [labels | ours, labels | {"percent": of_paper, "by": "paper"}]
    print_tables(
        {name: grid("violations %, TTFT s", one) for name, one in tables.items()}
    )
    axes = {"x": "load", "y": "percent", "colour": "row", "dash": "by"}
    draw(_FOLDER / "overload.png", values, **axes, column="workload", row="shape")


def ablation() -> None:
    """Prints goodput and violations from `edf` to `sliding` (Table 4)."""
    workloads = [paper.ABLATION_WORKLOAD]
    todo = cases(_ABLATION, workloads)
    scale = scales(workloads)
    rates = {
        case: {"qps": f"{paper.ABLATION_LOAD_QPS * scale[case[:2]]:.4g}"}
        for case in todo
    }
    goodputs, found = search(todo), measure(rates)
    cells = {}
    for place, case in enumerate(todo):
        row = f"{case[2]}, {case[0]}, {rates[case]['qps']}/s"
        cells[row, "goodput"] = f"{statistics.fmean(goodputs[case]):.2f}"
        cells[row, "violations %"] = "{:.1f} ({:.1f} to {:.1f})".format(
            *percent(found[case])
        )
        place %= len(_ABLATION)
        if place < len(paper.ABLATION_QPS):  # the last row is not in the paper
            cells[row, "paper"] = f"{paper.ABLATION_QPS[place]:.2f}"
            cells[row, "paper's %, 3/s"] = f"{paper.ABLATION_PERCENT[place]:g}"
    print_tables({"ablation": grid("", cells)})


def main(argv: Sequence[str]) -> None:
    """Runs the stages."""
    del argv
    if "tune" in flags.FLAGS.stages:
        tune()
    if "goodput" in flags.FLAGS.stages:
        rows = [name for name in ROWS if name not in _ADDED]
        found = search(cases(rows, flags.FLAGS.workloads))
        for shape in SHAPES:
            of_shape = {case: qps for case, qps in found.items() if case[0] == shape}
            print_tables(goodput_tables(of_shape, shape))
    for stage in (overload, ablation):
        if stage.__name__ in flags.FLAGS.stages:
            stage()


if __name__ == "__main__":
    flags.DEFINE_list("stages", ["goodput", "overload", "ablation"], "What to run.")
    flags.DEFINE_list("workloads", [*paper.WORKLOADS], "Workloads.")
    flags.DEFINE_integer("num_requests", 1000, "Requests of a run.")
    flags.DEFINE_integer("num_seeds", 2, "Seeds, from 1 on; 0 is for tuning.")
    run_program(sys.modules[__name__])
