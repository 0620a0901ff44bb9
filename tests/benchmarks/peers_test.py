"""How measurements of the peers become ratios."""

import pytest

from benchmarks.peers.compare import summarise


def measurement(
    system: str, repeat: int, speed: float, *, num_clients: int = 4, ttft_s: float = 1.0
) -> dict:
    return {
        **{"system": system, "repeat": repeat, "num_clients": num_clients},
        **{"prompt_tokens": 1024, "output_tokens": 128},
        **{"output_tokens_per_s": speed, "ttft_s": ttft_s},
    }


def test_a_ratio_is_taken_within_a_repeat() -> None:
    ours = [measurement("jserve", i, speed) for i, speed in enumerate((100, 400, 300))]
    peer = [measurement("vllm", i, speed) for i, speed in enumerate((50, 100))]
    _, row = summarise([*ours, *peer])
    assert row == {
        **{"what": "1024/128, 4 clients", "system": "vllm"},
        **{"output_tokens_per_s": 75, "ratio": 3, "ratio_range": [2, 4]},
    }


def test_a_shorter_time_to_the_first_token_is_a_ratio_over_one() -> None:
    *_, row = summarise(
        [
            measurement("jserve", 0, 100, num_clients=1, ttft_s=0.2),
            measurement("vllm", 0, 100, num_clients=1, ttft_s=0.5),
        ]
    )
    assert row["what"] == "TTFT of 1024 tokens"
    assert row["ttft_s"] == pytest.approx(0.5)
    assert row["ratio"] == pytest.approx(2.5)
