"""Contract tests with OpenAI's own client, sync and async, over a real socket."""

from __future__ import annotations

import asyncio
import io

import httpx
import openai
import pytest

from eri_runtime.errors import (
    DeadlineError,
    NonFiniteError,
    OutOfMemoryError,
    OverloadedError,
    StoppingError,
    UsageError,
    WorkerLostError,
)
from tests.support.http_pictures import hole, opened, png

FACTS = {"got": "that", "expected": "this"}


@pytest.fixture
def sdk(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        yield client


def overloaded(seconds=0.02):
    error = OverloadedError("queue", **FACTS)
    error.retry_after = seconds
    return error


def test_a_generation_has_its_pictures_and_usage(sdk, engine):
    reply = sdk.images.generate(
        model="tiny",
        prompt="a fox",
        n=2,
        size="64x32",
        extra_body={"seed": 7, "negative_prompt": "dog", "steps": 2, "guidance_scale": 3.5},
    )
    assert [opened(each.b64_json).getpixel((0, 0))[0] for each in reply.data] == [7, 8]
    assert opened(reply.data[0].b64_json).text["parameters"].startswith("a fox\nNegative prompt: d")
    assert (reply.size, reply.background, reply.output_format) == ("64x32", "opaque", "png")
    assert reply.usage.output_tokens == 2 * (64 // 16) * (32 // 16)
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    (request,) = engine.seen
    assert (request.model, request.prompt, request.negative_prompt) == ("tiny", "a fox", "dog")
    assert request.words == {
        "width": 64,
        "height": 32,
        "num_images_per_prompt": 2,
        "num_inference_steps": 2,
        "guidance_scale": 3.5,
        "seed": 7,
    }


def test_defaults_are_the_bundles(sdk, engine):
    reply = sdk.images.generate(prompt="a fox")
    assert opened(reply.data[0].b64_json).size == (64, 64)
    (request,) = engine.seen
    assert (request.model, request.words, request.loras, request.previews) == ("tiny", {}, {}, 0)


def test_a_stream_has_previews_and_the_picture(sdk):
    events = list(
        sdk.images.generate(prompt="a fox", stream=True, partial_images=3, extra_body={"seed": 9})
    )
    kinds = [each.type for each in events]
    assert kinds == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [each.partial_image_index for each in events[:3]] == [0, 1, 2]
    for each in events:
        assert opened(each.b64_json).getpixel((0, 0))[0] == 9
        assert (each.size, each.quality, each.output_format) == ("64x64", "auto", "png")
        assert each.background == "opaque"
        assert each.created_at > 0
    assert "parameters" in opened(events[-1].b64_json).text
    assert events[-1].usage.output_tokens == 16


def test_a_stream_without_previews_is_one_event(sdk):
    for more in ({}, {"partial_images": 0}):
        (event,) = sdk.images.generate(prompt="a fox", stream=True, **more)
        assert event.type == "image_generation.completed"


def test_an_edit_keeps_what_is_outside_its_mask(sdk, engine):
    reply = sdk.images.edit(
        image=("a.png", png((96, 64)), "image/png"),
        mask=("mask.png", hole((96, 64)), "image/png"),
        prompt="a fox",
        extra_body={"seed": 3, "sigmas": [1.0, 0.5], "strength": 0.75},
    )
    assert opened(reply.data[0].b64_json).size == (80, 48), "most of the default's pixels"
    words = engine.seen[0].words
    assert words["image"].getpixel((0, 0)) == (255, 0, 0)
    mask = words["mask"]
    assert (mask.mode, mask.size, mask.getbbox()) == ("L", (96, 64), (16, 16, 32, 32))
    assert (words["strength"], words["overlay"], words["sigmas"]) == (0.75, True, [1.0, 0.5])


def test_an_edit_takes_a_list_of_one_picture_and_streams(sdk, engine):
    events = list(
        sdk.images.edit(
            image=[io.BytesIO(png())], prompt="a fox", stream=True, partial_images=1, n=2
        )
    )
    kinds = [(each.type, each.image_index) for each in events]
    partial, completed = "image_edit.partial_image", "image_edit.completed"
    assert kinds == [(partial, 0), (partial, 1), (completed, 0), (completed, 1)]
    assert "mask" not in engine.seen[0].words
    assert "strength" not in engine.seen[0].words


def test_extras_of_an_edit_arrive_with_their_types(address, engine):
    engine.options = type(engine.options)(loras={"fox": "fox.safetensors", "a[b]": "x"})
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as sdk:
        sdk.images.edit(
            image=png(), prompt="a", extra_body={"loras": {"fox": 0.5}, "steps": 3, "seed": 4}
        )
        sdk.images.edit(image=png(), prompt="a", extra_body={"loras": ["fox:0.25"]})
        sdk.images.generate(prompt="a", extra_body={"loras": ["fox"], "timeout": 30})
    assert [each.loras for each in engine.seen] == [{"fox": 0.5}, {"fox": 0.25}, {"fox": 1.0}]
    assert (engine.seen[0].words["num_inference_steps"], engine.seen[0].words["seed"]) == (3, 4)
    assert engine.seen[2].timeout == 30


def test_a_url_is_fetched_without_a_key(sdk, address):
    reply = sdk.images.generate(prompt="a fox", response_format="url", output_format="webp")
    got = httpx.get(reply.data[0].url)
    assert reply.data[0].url.startswith(f"{address}/v1/images/files/")
    assert (got.status_code, got.headers["content-type"]) == (200, "image/webp")
    assert httpx.get(f"{address}/v1/images/files/other.webp").status_code == 404


def test_models_are_listed_and_found(sdk):
    (model,) = sdk.models.list()
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "eri")
    assert sdk.models.retrieve("tiny").created == model.created
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.models.retrieve("gpt/image")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("arguments", "kind", "code", "param"),
    [
        ({"model": "dall-e-3"}, openai.NotFoundError, "model_not_found", "model"),
        ({"size": "1x"}, openai.BadRequestError, "invalid_value", "size"),
        ({"n": 0}, openai.BadRequestError, "invalid_value", "n"),
        ({"extra_body": {"stepz": 3}}, openai.BadRequestError, "unknown_parameter", "stepz"),
        ({"extra_body": {"loras": {"x": 1}}}, openai.BadRequestError, "unknown_name", "loras"),
        ({"extra_body": {"seed": -2}}, openai.BadRequestError, "invalid_value", "seed"),
        ({"output_format": "gif"}, openai.BadRequestError, "invalid_value", "output_format"),
    ],
)
def test_an_invalid_request_is_the_clients_typed_error(sdk, arguments, kind, code, param):
    with pytest.raises(kind) as caught:
        sdk.images.generate(prompt="a fox", **arguments)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


def test_a_full_queue_is_tried_again(sdk, engine):
    engine.refusals = [overloaded(), overloaded()]
    assert sdk.images.generate(prompt="a fox").data
    assert not engine.refusals


def test_a_queue_that_stays_full_is_a_rate_limit_error(sdk, engine):
    engine.refusals = [overloaded(0.25), *map(overloaded, [0.01] * 5)]
    with pytest.raises(openai.RateLimitError) as caught:
        sdk.images.generate(prompt="a fox")
    assert len(engine.refusals) == 3, "two retries"
    headers = caught.value.response.headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "10")


def test_a_server_that_stops_is_tried_again(sdk, engine, monkeypatch):
    engine.refusals = [StoppingError("engine", **FACTS)]
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    assert sdk.images.generate(prompt="a fox").data
    assert waited == [5]


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        (DeadlineError("request", **FACTS), 504, openai.InternalServerError),
        (OutOfMemoryError("denoiser", **FACTS), 507, openai.InternalServerError),
        (NonFiniteError("latents", **FACTS), 500, openai.InternalServerError),
        (WorkerLostError("request", **FACTS), 500, openai.InternalServerError),
        (UsageError("sampler", **FACTS), 400, openai.BadRequestError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_that_would_come_again_is_not_tried_again(
    sdk, engine, fault, status, kind, stream
):
    engine.fault = fault
    with pytest.raises(kind) as caught:
        list(sdk.images.generate(prompt="a fox", stream=stream))
    assert caught.value.status_code == status
    assert "got that, expected this" in caught.value.message
    assert len(engine.seen) == 1


def test_a_failure_in_the_middle_of_a_stream_is_the_clients_error(sdk, engine):
    engine.delay = 0.5
    stream = sdk.images.generate(
        prompt="a fox", stream=True, partial_images=3, extra_body={"timeout": 1.2}
    )
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert caught.value.code == "deadline_exceeded"


def test_the_async_client_draws_at_once_and_in_streams(address, engine):
    async def draw():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as sdk:
            calls = [sdk.images.generate(prompt=f"{i}", extra_body={"seed": i}) for i in range(8)]
            replies = await asyncio.gather(*calls)
            stream = await sdk.images.generate(prompt="a fox", stream=True, partial_images=2)
            kinds = [event.type.partition(".")[2] async for event in stream]
            edited = await sdk.images.edit(image=png(), prompt="a fox", extra_body={"seed": 5})
            return replies, kinds, edited

    engine.delay = 0.02
    replies, kinds, edited = asyncio.run(draw())
    assert [opened(each.data[0].b64_json).getpixel((0, 0))[0] for each in replies] == [*range(8)]
    assert kinds == ["partial_image", "partial_image", "completed"]
    assert opened(edited.data[0].b64_json).getpixel((0, 0))[0] == 5
