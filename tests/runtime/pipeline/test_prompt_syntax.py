"""Calls with prompts in AUTOMATIC1111's syntax."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import eri_runtime as eri
from eri_runtime.commands.main import main
from eri_runtime.errors import SizeError, UnknownNameError, UsageError
from eri_runtime.request.prompt_syntax import _warn_of_syntax
from tests.support.loras import base_weights, dotted, low_rank, modules

WORDS = {"num_inference_steps": 4, "height": 32, "width": 32, "seed": 0, "output_type": "latent"}


@pytest.fixture(scope="module", params=["sdxl", "sd35", "flux"])
def bundle(request):
    return request.getfixturevalue(f"{request.param}_bundle")


@pytest.fixture(scope="module")
def pipe(bundle):
    with eri.load(bundle, "cpu") as pipe:
        yield pipe


def guided(pipe):
    """Words that turn CFG on, and the length of T5 that leaves room for two windows."""
    own = {"true_cfg_scale": 3.0} if pipe.bundle.family == "flux" else {"guidance_scale": 3.0}
    return {**WORDS, **own, **({} if pipe.bundle.family == "sdxl" else {"max_sequence_length": 8})}


def drawn(pipe, prompt, negative=None, **words):
    return pipe(
        prompt, negative_prompt=negative, **{**guided(pipe), "prompt_syntax": "a1111", **words}
    ).images


def test_plain_text_is_the_same_picture(pipe):
    plain = pipe("a red heart", negative_prompt="blurry", **guided(pipe)).images
    assert (drawn(pipe, "a red heart", "blurry") == plain).all()


def test_weights_are_those_of_encoded_prompts(pipe):
    pair = pipe.encode_prompt("a (red:1.4) heart", 8, "a1111")
    negative = pipe.encode_prompt("[blurry]", 8, "a1111")
    embeds = {
        "prompt_embeds": pair.embeds,
        "pooled_prompt_embeds": pair.pooled,
        "negative_prompt_embeds": negative.embeds,
        "negative_pooled_prompt_embeds": negative.pooled,
    }
    expected = pipe(**guided(pipe), **embeds).images
    assert (drawn(pipe, "a (red:1.4) heart", "[blurry]") == expected).all()


def test_several_texts_are_a_weighted_prompt(pipe):
    expected = pipe(
        {"a red heart": 0.7, "two cats": 0.3}, negative_prompt="blurry", **guided(pipe)
    ).images
    found = drawn(pipe, "a red heart :0.7 AND two cats:0.3", "blurry")
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_schedule_changes_the_condition_at_its_step(pipe, sampler):
    """The reference resumes after the last step with the first text, with the second."""
    words = {**guided(pipe), "sampler": sampler}
    first = pipe.request("a red heart", negative_prompt="blurry", **words)
    then = pipe.request("a blue heart", negative_prompt="bad", **words)
    for step in pipe.denoise(first):
        if step.index == 2:  # of evaluations 0 to 2
            break
    *_, last = pipe.denoise(then, start=step)
    found = drawn(pipe, "a [red:blue:2] heart", "[blurry:bad:2]", sampler=sampler)
    assert (found == pipe.finish(then, last.x).latents).all()
    for when in ("0", "-3"):
        expected = pipe("a blue heart", negative_prompt="bad", **words).images
        assert (drawn(pipe, f"a [red:blue:{when}] heart", "bad", sampler=sampler) == expected).all()


def test_a_share_counts_the_evaluations(pipe):
    assert (drawn(pipe, "a [red:blue:0.5] heart") == drawn(pipe, "a [red:blue:2] heart")).all()
    heun = {"sampler": "heun"}  # 4 steps are 8 evaluations, of which the last is left out
    half, four = (drawn(pipe, f"a [red:blue:{when}] heart", **heun) for when in ("0.5", "4"))
    assert (half == four).all()


@pytest.mark.parametrize("loop", ["numpy", "step"])
def test_both_loops_and_joint_steps_take_turns(bundle, loop):
    prompt, negative = "a [red|(blue:1.3)] heart BREAK two cats", "[bad|]"
    with eri.load(bundle, "cpu", loop=loop) as pipe:
        words = {**guided(pipe), "prompt_syntax": "a1111"}
        request = pipe.request(prompt, negative_prompt=negative, **words)
        *_, last = pipe.denoise(request)
        other = pipe.request("two dogs BREAK [a|b] cat", negative_prompt="bad", **words)
        begun = [pipe.begin(request), pipe.begin(other)]
        assert begun[0].group == begun[1].group
        while not begun[0].done:
            pipe.step(begun)
        assert np.abs(begun[0].last.x - last.x).max() <= 1e-4 * np.abs(last.x).max()
        assert pipe.prompt_windows(request) == 2


def test_prompts_of_several_lengths_share_a_batch(pipe):
    prompts = ["a (red:1.2) heart", "two cats BREAK one dog"]
    found = drawn(pipe, prompts, "bad", seed=[0, 1])
    longest = drawn(pipe, prompts[1], "bad", seed=1)
    assert np.abs(found[1:] - longest).max() <= 1e-4 * np.abs(longest).max()


def test_too_many_windows_are_refused_before_a_step(pipe):
    prompt = "a BREAK " * 9
    if pipe.bundle.family == "flux":  # T5's window holds the text
        assert drawn(pipe, prompt).shape[0] == 1
        return
    with pytest.raises(SizeError, match="windows of CLIP's tokens, expected at most"):
        drawn(pipe, prompt)
    with pytest.raises(SizeError, match="windows of CLIP's tokens, expected at most"):
        drawn(pipe, "a fox", prompt)


def test_a_picture_says_what_was_written(pipe):
    prompt = "a (red:1.2) [heart|cat] AND two cats :0.5"
    words = {**guided(pipe), "prompt_syntax": "a1111"}
    (text,) = pipe(prompt, negative_prompt="[bad]", **words).parameters
    assert text.startswith(f"{prompt}\nNegative prompt: [bad]\n")
    assert "Prompt syntax: a1111" in text


def test_a_plain_call_warns_once(pipe, caplog):
    caplog.set_level(logging.WARNING)
    _warn_of_syntax.cache_clear()
    for prompt in ("a red heart", "a (red:1.3) heart", "a (red:1.4) heart"):
        pipe.request(prompt, **WORDS)
    assert len([each for each in caplog.messages if "prompt_syntax='a1111'" in each]) == 1
    _warn_of_syntax.cache_clear()
    pipe.request("a (red:1.3) heart", prompt_syntax="plain", **WORDS)
    pipe.request("a (red:1.3) heart", prompt_syntax="a1111", **WORDS)
    assert len([each for each in caplog.messages if "prompt_syntax='a1111'" in each]) == 1
    with pytest.raises(UnknownNameError, match="prompt_syntax: got 'a111'"):
        pipe.request("a fox", prompt_syntax="a111", **WORDS)


@pytest.fixture(scope="module")
def style(sdxl_checkpoint, tmp_path_factory):
    """A LoRA of the tiny SDXL's attention."""
    file = tmp_path_factory.mktemp("lora") / "style.safetensors"
    shapes = modules(base_weights(sdxl_checkpoint)["denoiser"], "to_q", "to_v")
    lora = low_rank(shapes, dotted("unet."), seed=0)
    save_file({name: np.float32(0.05) * value for name, value in lora.items()}, file)
    return file


@pytest.fixture
def sdxl(sdxl_bundle):
    with eri.load(sdxl_bundle, "cpu") as pipe:
        yield pipe


def test_a_tag_merges_a_loaded_lora_for_one_call(sdxl, style):
    before = drawn(sdxl, "a red heart")
    sdxl.load_lora(style, 0.8)
    expected = drawn(sdxl, "a red heart")
    sdxl.set_loras({"style": 0.0})
    found = drawn(sdxl, "a red heart<lora:style:0.8>")
    assert (found == expected).all()
    assert not (found == before).all()
    assert dict(sdxl.loras) == {"style": 0.0}
    assert (drawn(sdxl, "a red heart") == before).all()


def test_a_call_that_fails_takes_its_lora_out(sdxl, style):
    sdxl.load_lora(style, 0.0)

    def stop(_):
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        drawn(sdxl, "a heart <lora:style>", on_step=stop)
    assert dict(sdxl.loras) == {"style": 0.0}


def test_a_tag_of_an_unknown_lora_is_refused_and_no_file_is_read(sdxl, style):
    for name in ("style", style, "owner/name"):
        with pytest.raises(UnknownNameError, match=r"<lora:\.\.\.> in a prompt: got"):
            drawn(sdxl, f"a heart <lora:{name}:1>")
    with pytest.raises(UsageError, match=r"lora: got '<lora:style:much>'"):
        drawn(sdxl, "a heart <lora:style:much>")
    assert dict(sdxl.loras) == {}


def test_ones_own_loop_is_told_to_merge_first(sdxl, style):
    sdxl.load_lora(style, 0.0)
    request = sdxl.request("a heart <lora:style:0.5>", **WORDS, prompt_syntax="a1111")
    with pytest.raises(UsageError, match=r"pipe\.set_loras"):
        list(sdxl.denoise(request))
    with pytest.raises(UsageError, match=r"pipe\.set_loras"):
        sdxl.begin(request)
    sdxl.set_loras({**sdxl.loras, **request.merged_loras})
    assert len(list(sdxl.denoise(request))) == 4


def test_prompts_with_different_tags_need_calls_of_their_own(sdxl, style):
    sdxl.load_lora(style, 0.0)
    with pytest.raises(UsageError, match=r"different <lora:\.\.\.> tags"):
        drawn(sdxl, ["a heart <lora:style:1>", "a heart"])
    jobs = ["a heart <lora:style:0.8>", "a heart", "two cats BREAK a (dog:1.2)"]
    config = eri.SamplingConfig(2, 3.0, 32, 32, seed=0)
    with pytest.raises(UnknownNameError, match=r"jobs\[1\]: <lora:\.\.\.> in a prompt: got 'x'"):
        eri.batch_sample(["a", "a <lora:x:1>"], config, pipe=sdxl, prompt_syntax="a1111")
    found = eri.batch_sample(jobs, config, pipe=sdxl, prompt_syntax="a1111", output_type="pil")
    for i, (job, image) in enumerate(zip(jobs, found, strict=True)):
        words = {"config": config, "seed": i, "prompt_syntax": "a1111"}
        assert image.tobytes() == sdxl(job, **words).images[0].tobytes()


def test_the_command_takes_the_syntax_and_tags(sdxl_bundle, style, tmp_path, capsys):
    file = tmp_path / "out.png"
    prompt = "a (red:1.3) heart <lora:style:0.5>"
    words = ["--steps", "2", "--size", "32x32", "--seed", "0", "-o", str(file)]
    command = ["generate", str(sdxl_bundle), prompt, *words, "--prompt-syntax", "a1111"]
    assert main([*command, "--lora", str(style)]) == 0
    with Image.open(file) as image:
        text = image.info["parameters"]
    assert text.startswith(prompt)
    assert "style: 0.5" in text
    capsys.readouterr()
    assert main(command) == 2
    assert "<lora:...> in a prompt: got 'style'" in capsys.readouterr().err
