"""Tokens with embeddings of their own: diffusers' embeddings of prompts that name them."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.numpy import save_file

import eri_runtime as eri
from eri_runtime.commands.main import main
from eri_runtime.errors import EriError, LoraError, NonFiniteError, UnknownNameError, UsageError

WIDTH = 32
PROMPTS = ["a red heart", "a <cat> on a <dog>", "<cat><cat> the <cat>", "a dog " * 9 + "<dog>"]


def vectors(count, seed):
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


CAT = {"clip_l": vectors(2, 0), "clip_g": vectors(2, 1)}
DOG = {"clip_l": vectors(1, 2), "clip_g": vectors(1, 3)}
BUNDLED = {
    f"bundle_emb.{token}.{word}": value
    for token, own in (("<cat>", CAT), ("<dog>", DOG))
    for word, value in own.items()
}


@pytest.fixture
def pipe(sdxl_bundle):
    with eri.load(sdxl_bundle) as pipe:
        yield pipe


def encoded(pipe, *prompts):
    condition = pipe._encode(prompts, 16)
    return condition.embeds, condition.pooled


@pytest.fixture(scope="module")
def theirs(sdxl_checkpoint):
    """Embeddings by diffusers, of each prompt with both tokens.

    The second encoder finds the end of a text by its id: as the largest id, which diffusers' new
    tokens are, it would take the first new token for it.
    """
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_checkpoint)
    for token, own in (("<cat>", CAT), ("<dog>", DOG)):
        for word, end in (("clip_l", ""), ("clip_g", "_2")):
            pipeline.load_textual_inversion(
                {token: torch.from_numpy(own[word])},
                tokenizer=getattr(pipeline, f"tokenizer{end}"),
                text_encoder=getattr(pipeline, f"text_encoder{end}"),
            )
    end = pipeline.tokenizer_2.eos_token_id
    for module in pipeline.text_encoder_2.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = end
    pipeline.text_encoder_2.config.eos_token_id = end
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    return embeds.numpy(), pooled.numpy()


def close(found, expected):
    return np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_prompts_are_encoded_as_diffusers_does(pipe, theirs):
    plain = encoded(pipe, *PROMPTS)
    assert pipe.load_textual_inversion(CAT, "<cat>") == ("<cat>",)
    assert pipe.load_textual_inversion(DOG, "<dog>") == ("<dog>",)
    found = encoded(pipe, *PROMPTS)
    for ours, expected, before in zip(found, theirs, plain, strict=True):
        assert close(ours, expected)
        np.testing.assert_array_equal(ours[0], before[0])  # the prompt without a token
        assert not any(close(ours[i], before[i]) for i in (1, 2))
    for upper, lower in zip(encoded(pipe, "A <CAT>"), encoded(pipe, "a <cat>"), strict=True):
        np.testing.assert_array_equal(upper, lower)
    pipe.unload_textual_inversions("<dog>")
    assert close(encoded(pipe, PROMPTS[2])[0], theirs[0][2:3])
    pipe.unload_textual_inversions()
    for ours, before in zip(encoded(pipe, *PROMPTS), plain, strict=True):
        np.testing.assert_array_equal(ours, before)
    assert not any(pipe._live.overrides(name) for name in ("text_encoder", "text_encoder_2"))


def test_every_kind_of_file(pipe, theirs, tmp_path):
    """The same embeddings of the first encoder from a file of each kind."""
    save_file({"emb_params": CAT["clip_l"]}, tmp_path / "mycat.safetensors")
    save_file({"<cat>": CAT["clip_l"]}, tmp_path / "learned_embeds.safetensors")
    save_file(BUNDLED, tmp_path / "lora.safetensors")
    save_file(CAT, tmp_path / "sdxlcat.safetensors")
    save_file({"bundle_emb.a.b.string_to_param.*": CAT["clip_l"]}, tmp_path / "named.safetensors")
    found = {}
    for name, tokens in (
        ("mycat", ("mycat",)),
        ("learned_embeds", ("<cat>",)),
        ("sdxlcat", ("sdxlcat",)),
        ("lora", ("<cat>", "<dog>")),
        ("named", ("a.b",)),
    ):
        assert pipe.load_textual_inversion(tmp_path / f"{name}.safetensors") == tokens
        found[name] = encoded(pipe, f"a {tokens[0]} on a")[0][..., :WIDTH]
        pipe.unload_textual_inversions(*tokens)
    for embeds in found.values():
        np.testing.assert_array_equal(embeds, found["mycat"])
    pipe.load_textual_inversion(BUNDLED)
    for ours, expected in zip(encoded(pipe, *PROMPTS), theirs, strict=True):
        assert close(ours, expected)


def test_a_prompt_with_a_borrowed_piece_is_refused(pipe):
    tokenizer = pipe._tokens._encoders.tokenizer("text_encoder")
    (row,) = tokenizer.spare_rows(1, 635)
    assert tokenizer.spare_rows(1, 100) == [99]  # a table smaller than the vocabulary
    word = tokenizer._tokenizer.id_to_token(row).removesuffix("</w>")
    before = encoded(pipe, word)
    pipe.load_textual_inversion(DOG, "<dog>")
    with pytest.raises(UsageError, match=rf"{word}.*token '<dog>' has borrowed.*other words"):
        encoded(pipe, word)
    pipe.unload_textual_inversions("<dog>")
    for ours, expected in zip(encoded(pipe, word), before, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_token_in_brackets_may_touch_letters_and_a_word_may_not(pipe):
    pipe.load_textual_inversion(CAT, "<cat>")
    apart, beside, plain = encoded(pipe, "two <cat> s", "two<cat>s", "two mycats")[0]
    np.testing.assert_array_equal(beside, apart)
    pipe.load_textual_inversion(DOG, "mycat")
    np.testing.assert_array_equal(encoded(pipe, "two mycats")[0][0], plain)


@pytest.mark.parametrize("loading", [True, False])
def test_no_thread_sees_tokens_without_their_embeddings(pipe, monkeypatch, loading):
    """A prompt that is encoded during a change waits for it, and the cache holds no mixture."""
    if not loading:
        pipe.load_textual_inversion(CAT, "<cat>")
    set_rows, found = pipe._weights.set_rows, []
    other = threading.Thread(target=lambda: found.append(encoded(pipe, "a <cat>")))

    def slow(rows):
        if not loading:
            set_rows(rows)
        other.start()
        other.join(0.2)
        if loading:
            set_rows(rows)

    monkeypatch.setattr(pipe._weights, "set_rows", slow)
    if loading:
        pipe.load_textual_inversion(CAT, "<cat>")
    else:
        pipe.unload_textual_inversions()
    other.join(30)
    monkeypatch.undo()
    with eri.load(pipe.bundle.root) as fresh:
        if loading:
            fresh.load_textual_inversion(CAT, "<cat>")
        expected = encoded(fresh, "a <cat>")
    for ours, wanted in zip(found[0], expected, strict=True):
        np.testing.assert_array_equal(ours, wanted)


REFUSED = {
    "no keys": ({}, None, LoraError, "no keys"),
    "a lora": ({"a.lora_A.weight": CAT["clip_l"], "b": CAT["clip_l"]}, None, LoraError, "emb_pa"),
    "a width": ({"clip_l": np.ones((1, 9), np.float32)}, "<x>", LoraError, r"clip_l.*\(n, 32\)"),
    "a T5": ({"t5": np.ones((1, 64), np.float32)}, "<x>", LoraError, "t5.*for a CLIP of this sdxl"),
    "an output": (
        {"bundle_emb.<x>.clip_l_out": CAT["clip_l"]},
        None,
        LoraError,
        "clip_l_out.*for a CLIP",
    ),
    "nan": ({"<x>": np.full((1, WIDTH), np.nan, np.float32)}, None, NonFiniteError, "<x>"),
    "too many": ({"<x>": np.ones((76, WIDTH), np.float32)}, None, LoraError, "at most 75"),
    "no name": (CAT, None, LoraError, "pass token="),
    "two names": (BUNDLED, "<x>", LoraError, "a file with one token"),
    "a word": (CAT, "a</w>", UsageError, "own vocabulary"),
    "loaded": (CAT, "<dog>", UsageError, "a token that is loaded"),
    "loaded in other letters": (CAT, "<Dog>", UsageError, "a token that is loaded"),
    "a number": (CAT, 5, LoraError, "a name without spaces"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_changes_nothing(pipe, case):
    source, token, error, words = REFUSED[case]
    pipe.load_textual_inversion(DOG, "<dog>")
    before = encoded(pipe, "a <dog>")
    with pytest.raises(EriError, match=words) as caught:
        pipe.load_textual_inversion(source, token)
    assert caught.type is error
    assert pipe._tokens.tokens == ("<dog>",)
    for ours, expected in zip(encoded(pipe, "a <dog>"), before, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_token_that_is_not_loaded(pipe):
    with pytest.raises(UnknownNameError, match="<dog>"):
        pipe.unload_textual_inversions("<dog>")


def test_the_command_line(sdxl_bundle, pipe, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    save_file(CAT, "mycat.safetensors")
    words = ["--size", "32x32", "--steps", "1", "--seed", "3", "-o", "out.png"]
    command = ["generate", str(sdxl_bundle), "a mycat", "--textual-inversion", "mycat.safetensors"]
    assert main([*command, *words]) == 0
    pipe.load_textual_inversion("mycat.safetensors")
    call = {"height": 32, "width": 32, "num_inference_steps": 1, "seed": 3}
    expected = pipe("a mycat", **call).images[0]
    made = Image.open("out.png")
    np.testing.assert_array_equal(np.asarray(made), np.asarray(expected))
    assert "Textual inversions: mycat" in made.info["parameters"]
