"""A tokenizer's folder may hold less than transformers saves: the ids are the same."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from dataclasses import replace

import pytest
import sentencepiece
from tokenizers import Tokenizer

from eri_export import open_checkpoint
from eri_export.checkpoints.tokenizers import read_tokenizers
from eri_runtime.errors import CheckpointError
from tests.support.checkpoints import CAPTIONS

TEXT = "Two black cats, drawn again!"


def ids(read):
    return Tokenizer.from_str(read.text).encode(TEXT).ids


def opened_with(checkpoint, name, folder):
    """The checkpoint with another folder for one of its tokenizers."""
    opened = open_checkpoint(checkpoint)
    return replace(opened, tokenizers={**opened.tokenizers, name: folder})


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2", "tokenizer_3"])
def test_tokenizer_json_alone_is_the_whole_folder(sd35_checkpoint, tmp_path, name):
    shutil.copy(sd35_checkpoint / name / "tokenizer.json", tmp_path)
    whole = read_tokenizers(open_checkpoint(sd35_checkpoint))[name]
    alone = read_tokenizers(opened_with(sd35_checkpoint, name, tmp_path))[name]
    assert ids(alone) == ids(whole)
    assert alone.spec.pad_id == whole.spec.pad_id
    positions = 16 if name != "tokenizer_3" else 512  # T5 has none; its usual length stands in
    assert alone.spec.max_length == positions


def test_a_vocabulary_without_the_padding_is_refused_by_name(sd35_checkpoint, tmp_path):
    saved = json.loads((sd35_checkpoint / "tokenizer_3" / "tokenizer.json").read_text())
    saved["model"]["vocab"][0][0] = "<other>"
    saved["added_tokens"] = [each for each in saved["added_tokens"] if each["content"] != "<pad>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match=r"pad_token: got none, and no .*add pad_token"):
        read_tokenizers(opened_with(sd35_checkpoint, "tokenizer_3", tmp_path))


@pytest.fixture(scope="module")
def spiece():
    """A model as T5's: <pad> 0, </s> 1, <unk> 2."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_writer=model,
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.mark.parametrize("settings", [None, {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}])
def test_t5s_spiece_model_alone_gives_sentencepieces_ids(
    sd35_checkpoint, tmp_path, spiece, settings
):
    (tmp_path / "spiece.model").write_bytes(spiece)
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    read = read_tokenizers(opened_with(sd35_checkpoint, "tokenizer_3", tmp_path))["tokenizer_3"]
    theirs = sentencepiece.SentencePieceProcessor(model_proto=spiece)
    assert ids(read) == [*theirs.encode(TEXT), theirs.eos_id()]
    assert read.spec.pad_id == theirs.pad_id()


def test_clips_vocabulary_and_merges_alone_are_the_whole_folder(sd35_checkpoint, tmp_path):
    saved = json.loads((sd35_checkpoint / "tokenizer_2" / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(saved["vocab"]))
    merges = [each if isinstance(each, str) else " ".join(each) for each in saved["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    whole = read_tokenizers(open_checkpoint(sd35_checkpoint))["tokenizer_2"]
    alone = read_tokenizers(opened_with(sd35_checkpoint, "tokenizer_2", tmp_path))["tokenizer_2"]
    assert (ids(alone), alone.spec.pad_id) == (ids(whole), whole.spec.pad_id)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("model_max_length", value) for value in ("many", -3, 1, [1], float("inf"))),
        ("pad_token", "<another>"),
    ],
)
def test_settings_that_no_prompt_can_follow(sd35_checkpoint, tmp_path, key, value):
    folder = shutil.copytree(sd35_checkpoint / "tokenizer", tmp_path / "tokenizer")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, key: value}))
    with pytest.raises(CheckpointError, match=key):
        read_tokenizers(opened_with(sd35_checkpoint, "tokenizer", folder))


@pytest.mark.parametrize("value", [None, "many", [1], -3])
def test_an_encoder_without_a_number_of_positions(sd35_checkpoint, value):
    opened = open_checkpoint(sd35_checkpoint)
    encoder = opened.components["text_encoder"]
    spoiled = replace(encoder, config={**encoder.config, "max_position_embeddings": value})
    with pytest.raises(CheckpointError, match=r"max_position_embeddings: got .*a number from 2"):
        read_tokenizers(replace(opened, components={**opened.components, "text_encoder": spoiled}))


@pytest.mark.parametrize("settings", [None, {"tokenizer_class": "CLIPTokenizer"}])
def test_a_folder_without_a_vocabulary_is_refused(sd35_checkpoint, tmp_path, settings):
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"got no vocabulary, expected one of tokenizer.json"):
        read_tokenizers(opened_with(sd35_checkpoint, "tokenizer", tmp_path))


READABLE = ("tokenizer_config.json", "special_tokens_map.json")  # none of their entries is needed
DAMAGE = {
    "junk": b"\x80\xff\0junk",
    "empty": b"",
    "nested": b"[" * 10**5,
    "no object": b"[]",
    "an empty object": b"{}",
    "pipe": None,
}
# the files of a tokenizer, beside the ones that a case damages
SETS = {
    "tokenizer.json": ("tokenizer.json", "tokenizer_config.json"),
    "tokenizer_config.json": ("tokenizer.json", "tokenizer_config.json"),
    "vocab.json": ("vocab.json", "merges.txt"),
    "merges.txt": ("vocab.json", "merges.txt"),
    "spiece.model": ("spiece.model",),
    "special_tokens_map.json": ("tokenizer.json", "special_tokens_map.json"),
}


def vocabulary(sd35_checkpoint, spiece, name):
    """The content of one of a tokenizer's files."""
    folder = sd35_checkpoint / "tokenizer"
    saved = json.loads((folder / "tokenizer.json").read_text())
    merges = [
        each if isinstance(each, str) else " ".join(each) for each in saved["model"]["merges"]
    ]
    made = {
        "vocab.json": json.dumps(saved["model"]["vocab"]).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *merges]).encode(),
        "spiece.model": spiece,
        "special_tokens_map.json": b"{}",
    }
    return made[name] if name in made else (folder / name).read_bytes()


@pytest.mark.parametrize("damaged", SETS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(sd35_checkpoint, tmp_path, spiece, damaged, damage):
    """And none is waited for."""
    for name in SETS[damaged]:
        if name != damaged:
            (tmp_path / name).write_bytes(vocabulary(sd35_checkpoint, spiece, name))
    content = DAMAGE[damage]
    if content is None:
        os.mkfifo(tmp_path / damaged)
    else:
        (tmp_path / damaged).write_bytes(content)
    which = "tokenizer_3" if damaged == "spiece.model" else "tokenizer"
    opened = opened_with(sd35_checkpoint, which, tmp_path)
    if damage == "an empty object" and damaged in READABLE:
        read_tokenizers(opened)
        return
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))) as caught:
        read_tokenizers(opened)
    assert len(str(caught.value)) < 1500
