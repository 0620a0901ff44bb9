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
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_process_needs_little_more_than_its_part(
    tmp_path: pathlib.Path, num_processes: int
) -> None:
    write_checkpoint(tmp_path)
    with socket.create_server(("localhost", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"
    cluster = [[address, str(one)] for one in range(num_processes)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.loading_memory", tmp_path, *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        for arguments in (cluster if num_processes > 1 else [[]])
    ]
    outputs = [one.communicate(timeout=600)[0] for one in processes]
    for output in outputs:
        facts = json.loads(output.splitlines()[-1])
        # A part of 2.5 such tensors.
        assert facts["loaded"] < 2.6 / num_processes * LARGEST_BYTES
        beside = facts["peak"] - facts["before"] - facts["loaded"]
        assert beside < 1.3 * LARGEST_BYTES, facts
