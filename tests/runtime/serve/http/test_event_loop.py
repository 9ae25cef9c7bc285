"""No picture is read, changed, resized, pickled or written in the event loop."""

from __future__ import annotations

import asyncio

import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageFile

from eri_runtime.serve import Engine, EngineOptions
from eri_runtime.serve.http import ServerOptions, make_app
from eri_runtime.serve.http.pictures import to_base64
from tests.support.http_pictures import hole, png
from tests.support.serving import asked, events, run

# methods that take as long as the picture is large
SLOW = ("convert", "crop", "filter", "getchannel", "resize", "save", "tobytes", "__getstate__")
PICTURE, MASK = png((64, 48)), hole((64, 48))
GREY = png((64, 48), 255, "L")
REQUESTS = {
    "/v1/images/edits": {
        "data": {"prompt": "a fox", "size": "32x32", "steps": "2"},
        "files": {"image": PICTURE, "mask": MASK},
    },
    "/sdapi/v1/img2img": {
        "json": {
            "prompt": "a fox",
            "steps": 2,
            "width": 32,
            "height": 32,
            "init_images": [to_base64(PICTURE)],
            "mask": to_base64(GREY),
        }
    },
    "/eri/v1/generate": {
        "json": {
            "prompt": "a fox",
            "steps": 2,
            "width": 32,
            "height": 32,
            "image": to_base64(PICTURE),
            "mask": to_base64(GREY),
            "only_masked": True,
        }
    },
}


@pytest.fixture
def in_loop(monkeypatch):
    """The slow methods that were called where an event loop runs; and how many elsewhere."""
    found, elsewhere = [], []

    def watched(name, method):
        def call(self, *arguments, **words):
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                elsewhere.append(name)
            else:
                found.append(name)
            return method(self, *arguments, **words)

        return call

    for name in SLOW:
        monkeypatch.setattr(Image.Image, name, watched(name, getattr(Image.Image, name)))
    monkeypatch.setattr(ImageFile.ImageFile, "load", watched("load", ImageFile.ImageFile.load))
    yield found
    assert "resize" in elsewhere
    assert "__getstate__" in elsewhere


@pytest.fixture(scope="module")
def client(sd35_bundle):
    """A client of a server with a worker process."""
    engine = Engine({"sd35": sd35_bundle}, EngineOptions(backend="cpu", workers=1))
    with TestClient(make_app(engine, ServerOptions())) as client:
        yield client


@pytest.mark.parametrize("path", REQUESTS)
def test_of_a_request(path, client, in_loop):
    reply = client.post(path, **REQUESTS[path])
    assert reply.status_code == 200, reply.text
    assert reply.content
    assert in_loop == []


def test_of_an_engine_of_ones_own(sd35_bundle, in_loop):
    image = Image.effect_noise((300, 200), 50).convert("RGB")

    async def main():
        options = EngineOptions(backend="cpu", workers=1)
        async with Engine({"sd35": sd35_bundle}, options) as engine:
            request = asked(image=image, num_inference_steps=2, seed=1)
            _, soon = await events(await engine.submit_async(request))
            assert in_loop == []
            _, same = await events(engine.submit(request))
            assert "resize" in in_loop  # the way that the watch can find it
            assert soon.images[0].tobytes() == same.images[0].tobytes()

    run(main())
