import numpy as np
import pytest

from jserve_tools.step_timer import repeat_spread, time_rounds


class Device:
    """Costs a second a step and more for higher ones; remembers the order."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.visited: list[int] = []

    def time_step(self, index: int) -> float:
        duration_s = 1.0 + index + 100.0 * (len(self.visited) < 10)  # cold at first
        self.now_s += duration_s
        self.visited.append(index)
        return duration_s


def time_on(device: Device, **options: object) -> np.ndarray:
    settings: dict[str, object] = {"rounds": 3, "warmup_rounds": 1}
    return time_rounds(
        device.time_step,
        10,
        rng=np.random.default_rng(0),
        clock_s=lambda: device.now_s,
        **(settings | options),  # type: ignore[arg-type]
    )


def test_every_round_visits_every_step_in_an_order_of_its_own() -> None:
    device = Device()
    duration_s = time_on(device)
    rounds = np.reshape(device.visited, (4, 10))
    assert all(sorted(one) == list(range(10)) for one in rounds.tolist())
    assert len({tuple(one) for one in rounds.tolist()}) == 4
    # The cold round is gone, and each time stands under its own step.
    np.testing.assert_array_equal(duration_s, [np.arange(1.0, 11.0)] * 3)


def test_time_runs_out_between_rounds_and_one_is_kept() -> None:
    assert time_on(Device(), warmup_rounds=0, rounds=50, max_s=1200.0).shape == (4, 10)
    assert time_on(Device(), max_s=0.0).shape == (1, 10)


def test_each_step_is_told_of() -> None:
    told: list[None] = []
    time_on(Device(), on_step=lambda: told.append(None))
    assert len(told) == 40


def test_the_spread_is_relative_and_heeds_no_outlier() -> None:
    repeats = np.array([[1.0, 10.0], [1.1, 10.0], [0.9, 10.0], [1.1, 10.0], [9.0, 9.0]])
    assert repeat_spread(repeats) == pytest.approx([0.0, 0.0], abs=0.1)
    assert repeat_spread(repeats[:3])[0] == pytest.approx(0.1)
