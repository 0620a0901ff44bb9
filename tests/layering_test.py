"""Imports go down only, and `jserve_sched` needs nothing but NumPy and SciPy."""

import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import jserve_sched

ROOT = pathlib.Path(__file__).parent.parent


def test_sched_imports_the_standard_library_numpy_and_scipy_only() -> None:
    names = [
        module.name
        for module in pkgutil.walk_packages(jserve_sched.__path__, "jserve_sched.")
    ]
    assert "jserve_sched.policies.in_order" in names
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "known = set(sys.stdlib_module_names) | {'numpy', 'scipy', 'jserve_sched'}\n"
        "known.add('cython_runtime')  # NumPy's random numbers bring it\n"
        "found = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(name for name in found - known\n"
        "             if not name.startswith(('_', 'sitecustomize'))))\n"
    )
    path = str(ROOT / "sched")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("folder", "banned"),
    [
        ("sched/jserve_sched", ("jserve", "jserve_models", "jserve_tools", "jax")),
        ("models/jserve_models", ("jserve", "jserve_sched", "jserve_tools")),
        ("jserve", ("jserve_tools",)),
    ],
)
def test_imports_go_down_only(folder: str, banned: tuple[str, ...]) -> None:
    pattern = re.compile(
        rf"^\s*(?:from|import) ({'|'.join(banned)})(?:\.|\s|$)", re.MULTILINE
    )
    found = {
        str(path.relative_to(ROOT)): match.group(0).strip()
        for path in (ROOT / folder).rglob("*.py")
        if (match := pattern.search(path.read_text()))
    }
    assert found == {}
