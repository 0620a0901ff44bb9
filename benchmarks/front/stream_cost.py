"""Event loop time a streamed token costs: `python -m benchmarks.front.stream_cost`.

A scripted engine gives each stream a token every step; a client in another process
reads all streams. The time is processor time of the event loop's thread, from the first
to the last token, and includes the writes to sockets. The last line is JSON.
"""

import argparse
import asyncio
import json
import selectors
import socket
import subprocess
import sys
import time

import uvicorn

from jserve.config import ServerConfig
from jserve.server.app import build_app
from jserve.server.serving import bind, make_server
from jserve.text.tokenizer import load_tokenizer
from tests.fake_server import FakeLoop


def read_streams(port: int, num_streams: int, num_tokens: int) -> None:
    """Opens the streams, and reads all of them to their ends."""
    fields = {"prompt": "hi", "stream": True, "max_tokens": num_tokens}
    body = json.dumps(fields).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    selector = selectors.DefaultSelector()
    for _ in range(num_streams):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(head % len(body) + body)
        selector.register(sock, selectors.EVENT_READ)
    num_events, tails = 0, dict.fromkeys(selector.get_map(), b"")
    while tails:
        for key, _ in selector.select():
            data = key.fileobj.recv(2**16)  # type: ignore[union-attr]
            num_events += data.count(b'"finish_reason"')
            tails[key.fd] = (tails[key.fd] + data)[-40:]
            if b"[DONE]" in tails[key.fd]:
                selector.unregister(key.fileobj)
                del tails[key.fd]
    assert num_events == num_streams * num_tokens, num_events


async def measure(num_streams: int, num_tokens: int, step_s: float) -> float:
    """Returns seconds of the event loop a token."""
    loop = FakeLoop(step_s=step_s)
    config = ServerConfig(port=0)
    server = make_server(build_app(loop, load_tokenizer(None), config), config)
    with bind(config) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        loop.running.clear()
        port = listener.getsockname()[1]
        sizes = [f"--num_streams={num_streams}", f"--num_tokens={num_tokens}"]
        client = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, f"--port={port}", *sizes]
        )
        while loop.num_live() < num_streams:
            await asyncio.sleep(0.01)
        start_s = time.thread_time()
        loop.running.set()
        while client.poll() is None:
            await asyncio.sleep(0.05)
        duration_s = time.thread_time() - start_s
        assert client.returncode == 0
        server.should_exit = True
        await serving
    return duration_s / (num_streams * num_tokens)


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
    cost_s = run(measure(args.num_streams, args.num_tokens, args.step_s))
    print(json.dumps({"num_streams": args.num_streams, "token_us": cost_s * 1e6}))


if __name__ == "__main__":
    main()
