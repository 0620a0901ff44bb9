"""The claims of benchmarks/roofline_costs that must not be lost."""

import json

import pytest

from benchmarks.roofline_costs import errors
from tests import ROOT


@pytest.mark.parametrize("card", errors.CARDS)
def test_every_kind_of_step_is_priced_as_measured(card: str) -> None:
    found = errors.report_of(card)
    for name, share in found["fitted_shares"].items():
        assert found["stated_shares"][name] == pytest.approx(share, rel=0.02)
    of_kinds = found["errors"][errors.AS_SIMULATED]
    assert len(of_kinds) == 15
    for one in of_kinds.values():
        assert one["mean_absolute"] <= errors.TARGET
    # The committed table is of these costs.
    path = ROOT / "benchmarks/roofline_costs/errors.json"
    committed = json.loads(path.read_text())["cards"][card]["errors"]
    for kind, one in committed[errors.AS_SIMULATED].items():
        assert one == pytest.approx(of_kinds[kind], abs=1e-5)
