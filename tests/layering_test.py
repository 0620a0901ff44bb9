"""Imports go down only, between packages and inside them.

`ROOMS` lists each package's folders and files from the ground up. A room may import
what stands before it; inside a room, files may not import each other in a circle.
"""

import ast
import graphlib
import pathlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

import jserve_sched
from tests import ROOT

PACKAGES = {
    "jserve_sched": "sched/jserve_sched",
    "jserve_models": "models/jserve_models",
    "jserve": "jserve",
    "jserve_tools": "tools/jserve_tools",
}
MAY_IMPORT: dict[str, set[str]] = {
    "jserve_sched": set(),
    "jserve_models": set(),
    "jserve": {"jserve_sched", "jserve_models"},
    "jserve_tools": {"jserve_sched", "jserve_models", "jserve"},
}
ROOMS = {
    "jserve_sched": (
        *("options", "requests", "buckets", "steps", "memory", "outcomes"),
        *("timing", "fitting", "planning", "policies", "admission", "routing"),
        *("scheduler", "simulation"),
    ),
    "jserve": (
        *("config", "server_config", "flags", "progress", "program", "text"),
        *("records", "timing", "compiled_annealing", "engine", "server", "build"),
        *("following", "cli", "__main__"),
    ),
    "jserve_tools": (
        *("reporting", "load", "measuring", "training", "gpu_profiles", "fitting"),
        *("simulating", "bench", "convert", "simulate", "fit_buckets", "profile_steps"),
        *("train_model", "train_predictor"),
    ),
}


def imports(path: pathlib.Path, package: str) -> Iterator[str]:
    """Yields the modules and names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upward_imports(folder: pathlib.Path, package: str) -> list[str]:
    """Returns the imports of a package's files from a room above their own."""
    rooms = ROOMS[package]
    found = []
    for path in sorted(folder.rglob("*.py")):
        room = path.relative_to(folder).with_suffix("").parts[0]
        if room == "__init__":
            continue
        for name in imports(path, package):
            first, _, rest = name.partition(".")
            if first == package and rest:
                other = rest.partition(".")[0]
                if other in rooms and rooms.index(other) > rooms.index(room):
                    found.append(f"{room} imports {name}")
            elif first in PACKAGES and first not in MAY_IMPORT[package] | {package}:
                found.append(f"{package} imports {name}")
    return found


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


@pytest.mark.parametrize("package", sorted(ROOMS))
def test_imports_go_down_only(package: str) -> None:
    folder = ROOT / PACKAGES[package]
    rooms = {
        path.stem
        for path in folder.iterdir()
        if (path.suffix == ".py" and path.stem != "__init__")
        or (path / "__init__.py").exists()
    }
    assert rooms == set(ROOMS[package])
    assert upward_imports(folder, package) == []


def test_an_upward_import_is_found(tmp_path: pathlib.Path) -> None:
    (tmp_path / "timing").mkdir()
    path = tmp_path / "timing" / "table.py"
    path.write_text("def f():\n    from jserve_sched import scheduler\n")
    assert upward_imports(tmp_path, "jserve_sched") == [
        "timing imports jserve_sched.scheduler"
    ]
    path.write_text("import jserve.config\n")
    assert upward_imports(tmp_path, "jserve_sched") == [
        "jserve_sched imports jserve.config"
    ]


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_no_file_imports_itself_in_a_circle(package: str) -> None:
    folder = ROOT / PACKAGES[package]
    names = {
        ".".join((package, *path.relative_to(folder).with_suffix("").parts)): path
        for path in folder.rglob("*.py")
        if path.stem != "__init__"
    }
    graph = {
        name: {one for one in imports(path, package) if one in names}
        for name, path in names.items()
    }
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(names)


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_the_top_of_a_package_can_be_taken_in_at_a_glance(package: str) -> None:
    aside = {"__init__.py", "README.md", "py.typed", "__pycache__"}
    entries = {path.name for path in (ROOT / PACKAGES[package]).iterdir()} - aside
    assert len(entries) <= 15


def test_no_file_is_longer_than_400_lines() -> None:
    paths = [path for root in PACKAGES.values() for path in (ROOT / root).rglob("*.py")]
    assert [str(p) for p in paths if len(p.read_text().splitlines()) > 400] == []
