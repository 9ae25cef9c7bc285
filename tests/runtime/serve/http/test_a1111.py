"""AUTOMATIC1111's API over a fake engine: what requests become, and what clients are told."""

from __future__ import annotations

import base64
import io
import json

import pytest
from PIL import Image

from eri_runtime.errors import OverloadedError
from eri_runtime.serve import EngineOptions, PictureRequest
from eri_runtime.serve.http.a1111_models import ImageToImage, TextToImage
from tests.support.fake_engine import FakeEngine
from tests.support.fake_models import give_models
from tests.support.http_pictures import opened

API = "/sdapi/v1"
JSON = {"content-type": "application/json"}


@pytest.fixture
def engine(tmp_path):
    loras = {"ink": tmp_path / "ink.safetensors", "wax": tmp_path / "wax.safetensors"}
    return give_models(FakeEngine(options=EngineOptions(loras=loras)))


@pytest.fixture
def asked(client, engine):
    """Sends a body to an endpoint, and gives the request that the engine saw."""

    def send(body, endpoint="txt2img") -> PictureRequest:
        reply = client.post(f"{API}/{endpoint}", json=body)
        assert reply.status_code == 200, reply.text
        return engine.seen[-1]

    return send


def encoded(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


PHOTO = encoded(Image.new("RGB", (64, 32), "red"))


def test_a_bare_prompt_has_the_bundles_defaults(client, engine):
    reply = client.post(f"{API}/txt2img", json={"prompt": "a fox"})
    assert reply.status_code == 200
    assert engine.seen[-1].words == {"num_images_per_prompt": 1}
    assert engine.seen[-1].prompt == "a fox"
    assert set(reply.json()) == {"images", "parameters", "info"}


def test_pictures_carry_the_parameters_that_info_repeats(client):
    body = {"prompt": "a fox", "negative_prompt": "bad", "seed": 5, "batch_size": 2, "n_iter": 2}
    reply = client.post(f"{API}/txt2img", json=body).json()
    info = json.loads(reply["info"])
    assert info["seed"] == 5
    assert info["all_seeds"] == [5, 6, 7, 8]
    assert [opened(each).info["parameters"] for each in reply["images"]] == info["infotexts"]
    assert (info["width"], info["height"], info["sampler_name"]) == (64, 64, "Euler")
    assert reply["parameters"]["prompt"] == "a fox"


def test_every_field_becomes_its_keyword(asked):
    request = asked(
        {
            "prompt": "a fox <lora:ink:0.5>",
            "negative_prompt": "bad",
            "seed": 7,
            "sampler_name": "Euler a",
            "scheduler": "Karras",
            "steps": 3,
            "cfg_scale": 5.5,
            "width": 128,
            "height": 64,
            "eta": 0.5,
            "s_churn": 3,
            "timeout": 20,
        }
    )
    assert (request.model, request.prompt, request.negative_prompt) == ("flow", "a fox", "bad")
    assert request.loras == {"ink": 0.5}
    assert request.timeout == 20
    assert request.previews > 0
    assert request.words == {
        "prompt_syntax": "a1111",
        "seed": 7,
        "sampler": "euler_a",
        "sigmas": "karras",
        "num_inference_steps": 3,
        "guidance_scale": 5.5,
        "width": 128,
        "height": 64,
        "num_images_per_prompt": 1,
        "sampler_options": {"eta": 0.5},
    }


def test_a_random_seed_and_an_old_label(asked):
    words = asked({"seed": -1, "sampler_index": "DPM++ 2M Karras", "scheduler": None}).words
    assert words == {
        "prompt_syntax": "a1111",
        "sampler": "dpmpp_2m",
        "sigmas": "karras",
        "num_images_per_prompt": 1,
    }


def test_a_request_may_name_its_model(client, asked):
    model = {"sd_model_checkpoint": "vp"}
    body = {"override_settings": model, "sampler_name": "Euler"}
    request = asked(body)
    assert (request.model, request.words["sampler"]) == ("vp", "euler")
    assert client.get(f"{API}/options").json()["sd_model_checkpoint"] == "flow"
    asked({**body, "override_settings_restore_afterwards": False})
    assert client.get(f"{API}/options").json()["sd_model_checkpoint"] == "vp"


def test_heuns_options_and_no_limit(asked):
    body = {"override_settings": {"sd_model_checkpoint": "vp"}, "sampler_name": "Heun"}
    options = asked({**body, "s_churn": 2, "s_tmax": 0, "s_noise": 1}).words["sampler_options"]
    assert options == {"s_churn": 2, "s_tmax": float("inf"), "s_noise": 1}


def test_a_picture_to_start_from(asked):
    request = asked({"init_images": [PHOTO]}, "img2img")
    assert request.words["image"].size == (64, 32)
    assert request.words["strength"] == 0.75
    assert "mask" not in request.words
    two = asked({"init_images": [PHOTO, f"data:image/png;base64,{PHOTO}"]}, "img2img")
    assert [image.mode for image in two.words["image"]] == ["RGB", "RGB"]


def test_a_mask_is_white_where_to_repaint(asked):
    mask = Image.new("L", (64, 32), 0)
    mask.paste(255, (0, 0, 32, 32))
    body = {"init_images": [PHOTO], "mask": encoded(mask), "inpaint_full_res_padding": 8}
    words = asked({**body, "mask_blur": 0}, "img2img").words
    assert (words["padding_mask_crop"], words["overlay"]) == (8, True)
    assert words["mask"].tobytes() == mask.tobytes()
    words = asked(
        {**body, "mask_blur": 0, "inpainting_mask_invert": 1, "inpaint_full_res": False}, "img2img"
    ).words
    assert "padding_mask_crop" not in words
    assert (words["mask"].getpixel((0, 0)), words["mask"].getpixel((63, 0))) == (0, 255)
    blurred = asked(body, "img2img").words["mask"]
    assert 0 < blurred.getpixel((32, 16)) < 255


def test_a_transparent_mask_repaints_what_is_opaque(asked):
    mask = Image.new("RGBA", (64, 32), (0, 0, 0, 0))
    mask.paste((0, 0, 0, 255), (0, 0, 32, 32))
    body = {"init_images": [PHOTO], "mask": encoded(mask), "mask_blur": 0}
    words = asked(body, "img2img").words
    assert (words["mask"].getpixel((0, 0)), words["mask"].getpixel((63, 0))) == (255, 0)


def test_resize_mode_1_cuts_to_the_proportions(asked):
    body = {"init_images": [PHOTO], "width": 64, "height": 64}
    assert asked({**body, "resize_mode": 1}, "img2img").words["image"].size == (32, 32)
    assert asked(body, "img2img").words["image"].size == (64, 32)


def test_the_reply_repeats_pictures_only_if_asked(client):
    body = {"init_images": [PHOTO], "send_images": False}
    reply = client.post(f"{API}/img2img", json=body).json()
    assert reply["images"] == []
    assert reply["parameters"]["init_images"] is None
    reply = client.post(f"{API}/img2img", json={**body, "include_init_images": True}).json()
    assert reply["parameters"]["init_images"] == [PHOTO]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, {"sampler_name": "Eular"}, "Sampler not found: sampler_name: got 'Eular'"),
        (404, {"override_settings": {"sd_model_checkpoint": "x"}}, "expected one of flow, vp"),
        (400, {"scheduler": "turbo"}, "scheduler: got 'turbo'"),
        (400, {"prompt": "<lora:x:1>"}, "lora: got 'x', expected one of ink, wax"),
        (400, {"override_settings": {"sd_vae": "other"}}, "sd_vae"),
        (400, {"override_settings": {"nonsense": 1}}, "option: got 'nonsense'"),
        (400, {"enable_hr": True}, "enable_hr: got True"),
        (400, {"restore_faces": True}, "restore_faces"),
        (400, {"tiling": True}, "tiling"),
        (400, {"styles": ["one"]}, "styles"),
        (400, {"subseed_strength": 0.5}, "subseed_strength"),
        (400, {"script_name": "x/y plot"}, "script_name"),
        (400, {"alwayson_scripts": {"controlnet": {"args": [{}]}}}, "alwayson_scripts"),
        (400, {"clip_skip": 3}, "clip_skip"),
        (400, {"batch_size": 0}, "batch_size"),
        (400, {"cfg_scale": "nan"}, "cfg_scale"),
        (400, {"cfg_scale": "1e999"}, "cfg_scale"),
        (400, {"width": 10**400}, "width"),
        (400, {"timeout": 0}, "timeout"),
        (400, {"override_settings": {"sd_checkpoint_hash": 1}}, "sd_checkpoint_hash"),
        (400, {"steps": "many"}, "steps"),
        (400, [], "body"),
    ],
)
def test_a_refusal_says_what_was_wrong(client, engine, status, body, said):
    reply = client.post(f"{API}/txt2img", json=body)
    assert reply.status_code == status
    assert set(reply.json()) == {"error", "detail", "body", "errors"}
    assert said in reply.json()["detail"]
    assert engine.seen == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("init_images", []),
        ("init_images", ["/etc/hostname"]),
        ("init_images", ["no base64!"]),
        ("init_images", [base64.b64encode(b"no picture").decode()]),
        ("mask", "AAAA"),
        ("mask_blur", -1),
        ("mask_blur", 65),
        ("inpaint_full_res_padding", -1),
        ("inpainting_mask_invert", 2),
        ("inpainting_fill", 2),
        ("resize_mode", 2),
        ("initial_noise_multiplier", 1.1),
    ],
)
def test_a_bad_edit_is_refused(client, engine, field, value):
    body = {"init_images": [PHOTO], "mask": PHOTO, field: value}
    reply = client.post(f"{API}/img2img", json=body)
    assert reply.status_code == 400
    assert field in reply.json()["detail"]
    assert engine.seen == []


STRANGE = ("\ud800", float("nan"), float("-inf"), 10**400, 1e308, True, "x" * 2000, None, [], {})


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: repr(value)[:12])
def test_strange_values_are_taken_or_refused_but_break_nothing(client, value):
    statuses = set()
    for name in {**TextToImage.model_fields, **ImageToImage.model_fields}:
        for endpoint in ("txt2img", "img2img"):
            body = json.dumps({"init_images": [PHOTO], "mask": PHOTO, "width": 64, name: value})
            reply = client.post(f"{API}/{endpoint}", content=body, headers=JSON)
            assert reply.status_code in (200, 400, 404), (name, reply.text)
            statuses.add(reply.status_code)
    for endpoint, name in (("options", "sd_model_checkpoint"), ("png-info", "image")):
        body = json.dumps({name: value})
        reply = client.post(f"{API}/{endpoint}", content=body, headers=JSON)
        assert reply.status_code in (200, 400, 404), reply.text
    assert 400 in statuses


def test_a_full_queue_says_when_to_try_again(client, engine):
    error = OverloadedError("queue", got="a request", expected="room")
    error.retry_after = 3.5
    engine.refusals.append(error)
    reply = client.post(f"{API}/txt2img", json={})
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "4")
    assert "room" in reply.json()["errors"]


def test_more_pictures_than_may_be_made_are_refused_before_one_is_read(client):
    body = {"init_images": ["no picture"] * 11}
    reply = client.post(f"{API}/img2img", json=body)
    assert reply.status_code == 400
    assert "init_images: got 11 pictures, expected at most 10" in reply.json()["detail"]


def test_a_prompt_that_is_too_long_is_refused_before_tags_are_searched(client):
    reply = client.post(f"{API}/txt2img", json={"prompt": "<lora:" * 10_000})
    assert reply.status_code == 400
    assert "prompt: got 60000 characters, expected at most 32000" in reply.json()["detail"]


def test_text_that_no_reply_can_carry_is_refused(client, engine):
    body = r'{"override_settings": {"sd_checkpoint_hash": "\ud800"}}'
    reply = client.post(f"{API}/txt2img", content=body, headers=JSON)
    assert reply.status_code == 400
    assert "sd_checkpoint_hash" in reply.json()["detail"]
    assert not engine.seen
