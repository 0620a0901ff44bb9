"""What the paged attention kernel takes of each card."""

import pytest

from tests.aot.kernel import kernel_resources

pytestmark = [pytest.mark.aot, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("target", ["a100", "l4", "h200", "b200"])
def test_registers_suffice(target: str) -> None:
    found = kernel_resources(target)
    assert {name: one.spill_bytes for name, one in found.items()} == dict.fromkeys(
        found, 0
    )
    # With 168, three thread blocks of a decode run at once on a multiprocessor.
    most = max(one.registers for name, one in found.items() if "decode" in name)
    assert most <= 168
