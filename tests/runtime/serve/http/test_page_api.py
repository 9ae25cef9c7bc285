"""What the page asks the server for."""

from __future__ import annotations

import base64
import json

import pytest

from eri_runtime.errors import OverloadedError
from eri_runtime.serve import EngineOptions
from tests.support.fake_engine import FakeEngine
from tests.support.fake_models import give_models
from tests.support.http_pictures import opened, png

GENERATE = "/eri/v1/generate"
PHOTO = "data:image/png;base64," + base64.b64encode(png((64, 32))).decode()


@pytest.fixture
def engine(tmp_path):
    return give_models(FakeEngine(options=EngineOptions(loras={"ink": tmp_path / "ink"})))


def events(client, body):
    """The events of a drawing, as (name, data)."""
    reply = client.post(GENERATE, json=body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    frames = [frame.split("\n") for frame in reply.text.strip().split("\n\n")]
    return [(name[7:], json.loads(data[6:])) for name, data in frames]


def test_the_page_is_told_what_models_can_do(client, tmp_path):
    reply = client.get("/eri/v1/page")
    page = reply.json()
    assert [model["name"] for model in page["models"]] == ["flow", "vp"]
    flow = page["models"][0]
    assert (flow["sampler"], flow["steps"], flow["multiple"]) == ("flow_euler", 4, 16)
    assert flow["sides"]["width"] == {"least": 16, "most": 512}
    assert flow["edits"] is True
    assert {"name": "euler_a", "label": "Euler a"} in flow["samplers"]
    assert page["loras"] == ["ink"]
    assert "karras" in page["sigmas"]
    assert str(tmp_path) not in reply.text


def test_every_step_is_an_event_and_the_pictures_are_the_last(client):
    found = events(client, {"prompt": "a fox", "steps": 3, "seed": 2**64 - 1, "n": 2})
    assert [name for name, _ in found] == ["progress"] * 3 + ["pictures"]
    assert [(data["step"], data["total"]) for _, data in found[:3]] == [(1, 3), (2, 3), (3, 3)]
    assert found[0][1]["images"][0].startswith("data:image/jpeg;base64,")
    last = found[-1][1]
    assert last["seeds"][0] == str(2**64 - 1)
    texts = [opened(url.partition(",")[2]).info["parameters"] for url in last["images"]]
    assert texts == last["parameters"]
    assert len(texts) == 2


def test_fields_become_keywords(client, engine):
    body = {"image": PHOTO, "mask": PHOTO, "strength": 0.5, "only_masked": True, "width": 64}
    events(client, {**body, "loras": {"ink": 0.5}, "model": "vp", "negative_prompt": ""})
    request = engine.seen[-1]
    assert (request.model, request.negative_prompt, request.loras) == ("vp", None, {"ink": 0.5})
    words = dict(request.words)
    assert (words.pop("image").mode, words.pop("mask").mode) == ("RGB", "L")
    assert words == {"strength": 0.5, "padding_mask_crop": 32, "overlay": True, "width": 64}


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, {"model": "x"}, "model: got"),
        (400, {"loras": {"x": 1}}, "loras: got x"),
        (400, {"seed": 2**64}, "seed"),
        (400, {"seed": -1}, "seed"),
        (400, {"seed": str(2**64)}, "seed"),
        (400, {"seed": "٣"}, "seed"),
        (400, {"steps": "4"}, "steps"),
        (400, {"image": "/etc/hostname"}, "image"),
        (400, {"guidance_scale": "inf"}, "guidance_scale"),
        (400, {"unknown": 1}, "unknown"),
    ],
)
def test_a_refusal_has_a_status(client, engine, status, body, said):
    reply = client.post(GENERATE, json=body)
    assert reply.status_code == status
    assert said in reply.json()["error"]["message"]
    assert engine.seen == []


def test_a_later_failure_is_an_event(client, engine, monkeypatch):
    from eri_runtime.serve.http import sse

    monkeypatch.setattr(sse, "FIRST_WAIT", 0.0)
    engine.fault = OverloadedError("memory", got="too little", expected="enough")
    assert [name for name, _ in events(client, {})] == ["error"]
    assert "too little" in events(client, {})[0][1]["error"]["message"]


def test_the_page_and_its_files_have_a_strict_policy(client):
    index = client.get("/")
    assert index.status_code == 200
    assert "<script>" not in index.text
    assert " style=" not in index.text
    assert "onclick" not in index.text
    for name in ("style.css", "icon.svg", "main.js", "api.js", "form.js", "mask.js", "gallery.js"):
        reply = client.get(f"/page/{name}")
        assert reply.status_code == 200
        for each in (index, reply):
            policy = each.headers["content-security-policy"]
            assert "default-src 'none'; script-src 'self'" in policy
            assert "unsafe" not in policy
            assert each.headers["x-content-type-options"] == "nosniff"
    for name in ("../app.py", "%2e%2e/app.py", "..%2fapp.py"):
        assert client.get(f"/page/{name}").status_code == 404
