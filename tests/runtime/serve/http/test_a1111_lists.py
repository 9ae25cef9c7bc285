"""AUTOMATIC1111's options, lists and parameters of pictures, over a fake engine."""

from __future__ import annotations

import base64

import pytest
from fastapi.testclient import TestClient

from eri_runtime.serve import EngineOptions
from eri_runtime.serve.http import ServerOptions, make_app
from eri_runtime.serve.http.a1111_lists import EMPTY
from tests.support.fake_engine import FakeEngine
from tests.support.fake_models import give_models
from tests.support.http_pictures import opened, png

API = "/sdapi/v1"
PHOTO = base64.b64encode(png((64, 32))).decode()


@pytest.fixture
def engine(tmp_path):
    loras = {"ink": tmp_path / "ink.safetensors", "wax": tmp_path / "wax.safetensors"}
    return give_models(FakeEngine(options=EngineOptions(loras=loras)))


def test_options_choose_the_model(client, engine):
    options = client.get(f"{API}/options").json()
    assert options["sd_model_checkpoint"] == "flow"
    whole = {**options, "sd_model_checkpoint": "vp"}
    assert client.post(f"{API}/options", json=whole).status_code == 200
    assert client.get(f"{API}/options").json() == whole
    assert client.post(f"{API}/txt2img", json={"prompt": "a fox"}).status_code == 200
    assert engine.seen[-1].model == "vp"
    labels = [each["name"] for each in client.get(f"{API}/samplers").json()]
    assert "DDIM" in labels


@pytest.mark.parametrize(
    ("status", "change"),
    [
        (404, {"sd_model_checkpoint": "x"}),
        (404, {"sd_model_checkpoint": 3}),
        (400, {"sd_vae": "x"}),
        (400, {"samples_format": "jpg"}),
        (400, {"x": 1}),
    ],
)
def test_options_that_cannot_be_are_refused(client, status, change):
    before = client.get(f"{API}/options").json()
    reply = client.post(f"{API}/options", json={**before, **change})
    assert reply.status_code == status
    assert next(iter(change)) in reply.json()["detail"] or "model" in reply.json()["detail"]
    assert client.get(f"{API}/options").json() == before


def test_lists_have_the_shapes_that_clients_read(client):
    models = client.get(f"{API}/sd-models").json()
    assert [model["title"] for model in models] == ["flow", "vp"]
    keys = {"title", "model_name", "hash", "sha256", "filename", "config"}
    assert all(set(model) == keys for model in models)
    for name, known in (("samplers", "Euler a"), ("schedulers", "karras"), ("loras", "ink")):
        assert known in [each["name"] for each in client.get(f"{API}/{name}").json()]
    for name, content in EMPTY.items():
        assert client.get(f"{API}/{name}").json() == content
    assert set(client.get(f"{API}/memory").json()) == {"ram", "cuda"}
    for name in ("refresh-loras", "refresh-checkpoints"):
        assert client.post(f"{API}/{name}").status_code == 200


def test_no_reply_names_a_path_of_the_server(client, engine, tmp_path):
    names = (
        "options",
        "sd-models",
        "loras",
        "samplers",
        "schedulers",
        "memory",
        "progress",
        *EMPTY,
    )
    for name in names:
        text = client.get(f"{API}/{name}").text
        assert str(tmp_path) not in text
        assert "/nowhere" not in text


def test_png_info_reads_what_pictures_carry(client):
    body = {"prompt": "a fox", "negative_prompt": "bad", "seed": 3}
    picture = client.post(f"{API}/txt2img", json=body).json()["images"][0]
    found = client.post(f"{API}/png-info", json={"image": picture}).json()
    assert found["info"] == opened(picture).info["parameters"]
    assert found["parameters"]["Prompt"] == "a fox"
    assert found["parameters"]["Seed"] == "3"
    for form in ("jpeg", "webp"):
        body = {"prompt": "a fox", "output_format": form}
        picture = client.post("/v1/images/generations", json=body).json()["data"][0]["b64_json"]
        found = client.post(f"{API}/png-info", json={"image": picture}).json()
        assert found["parameters"]["Prompt"] == "a fox"
    empty = client.post(f"{API}/png-info", json={"image": PHOTO}).json()
    assert (empty["info"], empty["parameters"]) == ("", {})
    assert client.post(f"{API}/png-info", json={"image": "AAAA"}).status_code == 400


def test_an_api_key_is_a_password(engine):

    with TestClient(make_app(engine, ServerOptions(api_keys=["secret"]))) as client:
        assert client.get(f"{API}/options").status_code == 401
        assert client.get(f"{API}/options", auth=("anyone", "secret")).status_code == 200
