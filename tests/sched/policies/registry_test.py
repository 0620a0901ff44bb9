"""Policies by name, and classes of the user's own."""

import pathlib
import sys
import time

import pytest

from jserve_sched.policies.annealing.policy import SearchLimit
from jserve_sched.policies.registry import make_policy, policy_file

MODULE = """
import dataclasses
from jserve_sched.planning import PlanBuilder

@dataclasses.dataclass(kw_only=True)
class Own:
    size: int = 1
    limit: object = None

    def plan(self, view):
        return PlanBuilder(view).build()

class Bare:
    def plan(self, view):
        return None

class Needy(Bare):
    def __init__(self, engine):
        self.engine = engine

class Other:
    pass
"""


@pytest.fixture(autouse=True)
def module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A module in the current folder, which Python does not search."""
    path = tmp_path / "own_policies.py"
    path.write_text(MODULE)
    (tmp_path / "broken.py").write_text("import no_such_library")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    for name in ("own_policies", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return path


def test_a_class_of_the_users_own_is_made_from_a_spec(module: pathlib.Path) -> None:
    limit = SearchLimit(time.monotonic, 1.0)
    policy = make_policy("own_policies.Own:size=3", limit=limit)
    assert type(policy).__name__ == "Own"
    assert (policy.size, policy.limit) == (3, limit)  # type: ignore[attr-defined]
    assert make_policy("own_policies.Own") is not make_policy("own_policies.Own")
    assert type(make_policy("own_policies.Bare")).__name__ == "Bare"
    assert policy_file("own_policies.Bare:") == module
    assert policy_file("fcfs:chunk_tokens=9") is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lifo", "policy 'lifo' is unknown; known: .*'fcfs'.*'sliding'"),
        (
            "nowhere.Own",
            "'nowhere.Own': 'nowhere' cannot .*: No module named",
        ),
        ("own_policies.deep.Own", "No module named 'own_policies.deep'"),
        ("own_policies.Owl", "own_policies has no class 'Owl'"),
        ("own_policies.Other", "no class 'Other' with a method plan"),
        ("own_policies.dataclasses", "no class .* with a method plan"),
        ("own_policies.Own:length=3", r"no option 'length=3'; .*\['size=...'\]"),
        ("own_policies.Own:size=x", "size=x is not a number"),
        ("own_policies.Bare:size=3", r"no option 'size=3'; options are \[\]"),
        ("own_policies.Needy", "cannot be made: .*'engine'"),
        ("broken.Own", "'broken' cannot be imported, .*no_such_library"),
        (".Own", "'.Own': '' cannot be imported"),
    ],
)
def test_other_names_are_refused_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        make_policy(spec)
    assert "\n" not in str(refusal.value)
