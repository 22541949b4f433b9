"""A server under mixed load: every request ends as it should, and its memory stays flat.

Clients send what is in `load_traffic.py`, each one request after the other: text, pictures, long prompts,
forms, tools, streams that are broken off or read slowly, and everything a server has to refuse. A request
ends well when it has one of the statuses of its kind and what belongs to it (the end of a stream, the form of
an answer), or is refused with 429 or 503 and Retry-After. What ends otherwise is listed. Memory is the
resident memory of the server's process with all its children, once a second; after the warm-up its median in
the last quarter may be 5 % above that in the first.

    scripts/bench load --model nano --clients 32 --minutes 10 [--serve "--threads 2"] [--url URL]

Starts `internvl serve`, or asks the server at --url (memory is not measured then). Appends one JSON line to
benchmarks/results/load.jsonl; exit status 1 if a request ended badly, memory grew, or the server failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
import numpy as np
import psutil
from load_traffic import LEFT, Ask, Kind, Traffic, pictures

from internvl.cli.machine import describe_processor, versions

PATIENCE = 300.0
"""Seconds in which every request has to end."""
RETRY_SECONDS = 2.0
"""What a client waits that was refused."""
GROWTH = 0.05
"""Memory may grow by this part after the warm-up."""
SHUTDOWN_SECONDS = 30
RESULTS = Path(__file__).parent / "results" / "load.jsonl"


@dataclass(slots=True)
class Outcome:
    """How a request ended: its status, seconds to its first token and to its end, and what is wrong."""

    status: int = LEFT
    seconds: float = 0.0
    first: float | None = None
    tokens: int = 0
    is_refused: bool = False
    fault: str | None = None


@dataclass(slots=True)
class Record:
    """Everything that happened. `memory` are pairs of seconds since the start and bytes."""

    outcomes: dict[str, list[Outcome]] = field(default_factory=lambda: defaultdict(list))
    faults: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)


async def ask(client: httpx.AsyncClient, one: Ask) -> Outcome:
    """Sends a request and reads its answer in its way."""
    found, start = Outcome(), time.perf_counter()
    try:
        async with asyncio.timeout(one.after if one.way == "leave" else PATIENCE):
            await _read(client, one, found, start)
    except TimeoutError:
        found.fault = None if one.way == "leave" else f"no end within {PATIENCE:g} s"
    except httpx.HTTPError as reason:
        found.fault = f"the connection broke: {reason!r}"
    except (LookupError, TypeError, ValueError) as reason:
        found.fault = f"no answer of the protocol: {reason!r}"
    found.seconds = time.perf_counter() - start
    return found


async def _read(client: httpx.AsyncClient, one: Ask, found: Outcome, start: float) -> None:
    method = "GET" if one.body is None else "POST"
    headers = {"Content-Type": "application/json"}
    async with client.stream(method, one.path, content=one.body, headers=headers) as answer:
        found.status = answer.status_code
        if answer.status_code != 200:
            _take_error(json.loads(await answer.aread())["error"], found, "retry-after" in answer.headers)
        elif answer.headers["content-type"].startswith("text/event-stream"):
            await _read_events(answer, one, found, start)
        else:
            content = await answer.aread()
            if one.path.startswith("/v1/"):
                document = json.loads(content)
                used = document["usage"]
                found.tokens = used.get("completion_tokens", used.get("output_tokens", 0))
                found.fault = one.check(document)


async def _read_events(answer: httpx.Response, one: Ask, found: Outcome, start: float) -> None:
    num_events, is_whole = 0, False
    async for line in answer.aiter_lines():
        if not line.startswith("data: "):
            continue
        if is_whole := line == "data: [DONE]":
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            _take_error(event["error"], found, event["error"]["code"] == "queue_full")
            found.fault = None if found.is_refused else f"the stream ended with {event['error']}"
            return
        num_events += 1
        if any(choice["delta"].get("content") for choice in event["choices"]):
            found.first = found.first or time.perf_counter() - start
        found.tokens = (event.get("usage") or {}).get("completion_tokens", 0)
        if one.way == "cancel" and num_events >= one.after:
            return
        if one.way == "slow":
            await asyncio.sleep(1)
    # Who cancels late may have got all of it.
    found.fault = None if is_whole else "the stream ended without its end"


def _take_error(error: Mapping[str, Any], found: Outcome, may_come_again: bool) -> None:
    if set(error) != {"message", "type", "param", "code"}:
        found.fault = f"no error object: {error}"
    found.is_refused = may_come_again and (found.status in (200, 429, 503))


async def work(traffic: Traffic, url: str, until: float, record: Record) -> None:
    """One client: requests until the time is over."""
    # A reader is slow only if the system does not read ahead for it.
    narrow = httpx.AsyncHTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)])
    async with (
        httpx.AsyncClient(base_url=url, timeout=None) as client,
        httpx.AsyncClient(base_url=url, timeout=None, transport=narrow) as slow_client,
    ):
        while time.monotonic() < until:
            kind, one = traffic.draw()
            found = await ask(slow_client if one.way == "slow" else client, one)
            _book(kind, found, record)
            if found.is_refused:
                await asyncio.sleep(RETRY_SECONDS)


def _book(kind: Kind, found: Outcome, record: Record) -> None:
    record.outcomes[kind.name].append(found)
    if found.fault is None and not (found.is_refused or found.status in kind.statuses):
        found.fault = f"status {found.status}, not one of {kind.statuses}"
    if found.fault is not None:
        record.faults.append(f"{kind.name}: {found.fault}"[:500])


async def watch(process: psutil.Process, start: float, record: Record) -> None:
    """Memory of the process and of all below it, once a second, until it is cancelled."""
    while True:
        total = 0
        for one in (process, *process.children(recursive=True)):
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        record.memory.append((time.monotonic() - start, total))
        await asyncio.sleep(1)


async def run(options: argparse.Namespace, url: str, process: psutil.Process | None) -> Record:
    record = Record()
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        model = (await client.get("/v1/models")).json()["data"][0]
        pool, start = pictures(options.seed), time.monotonic()
        watching = asyncio.ensure_future(watch(process, start, record)) if process else None
        async with asyncio.TaskGroup() as clients:
            for number in range(options.clients):
                traffic = Traffic(1000 * options.seed + number, pool, model["id"], model["max_model_len"])
                clients.create_task(work(traffic, url, start + 60 * options.minutes, record))
        if watching is not None:
            watching.cancel()
        record.faults += await _idle_faults(client)
    return record


async def _idle_faults(client: httpx.AsyncClient, seconds: float = 30.0) -> list[str]:
    """When all clients are done, nothing may run any more."""
    until, left = time.monotonic() + seconds, ["?"]
    names = (
        "internvl:num_requests_running{",
        "internvl:num_requests_waiting{",
        "internvl:kv_cache_usage_perc{",
    )
    while left and time.monotonic() < until:
        lines = (await client.get("/metrics")).text.splitlines()
        left = [line for line in lines if line.startswith(names) and not line.endswith(" 0.0")]
        await asyncio.sleep(0.5)
    is_healthy = (await client.get("/health")).status_code == 200
    return [f"still busy when all is over: {line}" for line in left] + ([] if is_healthy else ["not healthy"])


@contextmanager
def server(options: argparse.Namespace, log: IO[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "internvl", "serve", options.model, "--port", "0", "--json"]
    command += ["--log-level", "warning", "--shutdown-timeout", str(SHUTDOWN_SECONDS)]
    command += shlex.split(options.serve)
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": log, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as running:
        assert running.stdout is not None
        document = ""
        for line in running.stdout:
            document += line
            if line.startswith("}"):
                break
        if not document:
            raise SystemExit(f"the server did not start; its log is {log.name}")
        try:
            yield json.loads(document)["url"].removesuffix("/v1"), running
        finally:
            running.kill()


def stop(running: subprocess.Popen[str], log: Path) -> list[str]:
    """What is wrong with how the server ends, and what its log tells of failures."""
    running.send_signal(signal.SIGTERM)
    try:
        status = running.wait(SHUTDOWN_SECONDS + 10)
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGABRT)  # what it does is in its log then
        running.wait(10)
        return [f"the server did not end within {SHUTDOWN_SECONDS + 10} s of SIGTERM; its log is {log}"]
    text = log.read_text(encoding="utf-8")
    faults = [] if status == 0 else [f"the server's exit status is {status}"]
    count = text.count("Traceback")
    return faults + ([f"{count} tracebacks in the server's log {log}"] if count else [])


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Seconds."""
    if not values:
        return None
    p50, p99 = np.quantile(values, [0.5, 0.99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}


def memory(record: Record, warm_up: float) -> dict[str, Any] | None:
    """Megabytes in the first and the last quarter after the warm-up (seconds), and the growth between."""
    settled = [value / 1e6 for second, value in record.memory if second >= warm_up]
    if len(settled) < 8:
        return None
    quarter = len(settled) // 4
    first, last = statistics.median(settled[:quarter]), statistics.median(settled[-quarter:])
    numbers = {"first_mb": first, "last_mb": last, "peak_mb": max(value / 1e6 for _, value in record.memory)}
    return {**{name: round(value) for name, value in numbers.items()}, "growth": round(last / first - 1, 4)}


def report(options: argparse.Namespace, record: Record, seconds: float) -> dict[str, Any]:
    everything = [found for outcomes in record.outcomes.values() for found in outcomes]
    refused = sum(found.is_refused for found in everything)
    kinds = {
        name: {
            "requests": len(outcomes),
            "refused": sum(found.is_refused for found in outcomes),
            "seconds": spread([found.seconds for found in outcomes if not found.is_refused]),
            "first_token_s": spread([found.first for found in outcomes if found.first is not None]),
        }
        for name, outcomes in sorted(record.outcomes.items())
    }
    return {
        "what": "load",
        "model": options.model,
        "clients": options.clients,
        "minutes": options.minutes,
        "seed": options.seed,
        "requests": len(everything),
        "answered": len(everything) - refused - sum(found.fault is not None for found in everything),
        "refused": refused,
        "faults": len(record.faults),
        "tokens_s": round(sum(found.tokens for found in everything) / seconds, 2),
        "first_token_s": spread([found.first for found in everything if found.first is not None]),
        "memory": memory(record, 60 * options.warm_up),
        "kinds": kinds,
        **describe_processor(),
        "versions": versions(),
    }


def measure(options: argparse.Namespace) -> tuple[Record, float]:
    """What happened, and in how many seconds."""
    start = time.monotonic()
    if options.url:
        return asyncio.run(run(options, options.url.removesuffix("/v1"), None)), time.monotonic() - start
    with (
        tempfile.NamedTemporaryFile("w", prefix="internvl-load-", suffix=".log", delete=False) as log,
        server(options, log) as (url, running),
    ):
        start = time.monotonic()
        record = asyncio.run(run(options, url, psutil.Process(running.pid)))
        seconds = time.monotonic() - start
        record.faults += stop(running, Path(log.name))
    return record, seconds


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano")
    parser.add_argument("--url")
    parser.add_argument("--serve", default="", help="further words for `internvl serve`")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--warm-up", type=float, default=2.0, help="minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    record, seconds = measure(options)
    document = report(options, record, seconds)
    found = document["memory"]
    if found is not None and found["growth"] > GROWTH:
        record.faults.append(f"memory grew by {found['growth']:.1%}, more than {GROWTH:.0%}")
    for fault in record.faults:
        print(fault, file=sys.stderr)
    line = json.dumps(document)
    print(line)
    with options.out.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    return 1 if record.faults else 0


if __name__ == "__main__":
    sys.exit(main())
