"""The server on a Ray cluster of this machine: HTTP, back-pressure, disconnects, replicas."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import ray
from PIL import Image
from ray import serve

from eri_runtime.errors import UnknownNameError
from eri_runtime.serve.ray_app import NAME, RETRY, build
from tests.support.free_port import free_port
from tests.support.ray_processes import wait_until_gone

ROOT = Path(__file__).parents[2]
ENGINE = "tests.ray.slow_engine:SlowEngine"
GENERATE = "/v1/images/generations"
ASKED = {"prompt": "a red heart", "response_format": "b64_json", "size": "64x64", "seed": 7}
MODEL = "serve_multiplexed_model_id"
SLOW = 240  # seconds; a replica takes a minute to start on a busy machine of two cores
WAIT = httpx.Timeout(SLOW)


@pytest.fixture(scope="module")
def address(ray_folder):
    """The address of Serve on a new cluster, without any application."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=str(ray_folder))
    try:
        port = free_port()
        serve.start(http_options={"port": port})
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()
    assert wait_until_gone(ray_folder) == []


@contextmanager
def deployed(**args):
    """The application while it is deployed."""
    given = {"bundles": {"tiny": "/nowhere/tiny"}, "cpus": 0.1, "engine_class": ENGINE, **args}
    serve.run(build(given), name=NAME, route_prefix="/")
    try:
        yield
    finally:
        serve.delete(NAME)


@pytest.fixture(scope="module")
def one(address):
    """The address of one replica that accepts three requests at once."""
    with deployed(engine={"queue": 3, "running": 2}):
        yield address


def picture_of(reply: httpx.Response) -> Image.Image:
    """The picture of a reply."""
    assert reply.status_code == 200, reply.text
    return Image.open(io.BytesIO(base64.b64decode(reply.json()["data"][0]["b64_json"])))


def process_of(reply: httpx.Response) -> int:
    """The process of the replica that drew a picture."""
    return int(picture_of(reply).text["parameters"].rpartition("Process: ")[2])


def count(address: str, outcome: str) -> float:
    """How many requests have ended so, by the metrics."""
    text = httpx.get(f"{address}/metrics", timeout=WAIT).text
    found = re.findall(rf'^eri_requests_total{{.*outcome="{outcome}".*}} ([0-9.e+]+)$', text, re.M)
    return sum(map(float, found))


def is_served(address: str, headers: dict[str, str]) -> bool:
    """Whether an application answers."""
    return httpx.get(f"{address}/v1/models", headers=headers, timeout=WAIT).status_code == 200


def wait_for(condition, seconds=30):
    """Waits until a condition holds; returns whether it does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_a_picture_comes_through_ray(one):
    assert httpx.get(f"{one}/health/ready", timeout=WAIT).status_code == 200
    reply = httpx.post(f"{one}{GENERATE}", json=ASKED, timeout=WAIT)
    image = picture_of(reply)
    assert image.size == (64, 64)
    assert image.getpixel((0, 0)) == (7, 0, 128)  # the seed's colour
    assert process_of(reply) != os.getpid()


def test_errors_are_the_servers_own(one):
    reply = httpx.post(f"{one}{GENERATE}", json={**ASKED, "model": "x"}, timeout=WAIT)
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "model_not_found"


def test_a_stream_gives_previews_while_the_picture_is_drawn(one):
    words = {**ASKED, "stream": True, "partial_images": 2}
    times, kinds = [], []
    with httpx.stream("POST", f"{one}{GENERATE}", json=words, timeout=WAIT) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                kinds.append(json.loads(line.removeprefix("data: "))["type"])
                times.append(time.monotonic())
    partial, completed = "image_generation.partial_image", "image_generation.completed"
    assert kinds == [partial, partial, completed]
    assert times[-1] - times[0] > 0.2  # a step or two lie between: nothing collected them


def test_over_the_limit_clients_get_429_and_when_to_retry(one):
    async def burst():
        async with httpx.AsyncClient(timeout=WAIT) as client:
            asked = [client.post(f"{one}{GENERATE}", json=ASKED) for _ in range(16)]
            return await asyncio.gather(*asked)

    replies = asyncio.run(burst())
    statuses = Counter(reply.status_code for reply in replies)
    assert statuses.keys() == {200, 429}
    assert statuses[200] >= 2
    for reply in replies:
        if reply.status_code == 429:
            assert 0 < int(reply.headers["retry-after"]) <= RETRY
    assert picture_of(httpx.post(f"{one}{GENERATE}", json=ASKED, timeout=WAIT)).size == (64, 64)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_cancels_its_request(one, stream):
    before = count(one, "cancelled")
    words = {**ASKED, "steps": 40, "stream": stream, "partial_images": 3 if stream else 0}

    async def leave():
        async with httpx.AsyncClient(timeout=WAIT) as client:
            task = asyncio.create_task(client.post(f"{one}{GENERATE}", json=words))
            await asyncio.sleep(1)
            task.cancel()

    asyncio.run(leave())
    assert wait_for(lambda: count(one, "cancelled") == before + 1, 5)  # it had nine seconds to go


def test_a_killed_replica_comes_back(one):
    first = process_of(httpx.post(f"{one}{GENERATE}", json=ASKED, timeout=WAIT))
    psutil.Process(first).kill()
    replies = []

    def drawn():
        replies.append(httpx.post(f"{one}{GENERATE}", json=ASKED, timeout=WAIT))
        return replies[-1].status_code == 200

    assert wait_for(drawn, SLOW)
    assert process_of(replies[-1]) != first


def test_the_header_leads_to_the_replica_that_has_the_bundle(address):
    bundles = {"tiny": "/nowhere/tiny", "small": "/nowhere/small"}
    with deployed(bundles=bundles, min_replicas=2, max_replicas=2):
        homes = {}
        for name in bundles:
            words, headers = {**ASKED, "model": name}, {MODEL: name}
            drawn = [
                process_of(
                    httpx.post(f"{address}{GENERATE}", json=words, headers=headers, timeout=WAIT)
                )
                for _ in range(6)
            ]
            homes[name] = drawn
    for name, drawn in homes.items():
        assert len(set(drawn[1:])) == 1, f"{name} moved: {drawn}"  # the first one tells the router


def test_a_config_file_sets_options_and_overrides_ray_s(address):
    """As `serve run` reads it; two requests at once are the aim, so 24 need a second replica."""
    command = [
        Path(sys.executable).with_name("serve"),
        "run",
        "--non-blocking",
        "tests/ray/config.yaml",
    ]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    headers = {"authorization": "Bearer a-key"}
    try:
        assert wait_for(lambda: is_served(address, headers), SLOW)
        assert httpx.post(f"{address}{GENERATE}", json=ASKED, timeout=WAIT).status_code == 401
        many = {**ASKED, "steps": 51}
        refused = httpx.post(f"{address}{GENERATE}", json=many, headers=headers, timeout=WAIT)
        assert refused.status_code == 400

        async def load():
            async with httpx.AsyncClient(timeout=WAIT, headers=headers) as client:
                asked = [client.post(f"{address}{GENERATE}", json=ASKED) for _ in range(24)]
                return await asyncio.gather(*asked)

        used = set()

        def has_grown():
            used.update(map(process_of, asyncio.run(load())))
            return len(used) == 2

        assert wait_for(has_grown, SLOW)
    finally:
        serve.delete(NAME)


def test_a_class_that_is_no_engine_is_refused_before_anything_starts(address):
    with pytest.raises(UnknownNameError, match=r"engine_class: got 'tests\.ray\.nothing:Engine'"):
        build({"bundles": "/nowhere/tiny", "engine_class": "tests.ray.nothing:Engine"})
    assert serve.status().applications == {}
