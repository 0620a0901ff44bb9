"""Set-up shared by all tests."""

import pytest
from absl import flags


@pytest.fixture(autouse=True, scope="session")
def parsed_flags() -> None:
    """absl's own test helpers read flags that nobody parsed under pytest."""
    flags.FLAGS.mark_as_parsed()
