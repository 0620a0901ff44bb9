"""One server for all tests that leave it as it was."""

from collections.abc import Iterator

import pytest

from tests.fake_server import Served, serve_fake


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    with serve_fake() as served:
        yield served


@pytest.fixture(autouse=True)
def still_serves(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test has sent, the server must serve the next request."""
    yield
    if "served" in request.fixturenames:
        served: Served = request.getfixturevalue("served")
        assert served.complete(max_tokens=1).status == 200
        assert served.loop.wait_idle()
