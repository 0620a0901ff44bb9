"""An OpenAI-style server with a made-up engine: real sockets, invented times.

One step takes `base_s`, plus `row_s` a decode row and `token_s` a prompt token, up
to `chunk` of which fit a step. Runs as a program too, so that it can be launched.
"""

import argparse
import asyncio
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from aiohttp import web


@dataclasses.dataclass(eq=False)
class Job:
    prompt_left: int
    tokens_left: int
    queue: asyncio.Queue[bool]
    due_s: float
    is_cancelled: bool = False


@dataclasses.dataclass
class FakeServer:
    base_s: float = 0.001
    row_s: float = 0.0
    token_s: float = 0.0
    num_slots: int = 4
    chunk: int = 64
    policy: str = "fcfs"
    is_jserve: bool = True
    max_model_len: int = 100_000
    statuses: Iterator[int] | None = None
    final_usage: bool = True
    broken_after: int = -1
    enable_overlap: bool = False
    status: str = "warm"
    num_forgotten: int = 0  # of the oldest steps
    natural_tokens: int = 1_000_000  # where the model ends an answer that may end
    length_sums: dict[str, int] = dataclasses.field(default_factory=dict)
    bodies: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.jobs: list[Job] = []
        self.wake = asyncio.Event()
        self.url = ""

    async def __aenter__(self) -> "FakeServer":
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/health", self.health)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_post("/v1/chat/completions", self.complete)
        if self.is_jserve:
            app.router.add_get("/jserve/info", self.info)
            app.router.add_get("/jserve/steps", self.step_log)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", getattr(self, "port", 0))
        await site.start()
        port = self.runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        self.engine = asyncio.create_task(self.run_engine())
        return self

    async def __aexit__(self, *error: object) -> None:
        self.engine.cancel()
        await asyncio.gather(self.engine, return_exceptions=True)
        await self.runner.cleanup()

    async def run_engine(self) -> None:
        while True:
            self.jobs = [job for job in self.jobs if not job.is_cancelled]
            if not self.jobs:
                self.wake.clear()
                await self.wake.wait()
                continue
            if self.policy == "edf":
                self.jobs.sort(key=lambda job: job.due_s)
            running = self.jobs[: self.num_slots]
            room = self.chunk
            taken: list[tuple[Job, int]] = []
            rows = [job for job in running if not job.prompt_left]
            for job in running:
                if job.prompt_left and room:
                    taken.append((job, min(room, job.prompt_left)))
                    room -= taken[-1][1]
            prefill = sum(count for _, count in taken)
            blocks = sum(-(-count // 32) for _, count in taken)
            num_blocks = 1 << (blocks - 1).bit_length() if blocks else 0
            duration_s = self.base_s + self.row_s * self.num_slots
            duration_s += self.token_s * 32 * num_blocks
            await asyncio.sleep(duration_s)
            for job, count in taken:
                job.prompt_left -= count
            for job in rows + [job for job, _ in taken if not job.prompt_left]:
                job.tokens_left -= 1
                job.queue.put_nowait(job.tokens_left == 0)
            self.jobs = [job for job in self.jobs if job.tokens_left]
            used_s = self.base_s + self.row_s * len(rows) + self.token_s * prefill
            self.steps.append(
                {
                    "step_id": len(self.steps),
                    "end_s": time.monotonic(),
                    "num_rows": self.num_slots,
                    "num_blocks": num_blocks,
                    "used_rows": len(rows),
                    "used_blocks": blocks,
                    "prefill_tokens": prefill,
                    "decode_pages": 1,
                    "block_pages": 1,
                    "num_waiting": max(0, len(self.jobs) - self.num_slots),
                    "ended_by": "full",
                    "leaves_work": bool(self.jobs) and room == 0,
                    "predicted_s": duration_s,
                    "bucket_s": duration_s,
                    "used_s": used_s,
                    "duration_s": duration_s,
                    "plan_s": 1e-4,
                    "transfer_s": 1e-4,
                    "launch_s": 1e-4,
                    "wait_s": duration_s,
                    "apply_s": 1e-4,
                    "host_s": 5e-4,
                }
            )

    async def health(self, request: web.Request) -> web.Response:
        is_warm = self.status == "warm"
        return web.json_response(
            {"status": self.status, "ready": is_warm, "warm": is_warm},
            status=200 if is_warm else 503,
        )

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "fake"}]})

    async def info(self, request: web.Request) -> web.Response:
        engine = {
            "policy": self.policy,
            "bucket_strategy": "pow2",
            "block_tokens": 32,
            "max_num_seqs": self.num_slots,
            "enable_overlap": self.enable_overlap,
        }
        stats = {
            "num_steps": len(self.steps),
            "num_running": len(self.jobs[: self.num_slots]),
            "num_waiting": len(self.jobs[self.num_slots :]),
            "num_programs": 4,
            "block_tokens": 32,
            "compile_s": 1.5,
            "start_up": {
                "ready_s": 0.5,
                "warm_s": 2.0,
                "covering_s": 0.25,
                "programs": [
                    {
                        "program": f"B{self.num_slots}xNB{num_blocks}",
                        "trace_s": 0.125,
                        "compile_s": 0.375,
                        "executable_bytes": 1000,
                        "source": "compiled",
                    }
                    for num_blocks in (0, 4, 8, 16)
                ],
            },
            "num_compiles_after_warmup": 0,
            "num_preemptions": 0,
            "prefix_hit_tokens": 0,
            "length_errors": {"all": self.length_sums} if self.length_sums else {},
        }
        return web.json_response(
            {
                "engine": engine,
                "stats": stats,
                "publish_s": {"p50": 2e-4, "p99": 1e-3},
                "device": "fake",
                "jax": "0",
            }
        )

    async def step_log(self, request: web.Request) -> web.Response:
        since = max(int(request.query["since"]), self.num_forgotten)
        return web.json_response({"steps": self.steps[since : since + 100]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        status = next(self.statuses, 200) if self.statuses is not None else 200
        length = len(body.get("prompt") or body["messages"][0]["content"].split())
        code = None
        if length + body["max_tokens"] > self.max_model_len:
            status, code = 400, "context_length_exceeded"
        if status != 200:
            error = {"message": f"made up {status}", "type": "x", "code": code}
            return web.json_response({"error": error}, status=status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        slo = body.get("slo") or {}
        due_s = time.monotonic() + slo.get("ttft_s", slo.get("ttlt_s", 1e6))
        num_tokens = body["max_tokens"]
        if not body["ignore_eos"]:
            num_tokens = min(num_tokens, self.natural_tokens)
            self.note_length(num_tokens, body["max_tokens"])
        job = Job(length, num_tokens, asyncio.Queue(), due_s)
        self.jobs.append(job)
        self.wake.set()
        is_chat = "messages" in body
        try:
            if is_chat:
                await self.event(response, {"delta": {"role": "assistant"}})
            for count in range(num_tokens):
                if count == self.broken_after:
                    return response
                await job.queue.get()
                text = {"delta": {"content": "x"}} if is_chat else {"text": "x"}
                await self.event(response, text)
            if self.final_usage:
                usage = {"prompt_tokens": length, "completion_tokens": count + 1}
                data = json.dumps({"choices": [], "usage": usage})
                await response.write(f"data: {data}\n\n".encode())
            await response.write(b"data: [DONE]\n\n")
        finally:
            job.is_cancelled = True
        return response

    def note_length(self, num_tokens: int, num_predicted: int) -> None:
        for name, value in (
            ("num_requests", 1),
            ("sum_tokens", num_tokens),
            ("sum_predicted_tokens", num_predicted),
            ("sum_abs_error_tokens", num_predicted - num_tokens),
        ):
            self.length_sums[name] = self.length_sums.get(name, 0) + value

    async def event(self, response: web.StreamResponse, choice: dict) -> None:
        data = json.dumps({"choices": [choice | {"finish_reason": None}]})
        await response.write(f"data: {data}\n\n".encode())


async def serve(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--policy", default="sliding")
    parser.add_argument("--exit_status", type=int, default=0)
    parser.add_argument("--dies", action="store_true")
    parser.add_argument("--fails", action="store_true")
    options, _ = parser.parse_known_args(arguments)
    if options.dies:
        print("no such model")
        return 3
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = FakeServer(
        base_s=0.002, row_s=0.0001, token_s=0.0002, num_slots=32, chunk=512
    )
    server.policy = options.policy
    if options.fails:
        print("out of memory")
        server.status = "failed"
    server.port = options.port  # type: ignore[attr-defined]
    async with server:
        await stop.wait()
    return options.exit_status


if __name__ == "__main__":
    sys.exit(asyncio.run(serve(sys.argv[1:])))
