"""A client that goes away stops costing, and takes nobody along."""

from __future__ import annotations

import asyncio
import socket
import time

import httpx
import pytest

from tests.support.http_pictures import opened

GENERATIONS = "/v1/images/generations"


def until(condition, seconds=5.0):
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_cancelled_when_its_client_disconnects(address, engine, stream):
    engine.delay = 60
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            address + GENERATIONS,
            json={"prompt": "a", "stream": stream},
            timeout=httpx.Timeout(10, read=0.3),
        )
    until(lambda: engine.outcomes == ["cancelled"])
    assert not engine.submissions


def test_a_stream_is_cancelled_between_its_previews(address, engine):
    engine.delay = 0.1
    body = {"prompt": "a", "stream": True, "partial_images": 3, "steps": 100}
    with httpx.stream("POST", address + GENERATIONS, json=body, timeout=10) as reply:
        lines = reply.iter_lines()
        assert next(lines) == "event: image_generation.partial_image"
    until(lambda: engine.outcomes == ["cancelled"])


def test_a_socket_that_is_reset_cancels(address, engine):
    engine.delay = 60
    host, port = address.removeprefix("http://").split(":")
    content = b'{"prompt": "a"}'
    head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        until(lambda: engine.seen)
    until(lambda: engine.outcomes == ["cancelled"])


def test_a_body_that_breaks_off_starts_nothing(address, engine):
    host, port = address.removeprefix("http://").split(":")
    head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(f'{head}Content-Length: 100\r\n\r\n{{"prompt"'.encode())
        time.sleep(0.1)
    assert httpx.get(f"{address}/health/ready").status_code == 200
    assert not engine.seen


def test_those_who_stay_get_their_pictures(address, engine):
    """Half of 40 clients go away at random moments."""
    engine.delay = 0.05

    async def draw(client, seed):
        body = {"prompt": "a", "seed": seed, "steps": 8, "stream": seed % 4 > 1}
        call = client.post(address + GENERATIONS, json=body)
        if seed % 2:
            return (await call).text
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01 * (seed % 30)):
                await call
        return None

    async def everyone():
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(limits=limits, timeout=30) as client:
            return await asyncio.gather(*(draw(client, seed) for seed in range(40)))

    for seed, text in enumerate(asyncio.run(everyone())):
        if text is not None:
            picture = text.partition('"b64_json":"')[2].partition('"')[0]
            assert opened(picture).getpixel((0, 0))[0] == seed
    until(lambda: not engine.submissions)
    assert engine.outcomes.count("finished") == 20
    assert set(engine.outcomes) <= {"finished", "cancelled"}


def test_a_silent_stream_is_kept_open(address, engine, monkeypatch):
    from eri_runtime.serve.http import sse

    monkeypatch.setattr(sse, "PING_AFTER", 0.05)
    monkeypatch.setattr(sse, "FIRST_WAIT", 0.01)
    engine.delay = 0.1
    reply = httpx.post(address + GENERATIONS, json={"prompt": "a", "stream": True}, timeout=10)
    assert reply.text.count(": ping\n\n") >= 4
    assert reply.text.count("event: ") == 1
