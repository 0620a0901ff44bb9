import pytest

from jserve_tools.idle_flags import check_flags
from jserve_tools.loads import Replay


def check(*given: str, mode: str = "replay", ignores_eos: bool = True) -> None:
    check_flags(given, mode=mode, url="", is_launched=False, ignores_eos=ignores_eos)


def test_lengths_are_guessed_where_answers_may_end() -> None:
    check("length_estimator", ignores_eos=False)
    with pytest.raises(ValueError, match=r"no length to guess: .* --length_estimator$"):
        check("length_estimator")
    with pytest.raises(ValueError, match=r"no trace: .* --declared_max_tokens$"):
        check("declared_max_tokens", mode="closed", ignores_eos=False)


def test_what_comes_all_at_once_has_no_rate() -> None:
    check("one_shot", "trace", "service_classes", "length_scale")
    with pytest.raises(ValueError, match=r"no rate: leave out --qps, --capacity_s$"):
        check("one_shot", "qps", "capacity_s")
    with pytest.raises(ValueError, match=r"replays no trace: leave out --one_shot$"):
        check("one_shot", mode="closed")


def test_a_load_has_rates_or_comes_at_once() -> None:
    assert Replay(is_one_shot=True).num_runs == 1
    for many in ({}, {"is_one_shot": True, "qps": (1.0,)}):
        with pytest.raises(ValueError, match="give one of load, qps and one_shot"):
            Replay(**many)  # type: ignore[arg-type]
