"""A server under signals, with too little memory, and without its files and clients."""

import pathlib
import resource
import shutil
import signal
import time

import pytest

from jserve_sched.policies.registry import POLICIES
from tests.trust.real_server import PROMPTS, Client, Server, all_at_work, serving

pytestmark = pytest.mark.trust

PAGE_BYTES = 4096  # of the toy's KV, 128 tokens


def check(clients: list[Client]) -> None:
    for client in clients:
        client.wait(60)
        assert client.is_right and client.error is None, client.error


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_pool_of_thirty_pages_serves_what_needs_two_hundred(
    policy: str, tmp_path: pathlib.Path
) -> None:
    flags = f"--policy={policy}", f"--kv_cache_bytes={30 * PAGE_BYTES}"
    with serving(tmp_path, "plan", *flags) as server:
        prompts = [[first] * 500 for first in range(1, 21)]
        check([Client(server, one, True, 800).start() for one in prompts])
        assert server.metric("vllm:num_preemptions_total") > 0
        assert server.metric("vllm:kv_cache_usage_perc") == 0


def test_a_pause_is_survived(tmp_path: pathlib.Path) -> None:
    with serving(tmp_path) as server:
        clients = all_at_work(server)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(7)
        server.process.send_signal(signal.SIGCONT)
        check(clients)
        assert server.health()["warm"]


def test_a_server_that_was_killed_starts_again(tmp_path: pathlib.Path) -> None:
    log = f"--step_log={tmp_path / 'steps.jsonl'}"
    with serving(tmp_path, "plan", log) as server:
        clients = all_at_work(server)
        server.process.kill()
        for client in clients:
            client.wait()
    with serving(tmp_path, "plan", log) as server:
        check(all_at_work(server, 200))


@pytest.mark.parametrize("after_s", [0.0, 1.0, 3.0])
def test_a_cold_start_ends_on_sigterm(tmp_path: pathlib.Path, after_s: float) -> None:
    server = Server(tmp_path, "plan", f"--compile_cache_dir={tmp_path / 'cold'}")
    time.sleep(after_s)
    server.process.send_signal(signal.SIGTERM)
    server.process.communicate(timeout=20)
    assert server.process.returncode == 0
    assert "Traceback" not in server.log.read_text()


def test_more_clients_than_descriptors(tmp_path: pathlib.Path) -> None:
    with serving(tmp_path) as server:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (70, 70))
        crowd = [Client(server, PROMPTS[0], True, 50).start() for _ in range(120)]
        for client in crowd:
            client.wait(60)
        assert any(client.is_right and client.error is None for client in crowd)
        check([Client(server, PROMPTS[1], True, 50).start()])


def test_a_step_log_whose_folder_is_deleted(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    flags = f"--step_log={folder / 'steps.jsonl'}", "--step_log_max_bytes=65536"
    with serving(tmp_path, "plan", *flags) as server:
        clients = all_at_work(server)
        shutil.rmtree(folder)
        check(clients)
        assert server.health()["warm"]


def test_a_hundred_cut_streams_leave_nothing_behind(tmp_path: pathlib.Path) -> None:
    with serving(tmp_path) as server:
        check(all_at_work(server, 50))
        process = pathlib.Path(f"/proc/{server.process.pid}")

        def held() -> list[int]:
            return [len([*(process / one).iterdir()]) for one in ("fd", "task")]

        before = held()
        for _ in range(100):
            with server.stream(PROMPTS[0]) as lines:
                assert next(lines)
        deadline_s = time.monotonic() + 5
        while server.metric("vllm:num_requests_running") or held() != before:
            assert time.monotonic() < deadline_s, (before, held())
            time.sleep(0.05)
        assert server.metric("vllm:kv_cache_usage_perc") == 0
        check([Client(server, PROMPTS[0], True, 50).start()])
