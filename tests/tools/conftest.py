"""Makes the fake server, which tests cannot import, available to them."""

import importlib.util
import pathlib
import sys
import types

import pytest

FAKE_SERVER = pathlib.Path(__file__).parent / "fake_server.py"


@pytest.fixture(scope="session")
def fake_server_file() -> pathlib.Path:
    return FAKE_SERVER


@pytest.fixture(scope="session")
def fake_server() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("bench_fake_server", FAKE_SERVER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
