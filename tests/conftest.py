"""Set-up shared by all tests."""

import os
import pathlib
from collections.abc import Iterator

import pytest
from absl import flags


@pytest.fixture(autouse=True, scope="session")
def parsed_flags() -> None:
    """Marks absl's flags as parsed, since pytest does not parse them."""
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def shared_programs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Folder of compiled programs that tests share if they do not test compiling.

    It is the same for all workers of pytest-xdist.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    programs = folder / "shared_programs"
    programs.mkdir(mode=0o700, exist_ok=True)
    return programs


@pytest.fixture(scope="module")
def quick_compiler() -> Iterator[None]:
    """Compiles without optimisation, since most programs of tests run a few times."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
