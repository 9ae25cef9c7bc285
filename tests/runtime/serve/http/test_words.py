"""What the server hands to an engine is what a pipeline of a real bundle takes."""

from __future__ import annotations

import asyncio
import io

import pytest
from PIL import Image

import eri_runtime as eri
from eri_runtime.errors import UsageError
from eri_runtime.serve import EngineOptions, Model
from eri_runtime.serve.http.openai_fields import EditFields, GenerationFields
from eri_runtime.serve.http.openai_requests import edit, generation
from eri_runtime.serve.http.openai_usage import TokenCounter
from eri_runtime.serve.http.pictures import encode, read_base64, to_base64
from tests.support.fake_engine import FakeEngine
from tests.support.http_pictures import hole, opened, png


@pytest.fixture(params=["sd35_bundle", "sdxl_bundle", "flux_bundle"])
def pipe(request):
    with eri.load(request.getfixturevalue(request.param)) as pipe:
        yield pipe


@pytest.fixture
def real(pipe):
    """An engine that has the bundle of `pipe`."""
    engine = FakeEngine()
    engine.models = {"real": Model(name="real", bundle=pipe.bundle, created=0)}
    return engine


def taken(pipe, request):
    """The request of the pipeline; raises for a word that it does not take."""
    return pipe.request(request.prompt, negative_prompt=request.negative_prompt, **request.words)


def test_a_generation_is_a_request_of_the_pipeline(pipe, real):
    fields = GenerationFields(
        prompt="a red heart",
        negative_prompt="blurry",
        n=2,
        size="32x32",
        steps=3,
        cfg_scale=2.5,
        seed=7,
        sigmas="simple" if pipe.bundle.family != "sdxl" else "karras",
        timeout=5,
    )
    request = taken(pipe, generation(real, fields, None))
    assert (request.steps, request.height, request.width) == (3, 32, 32)
    assert request.seeds == (7, 8)


def test_a_prompt_in_a1111s_syntax_is_read_and_gives_its_loras(pipe, tmp_path):
    engine = FakeEngine(options=EngineOptions(loras={"ink": tmp_path / "ink", "wax": tmp_path}))
    engine.models = {"real": Model(name="real", bundle=pipe.bundle, created=0)}
    fields = GenerationFields(
        prompt="a (red:1.3) heart <lora:ink:0.5> AND a fox :0.5",
        prompt_syntax="a1111",
        loras={"ink": 1.0, "wax": 0.2},
    )
    asked = generation(engine, fields, None)
    assert asked.loras == {"ink": 0.5, "wax": 0.2}
    request = taken(pipe, asked)
    assert request.syntax == "a1111"
    assert [weight for _, weight in request.prompts[0].parts] == [1, 0.5]
    plain = generation(engine, fields.model_copy(update={"prompt_syntax": None}), None)
    assert (plain.prompt, plain.loras["ink"]) == (fields.prompt, 1.0)
    with pytest.raises(UsageError, match="lora: got 'x'"):
        generation(engine, fields.model_copy(update={"prompt": "<lora:x>"}), None)


@pytest.mark.parametrize("size", [(64, 64), (50, 41), (1000, 30), (7, 7), (300, 500)])
def test_an_edit_of_any_size_is_a_request_of_the_pipeline(pipe, real, size):
    image, mask = (Image.open(io.BytesIO(each(size))) for each in (png, hole))
    mask.paste((0, 0, 0, 0), (0, 0, 5, 5))
    for fields in (
        EditFields(prompt="a red heart"),
        EditFields(prompt="a", strength=0.5, overlay=False),
    ):
        for each in (None, mask):
            request = taken(pipe, edit(real, fields, None, image, each))
            assert request.edit.strength == (fields.strength or (0.6 if each is None else 1.0))
            whole = pipe.bundle.defaults.width * pipe.bundle.defaults.height
            assert request.width * request.height <= 2 * whole


def test_usage_counts_what_the_model_reads(pipe, real):
    def usage(prompt, **words):
        fields = GenerationFields(prompt=prompt, **words)
        request = generation(real, fields, None)
        counted = TokenCounter().usage(real.models["real"], request, (64, 32), 2)
        return asyncio.run(counted)

    step = pipe.bundle.latents.factor * pipe.bundle.latents.patch
    short, long, endless = usage("a"), usage("a red heart on a hill"), usage("fox " * 3000)
    assert short["output_tokens"] == 2 * (64 // step) * (32 // step)
    texts = [each["input_tokens_details"]["text_tokens"] for each in (short, long, endless)]
    most = max(each.max_length for each in pipe.bundle.tokenizers.values())
    assert 0 < texts[0] < texts[1] < texts[2] == most
    both = usage("a", negative_prompt="a")["input_tokens_details"]["text_tokens"]
    assert both == 2 * texts[0]
    assert short["total_tokens"] == short["input_tokens"] + short["output_tokens"]


def test_a_png_is_the_file_that_a_result_saves(tmp_path):
    """Byte for byte, with the same text."""
    from eri_runtime.images import save_png

    for text in ("a fox\nSteps: 4", "狐\nSteps: 4"):
        image = Image.effect_noise((40, 30), 50).convert("RGB")
        save_png(image, tmp_path / "saved.png", text)
        assert asyncio.run(encode(image, text)) == (tmp_path / "saved.png").read_bytes()


def test_base64_is_read_with_and_without_its_prefix():
    text = to_base64(png((5, 4)))
    for each in (text, f"data:image/png;base64,{text}", f"\n {text[:20]}\n{text[20:]} "):
        assert read_base64("image", each, 100).size == (5, 4)
    for bad in ("", "data:", "data:image/png;base64,", "/etc/passwd", text[:-5], "狐", "a" * 10**6):
        with pytest.raises(UsageError, match="image: got"):
            read_base64("image", bad, 100)
    with pytest.raises(UsageError, match="5x4"):
        read_base64("image", text, 19)


def test_a_rotated_photograph_is_upright():
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(stream, "JPEG", exif=exif)
    picture = read_base64("image", to_base64(stream.getvalue()), 100)
    assert picture.size == (4, 8)
    assert opened(to_base64(asyncio.run(encode(picture, "", "webp", 50)))).size == (4, 8)
