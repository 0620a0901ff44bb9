"""Event loop time a streamed token costs: `python -m benchmarks.front.stream_cost`.

A scripted engine gives each stream a token every step; a client in another process
reads all streams. The time is processor time of the event loop's thread, from the first
to the last token, and includes the writes to sockets. The last line is JSON.
"""

import argparse
import asyncio
import contextlib
import json
import selectors
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

import uvicorn

from jserve.server.app import build_app
from jserve.server.serving import bind, make_server
from jserve.server_config import ServerConfig
from jserve.text.tokenizer import load_tokenizer
from jserve_sched.requests.limits import RequestLimits
from tests.fake_loop import FakeLoop


def read_streams(port: int, num_streams: int, num_tokens: int) -> None:
    """Opens the streams, and reads all of them to their ends."""
    fields = {"prompt": "hi", "stream": True, "max_tokens": num_tokens}
    body = json.dumps(fields).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    selector = selectors.DefaultSelector()
    sent_s: dict[int, float] = {}
    first_s: dict[int, float] = {}
    for _ in range(num_streams):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(head % len(body) + body)
        sent_s[sock.fileno()] = time.perf_counter()
        selector.register(sock, selectors.EVENT_READ)
    num_events, tails = 0, dict.fromkeys(selector.get_map(), b"")
    while tails:
        for key, _ in selector.select():
            data = key.fileobj.recv(2**16)  # type: ignore[union-attr]
            num_events += data.count(b'"finish_reason"')
            if b'"finish_reason"' in data:
                first_s.setdefault(key.fd, time.perf_counter() - sent_s[key.fd])
            tails[key.fd] = (tails[key.fd] + data)[-40:]
            if b"[DONE]" in tails[key.fd]:
                selector.unregister(key.fileobj)
                del tails[key.fd]
    assert num_events == num_streams * num_tokens, num_events
    print(statistics.median(first_s.values()))


async def serve(app: Any, config: ServerConfig) -> None:
    """Serves until the task is cancelled."""
    with bind(config) as listener:
        await make_server(app, config).serve(sockets=[listener])


async def measure(num_streams: int, num_tokens: int, step_s: float) -> dict[str, float]:
    """Returns tokens a second, the median TTFT, and what a token costs."""
    loop = FakeLoop(step_s=step_s)
    loop.limits = RequestLimits(max_model_len=2**16, num_kv_tokens=2**24)
    with socket.create_server(("127.0.0.1", 0)) as free:
        config = ServerConfig(port=free.getsockname()[1])
    app = build_app(loop, load_tokenizer(None), config)
    serving = asyncio.create_task(serve(app, config))
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", config.port)
            writer.close()
            break
        await asyncio.sleep(0.05)
    sizes = [f"--num_streams={num_streams}", f"--num_tokens={num_tokens}"]
    client = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, f"--port={config.port}", *sizes],
        stdout=subprocess.PIPE,
    )
    while loop.num_live() < num_streams:
        await asyncio.sleep(0.01)
    begin_s = time.perf_counter()
    thread_s, process_s = time.thread_time(), time.process_time()
    while client.poll() is None:
        await asyncio.sleep(0.05)
    count = num_streams * num_tokens
    costs = {
        "token_us": (time.thread_time() - thread_s) / count * 1e6,
        "process_token_us": (time.process_time() - process_s) / count * 1e6,
        "tokens_per_s": count / (time.perf_counter() - begin_s),
    }
    assert client.returncode == 0 and client.stdout is not None
    serving.cancel()
    await asyncio.wait({serving}, timeout=5)
    return {**costs, "ttft_ms": float(client.stdout.read()) * 1e3}


def main() -> None:
    """Measures, or is the client of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_streams", type=int, default=64)
    parser.add_argument("--num_tokens", type=int, default=400)
    parser.add_argument("--step_s", type=float, default=0.01)
    parser.add_argument("--port", type=int, default=0, help="be the client of a port")
    args = parser.parse_args()
    if args.port:
        read_streams(args.port, args.num_streams, args.num_tokens)
        return
    run = asyncio.Runner(loop_factory=uvicorn.Config("").get_loop_factory()).run
    costs = run(measure(args.num_streams, args.num_tokens, args.step_s))
    print(json.dumps({"num_streams": args.num_streams} | costs))


if __name__ == "__main__":
    main()
