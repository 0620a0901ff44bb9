"""The claims of benchmarks/simulator_truth that must not be lost."""

import numpy as np
import pytest

from benchmarks.simulator_truth.engine import AsItRan
from benchmarks.simulator_truth.measured_runs import (
    RUNS,
    TWO_GPUS,
    measured,
    measured_figures,
    roofline_of,
    simulated_run,
    trace_rows,
)
from jserve_sched.steps.features import NUM_FEATURES
from jserve_tools.gpu_profiles.machines import (
    PROFILES,
    gpu_cost_model,
    read_points,
)

PUBLISHED = {
    "rtx4090": (65.4566, 183.567),
    "rtxpro6000": (7.0972, 65.926),
    "rtxpro6000x2": (36.9052, 159.653),
}


@pytest.mark.parametrize("card", RUNS)
def test_measured_figures_are_those_published(card: str) -> None:
    figures = measured_figures(card)
    found = figures["ttft_mean_s"], figures["makespan_s"]
    assert found == pytest.approx(PUBLISHED[card], abs=1e-3)
    path = PROFILES / card / "measured_requests.csv"
    lengths = read_points(path, ("prompt_tokens", "output_tokens")).tolist()
    rows = trace_rows(card)
    assert lengths == [[row.prompt_tokens, row.output_tokens] for row in rows]


def test_the_rtx4090_takes_as_long_as_measured() -> None:
    model = gpu_cost_model("rtx4090-llama3.1-8b-table")
    figures, result = simulated_run(trace_rows("rtx4090"), model)
    truth = measured_figures("rtx4090")
    for name, most in (("ttft_mean_s", 0.05), ("tpot_mean_ms", 0.03)):
        assert figures[name] == pytest.approx(truth[name], rel=most)
    assert figures["makespan_s"] == pytest.approx(truth["makespan_s"], rel=0.03)
    assert all(outcome.failure is None for outcome in result.outcomes)
    assert result.counters.num_preemptions > 100  # the run is about KV pressure
    assert result.counters.prefix_hit_tokens == 0  # requests share no prompt
    _, queued_s, first_s, _ = measured("rtx4090")
    found_s = np.array([one.ttft_s for one in result.outcomes], np.float64)
    assert np.median(np.abs(found_s - (first_s - queued_s))) < 1.0  # of a mean of 65 s


def test_two_gpus_start_requests_when_measured_with_their_all_reduces() -> None:
    # There are slots for all of these, and later ones would not change their TTFT.
    count = 64
    _, queued_s, first_s, _ = measured(TWO_GPUS)[:, :count]
    found = {}
    for name, link in (("with", {}), ("without", {"link": 1e18, "link_s": 0.0})):
        model = roofline_of(TWO_GPUS, **link)
        figures, _ = simulated_run(trace_rows(TWO_GPUS)[:count], model)
        found[name] = figures["ttft_mean_s"] / np.mean(first_s - queued_s)
    assert abs(found["with"] - 1) < 0.1
    assert found["without"] < 0.6


def test_a_machine_is_as_slow_as_the_nearest_step_of_a_replay() -> None:
    ran = AsItRan(between_s=np.array([1.0]), slowness=np.array([2.0, 3.0]))
    row = np.zeros(NUM_FEATURES)
    found = [ran.drawn((0,))(0.1, row, now_s, 5) for now_s in (0.0, 0.9, 1.1, 9.0)]
    assert found == pytest.approx([0.2, 0.2, 0.3, 0.3])
