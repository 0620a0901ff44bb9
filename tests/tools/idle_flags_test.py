import pytest

from jserve_tools.idle_flags import check_flags
from jserve_tools.loads import Replay


def check(*given: str, mode: str = "replay") -> None:
    check_flags(given, mode=mode, url="", is_launched=False)


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
