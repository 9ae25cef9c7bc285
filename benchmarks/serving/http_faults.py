"""Faults of clients and operators: disconnects, and SIGTERM under load."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serving.drawn_requests import RANDOM, Words, alone, digest, words_of
from benchmarks.serving.server_process import GENERATIONS, Server, body_of, picture_of, serving

PATIENT = httpx.Timeout(600)


async def disconnects(bundle: Path) -> dict[str, Any]:
    """Lets 200 clients go at random moments; then requests must be right and nothing left over."""
    async with serving(bundle, "--backend", "cpu", "--queue", "1000") as server:

        async def leaving(seed: int) -> None:
            await asyncio.sleep(RANDOM.random() * 20)
            stream = bool(seed % 2)
            await _send_and_leave(server, {**body_of(words_of(seed, most=40)), "stream": stream})

        await asyncio.gather(*map(leaving, range(200)))
        async with httpx.AsyncClient(timeout=PATIENT) as client:
            drawn = [words_of(1000 + seed) for seed in range(40)]
            replies = await asyncio.gather(*(server.post(client, body_of(each)) for each in drawn))
            metrics = (await client.get(server.address + "/metrics")).text
    counts = _tally(bundle, drawn, replies)
    cancelled = sum(
        float(line.rsplit(" ", 1)[1])
        for line in metrics.splitlines()
        if line.startswith("eri_requests_total") and 'outcome="cancelled"' in line
    )
    return {
        "disconnected": 200,
        "cancelled": int(cancelled),
        **counts,
        "passed": counts == {"right": len(drawn)} and "eri_requests_running 0.0" in metrics,
    }


async def _send_and_leave(server: Server, body: dict[str, Any]) -> None:
    """Sends a request, and closes the connection within a second."""
    host, port = server.address.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    raw = json.dumps(body).encode()
    head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
    await writer.drain()
    await asyncio.sleep(RANDOM.random())
    writer.transport.abort()


async def shutdown(bundle: Path) -> dict[str, Any]:
    """Sends SIGTERM under load: what was accepted is finished, the rest gets 503."""
    options = ("--backend", "cpu", "--queue", "1000", "--grace", "60")
    async with serving(bundle, *options) as server:
        async with httpx.AsyncClient(timeout=PATIENT) as client:
            drawn = [words_of(seed, most=20) for seed in range(24)]
            tasks = [asyncio.create_task(server.post(client, body_of(each))) for each in drawn]
            await asyncio.sleep(1.0)
            started = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            late = await _late(server)
            replies = await asyncio.gather(*tasks)
        code = await asyncio.wait_for(server.process.wait(), 60)
        seconds = time.monotonic() - started
    counts = _tally(bundle, drawn, replies)
    return {
        "accepted": len(drawn),
        **counts,
        "a request after it": late,
        "exit_status": code,
        "seconds_to_the_end": round(seconds, 1),
        "passed": counts == {"right": len(drawn)} and code == 0 and late in ("503", "refused"),
    }


async def _late(server: Server) -> str:
    """Returns what a request gets that comes after the signal: a status, or "refused"."""
    async with httpx.AsyncClient(timeout=PATIENT) as client:
        try:
            return str((await server.post(client, body_of(words_of(0)))).status_code)
        except httpx.ConnectError:
            return "refused"


def _tally(bundle: Path, drawn: list[Words], replies: list[httpx.Response]) -> dict[str, int]:
    """Counts right pictures, wrong ones and other replies."""
    counts = Counter[str]()
    for words, reply in zip(drawn, replies, strict=True):
        if reply.status_code != 200:
            counts[f"status {reply.status_code}"] += 1
        else:
            right = digest(picture_of(reply)) == alone(bundle, words)
            counts["right" if right else "wrong"] += 1
    return dict(counts)
