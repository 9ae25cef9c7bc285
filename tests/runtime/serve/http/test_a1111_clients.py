"""AUTOMATIC1111's API as its clients call it: webuiapi, Open WebUI and SillyTavern."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import webuiapi
from PIL import Image

from eri_runtime.serve import EngineOptions
from eri_runtime.serve.http import ServerOptions, make_app
from tests.support.fake_engine import FakeEngine
from tests.support.fake_models import give_models
from tests.support.http_pictures import opened
from tests.support.http_server import listening

API = "/sdapi/v1"
SLOW = 0.1  # seconds a step


@pytest.fixture
def engine(tmp_path):
    return give_models(FakeEngine(options=EngineOptions(loras={"ink": tmp_path / "ink"})))


@pytest.fixture
def web(address):
    """A client of the package `webuiapi`."""
    api = webuiapi.WebUIApi(baseurl=address + API)
    with api.session:
        yield api


@contextmanager
def in_background(call):
    """Runs a call in a thread; gives a list that gets its result or exception."""
    ended = []

    def run():
        try:
            ended.append(call())
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield ended
    thread.join(20)
    assert len(ended) == 1


def until(condition):
    """Waits for a condition, and returns what it gives."""
    end = time.monotonic() + 10
    while not (found := condition()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
    return found


def test_webuiapi_draws_with_its_own_defaults(web, engine):
    result = web.txt2img(prompt="a fox <lora:ink:0.5>", negative_prompt="bad", seed=3, steps=2)
    assert result.image.size == (512, 512)
    assert result.info["all_seeds"] == [3]
    assert result.image.info["parameters"] == result.info["infotexts"][0]
    assert result.parameters["sampler_name"] == "Euler a"
    request = engine.seen[-1]
    assert (request.prompt, request.loras) == ("a fox", {"ink": 0.5})
    assert request.words["sampler_options"] == {"eta": 1.0, "s_noise": 1}


def test_webuiapi_draws_several_with_another_model(web, engine):
    web.util_set_model("vp")
    assert web.util_get_current_model() == "vp"
    assert web.util_get_model_names() == ["flow", "vp"]
    result = web.txt2img(
        prompt="a fox",
        batch_size=2,
        n_iter=2,
        seed=7,
        steps=1,
        width=64,
        height=64,
        sampler_name="DDIM",
        scheduler="karras",
    )
    assert len(result.images) == 4
    assert result.info["all_seeds"] == [7, 8, 9, 10]
    request = engine.seen[-1]
    assert (request.model, request.words["sampler"], request.words["sigmas"]) == (
        "vp",
        "ddim",
        "karras",
    )


def test_webuiapi_starts_from_a_picture_with_a_mask(web, engine):
    picture = Image.new("RGB", (64, 64), "red")
    mask = Image.new("L", (64, 64), 255)
    result = web.img2img(
        images=[picture],
        mask_image=mask,
        prompt="a fox",
        steps=2,
        width=64,
        height=64,
        inpaint_full_res_padding=16,
    )
    assert result.image.size == (64, 64)
    words = engine.seen[-1].words
    assert (words["strength"], words["padding_mask_crop"]) == (0.75, 16)
    assert words["image"].tobytes() == picture.tobytes()
    assert words["mask"].getpixel((32, 32)) == 255


def test_webuiapi_reads_the_lists_and_a_pngs_parameters(web):
    assert "Euler" in [each["name"] for each in web.get_samplers()]
    assert "karras" in [each["name"] for each in web.get_schedulers()]
    assert [each["name"] for each in web.get_loras()] == ["ink"]
    for empty in ("upscalers", "latent_upscale_modes", "sd_vae", "hypernetworks"):
        assert getattr(web, f"get_{empty}")() == []
    for empty in ("face_restorers", "prompt_styles", "realesrgan_models"):
        assert getattr(web, f"get_{empty}")() == []
    assert web.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert web.get_scripts() == {"txt2img": [], "img2img": []}
    assert set(web.get_memory()) == {"ram", "cuda"}
    web.refresh_checkpoints()
    drawn = web.txt2img(prompt="a fox", steps=1, width=64, height=64)
    assert web.png_info(drawn.image).info == drawn.info["infotexts"][0]


def test_webuiapi_sees_the_progress(web, engine):
    assert web.get_progress()["state"]["job_count"] == 0
    engine.delay = SLOW
    with in_background(lambda: web.txt2img(prompt="a fox", steps=20, width=64, height=64)) as ended:
        found = until(lambda: (now := web.get_progress())["current_image"] and now)
        assert 0 < found["progress"] < 1
        assert found["eta_relative"] > 0
        assert found["state"]["job_count"] == 1
        assert found["state"]["sampling_steps"] == 20
        assert opened(found["current_image"]).size == (64, 64)
        hidden = web.custom_get("sdapi/v1/progress?skip_current_image=true", baseurl=False)
        assert hidden["current_image"] is None
    assert ended[0].image.size == (64, 64)
    idle = web.get_progress()
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0, 0, None)


def test_interrupt_ends_all_and_skip_the_oldest(web, engine):
    engine.delay = SLOW

    def draw():
        return web.txt2img(prompt="a fox", steps=30, width=64, height=64)

    def jobs():
        return web.get_progress()["state"]["job_count"]

    with in_background(draw) as first, in_background(draw) as second:
        until(lambda: jobs() == 2)
        assert web.skip() == {}
        until(lambda: jobs() == 1)
        assert engine.outcomes == ["cancelled"]
        assert web.interrupt() == {}
    for ended in (first, second):
        assert isinstance(ended[0], RuntimeError)
        assert ended[0].args[0] == 499
    assert engine.outcomes == ["cancelled", "cancelled"]
    assert jobs() == 0


def test_the_interrupt_of_one_api_leaves_the_other_alone(address, web, engine):
    engine.delay = SLOW
    body = {"prompt": "a fox", "steps": 5}
    post = lambda: httpx.post(f"{address}/v1/images/generations", json=body, timeout=20)  # noqa: E731
    with in_background(post) as ended:
        until(lambda: engine.seen)
        assert web.get_progress()["state"]["job_count"] == 0
        web.interrupt()
    assert ended[0].status_code == 200
    assert engine.outcomes == ["finished"]


def test_a_client_that_goes_away_cancels(address, engine):
    engine.delay = 60
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}{API}/txt2img", json={}, timeout=httpx.Timeout(10, read=0.3))
    until(lambda: engine.outcomes)
    assert engine.outcomes == ["cancelled"]
    assert httpx.get(f"{address}{API}/progress").json()["state"]["job_count"] == 0


def test_open_webui(engine):
    """Options, models, the whole options posted back, and a picture; with Basic authentication."""
    with (
        listening(make_app(engine, ServerOptions(api_keys=["secret"]))) as address,
        httpx.Client(base_url=address + API, auth=("user", "secret")) as client,
    ):
        assert httpx.get(f"{address}{API}/options").status_code == 401
        options = client.get("/options").raise_for_status().json()
        titles = [each["title"] for each in client.get("/sd-models").json()]
        assert options["sd_model_checkpoint"] in titles
        options["sd_model_checkpoint"] = titles[1]
        client.post("/options", json=options).raise_for_status()
        body = {"prompt": "a fox", "batch_size": 1, "width": 512, "height": 512}
        reply = client.post("/txt2img", json={**body, "steps": 2, "negative_prompt": "bad"})
        assert reply.raise_for_status().json()["info"]
        assert opened(reply.json()["images"][0]).size == (512, 512)
    assert engine.seen[-1].model == titles[1]


def test_sillytavern(address, engine):
    """Lists, a model, polling until no job is left, a picture, and its interrupt."""
    with httpx.Client(base_url=address + API) as client:
        for name in ("upscalers", "latent-upscale-modes", "sd-vae", "sd-modules"):
            assert client.get(f"/{name}").raise_for_status().json() == []
        samplers = [each["name"] for each in client.get("/samplers").json()]
        schedulers = [each["name"] for each in client.get("/schedulers").json()]
        titles = [each["title"] for each in client.get("/sd-models").json()]
        client.post("/options", json={"sd_model_checkpoint": titles[0]}).raise_for_status()
        progress = client.get("/progress").json()
        assert (progress["progress"], progress["state"]["job_count"]) == (0, 0)
        body = {
            "prompt": "a fox",
            "negative_prompt": "bad",
            "sampler_name": samplers[0],
            "scheduler": "normal",
            "steps": 2,
            "cfg_scale": 7,
            "width": 512,
            "height": 512,
            "seed": -1,
            "restore_faces": False,
            "enable_hr": False,
            "hr_upscaler": "Latent",
            "hr_scale": 1.5,
            "hr_additional_modules": [],
            "denoising_strength": 0.7,
            "hr_second_pass_steps": 0,
            "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"},
            "override_settings_restore_afterwards": True,
            "clip_skip": 1,
            "save_images": True,
            "send_images": True,
            "do_not_save_grid": False,
            "do_not_save_samples": False,
        }
        assert body["scheduler"] in schedulers
        reply = client.post("/txt2img", json=body).raise_for_status()
        assert opened(reply.json()["images"][0]).size == (512, 512)
        assert client.post("/interrupt").raise_for_status().json() == {}
    assert engine.seen[-1].words["spacing"] == "linspace"
