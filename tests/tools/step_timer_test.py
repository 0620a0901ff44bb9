import numpy as np

from jserve_tools.step_timer import time_rounds


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


def time_on(
    device: Device,
    *,
    rounds: int = 3,
    warmup_rounds: int = 1,
    max_s: float = float("inf"),
) -> np.ndarray:
    return time_rounds(
        device.time_step,
        10,
        rounds=rounds,
        warmup_rounds=warmup_rounds,
        rng=np.random.default_rng(0),
        max_s=max_s,
        clock_s=lambda: device.now_s,
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
