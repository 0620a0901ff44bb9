"""What loading a checkpoint takes beside the weights."""

import json
import pathlib
import socket
import subprocess
import sys

import pytest

from tests.loading_memory import LARGEST_BYTES, write_checkpoint


@pytest.mark.parallel
@pytest.mark.timeout(900)
def test_a_process_needs_little_more_than_its_part(tmp_path: pathlib.Path) -> None:
    write_checkpoint(tmp_path)
    with socket.create_server(("localhost", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.loading_memory", tmp_path, address, str(one)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for one in (0, 1)
    ]
    outputs = [one.communicate(timeout=600)[0] for one in processes]
    for output in outputs:
        facts = json.loads(output.splitlines()[-1])
        assert facts["loaded"] < 1.3 * LARGEST_BYTES  # half of 2.5 such tensors
        beside = facts["peak"] - facts["before"] - facts["loaded"]
        assert beside < 1.3 * LARGEST_BYTES, facts
