"""Embeddings that are remembered: the encoders' bits, made once, and no damaged file believed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import eri_runtime as eri
from eri_runtime.bundle import weight_hashes
from eri_runtime.bundle.user_folders import cache_folder
from eri_runtime.errors import IntegrityError, SizeError, UsageError
from eri_runtime.executors import choice
from eri_runtime.text.conditioning import Condition, TextEncoders
from eri_runtime.text.embedding_cache import EmbeddingCache, embedding_key, embedding_shapes
from eri_runtime.text.embedding_files import EmbeddingFiles, embeddings_folder

PROMPTS = ["a red heart", "", "心, zwei schwarze Katzen", "a red heart"]
LENGTH = 16


@pytest.fixture(scope="module", params=["sdxl", "sd35", "flux"])
def pipe(request):
    with eri.load(request.getfixturevalue(f"{request.param}_bundle")) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def sd35(sd35_bundle):
    with eri.load(sd35_bundle) as pipe:
        yield pipe


class Counted:
    """Text encoders that write down what they are asked."""

    def __init__(self, pipe):
        self.encode = TextEncoders(pipe.bundle, pipe.run)
        self.asked = []

    def __call__(self, prompts, length):
        self.asked.append((*prompts, length))
        return self.encode(prompts, length)


class Invented:
    """Encoders of a moment: numbers that depend on the text, the length and `weights`."""

    def __init__(self, bundle):
        self.bundle, self.weights, self.asked = bundle, 0, []

    def __call__(self, prompts, length):
        self.asked.append((*prompts, length))
        rng = np.random.default_rng([self.weights, length, *"".join(prompts).encode()])
        return Condition(
            **{
                name: rng.standard_normal(shape, dtype=np.float32)
                for name, shape in embedding_shapes(self.bundle, length).items()
            }
        )


def same(one, other):
    assert (one.embeds.dtype, one.embeds.shape) == (other.embeds.dtype, other.embeds.shape)
    assert (one.pooled.dtype, one.pooled.shape) == (other.pooled.dtype, other.pooled.shape)
    return (
        one.embeds.tobytes() + one.pooled.tobytes()
        == other.embeds.tobytes() + other.pooled.tobytes()
    )


def files_in(folder):
    """The names of all files."""
    return sorted(path.name for path in folder.iterdir())


def on_disk(bundle, encode, folder, **words):
    return EmbeddingCache(bundle, encode, files=EmbeddingFiles(folder), **words)


# the encoders' bits


def test_each_prompt_has_the_bits_it_has_alone(pipe, tmp_path):
    encoders = TextEncoders(pipe.bundle, pipe.run)
    alone = Condition.stack([encoders([text], LENGTH) for text in PROMPTS])
    first = Counted(pipe)
    embeddings = on_disk(pipe.bundle, first, tmp_path)
    assert same(embeddings(PROMPTS, LENGTH), alone)
    assert first.asked == [(text, LENGTH) for text in dict.fromkeys(PROMPTS)]
    assert same(
        embeddings(PROMPTS[::-1], LENGTH),
        Condition.stack([encoders([t], LENGTH) for t in PROMPTS[::-1]]),
    )
    mixed = embeddings(["another", *PROMPTS], LENGTH)
    assert same(mixed, Condition.stack([encoders(["another"], LENGTH), alone]))
    assert first.asked[3:] == [("another", LENGTH)]
    other = Counted(pipe)
    assert same(on_disk(pipe.bundle, other, tmp_path)(PROMPTS, LENGTH), alone)
    assert not other.asked
    assert len(files_in(tmp_path)) == 4


def test_where_all_is_known_no_encoder_is_opened(sd35_bundle, tmp_path):
    def opened():
        contents, names = eri.read_bundle(sd35_bundle), []
        engine = choice.choose(contents, "auto")
        pipe = eri.Pipeline(contents, lambda name, *more: names.append(name) or engine(name, *more))
        return pipe, names

    pipe, names = opened()
    with pipe:
        expected = on_disk(pipe.bundle, TextEncoders(pipe.bundle, pipe.run), tmp_path)(PROMPTS, 8)
    assert sorted(names) == ["text_encoder", "text_encoder_2", "text_encoder_3"]
    pipe, names = opened()
    with pipe:
        found = on_disk(pipe.bundle, TextEncoders(pipe.bundle, pipe.run), tmp_path)(PROMPTS, 8)
    assert same(found, expected)
    assert names == []


def test_what_comes_back_is_the_callers_own(sd35):
    encode = Invented(sd35.bundle)
    embeddings = EmbeddingCache(sd35.bundle, encode)
    first = embeddings(["a"], 8)
    kept = replace(first, embeds=first.embeds.copy(), pooled=first.pooled.copy())
    first.embeds[:] = 7
    first.pooled[:] = 7
    assert same(embeddings(["a"], 8), kept)


def test_another_length_is_another_key(pipe, tmp_path):
    encode = Counted(pipe)
    embeddings = on_disk(pipe.bundle, encode, tmp_path)
    for length in (LENGTH, 8, LENGTH, 8):
        assert (
            embeddings(["x"], length).embeds.shape
            == embedding_shapes(pipe.bundle, length)["embeds"]
        )
    assert encode.asked == [("x", LENGTH), ("x", 8)]
    assert len(files_in(tmp_path)) == 2


def test_what_the_encoders_refuse_is_refused_and_not_kept(sd35, tmp_path):
    embeddings = on_disk(sd35.bundle, TextEncoders(sd35.bundle, sd35.run), tmp_path)
    for _ in range(2):
        with pytest.raises(SizeError, match="token length"):
            embeddings(["a"], 10_000)
    assert files_in(tmp_path) == []
    assert embeddings([], 8).embeds.shape[0] == 0
    names = [each for each in sd35.bundle.components if not each.startswith("text_encoder")]
    parts = {each: sd35.bundle.components[each] for each in names}
    bare = replace(sd35.bundle, components=parts, tokenizers={})
    with pytest.raises(UsageError, match=r"^prompt: got a bundle without"):
        on_disk(bare, Invented(bare), tmp_path)(["a"], 8)


# memory


def test_memory_keeps_what_was_used_last(sd35):
    encode = Invented(sd35.bundle)
    one = sum(4 * np.prod(shape) for shape in embedding_shapes(sd35.bundle, 8).values())
    embeddings = EmbeddingCache(sd35.bundle, encode, limit=2 * one)
    embeddings(["a", "b"], 8)
    embeddings(["a"], 8)
    embeddings(["c"], 8)  # for which b goes
    embeddings(["a", "c"], 8)
    assert [text for text, _ in encode.asked] == ["a", "b", "c"]
    embeddings(["b"], 8)
    assert len(encode.asked) == 4


def test_a_call_of_more_than_fits_encodes_each_once(sd35):
    encode = Invented(sd35.bundle)
    embeddings = EmbeddingCache(sd35.bundle, encode, limit=0)
    assert len(embeddings(["a", "b", "a", "b"], 8).embeds) == 4
    assert [text for text, _ in encode.asked] == ["a", "b"]


def test_threads_encode_a_prompt_once(sd35, tmp_path):
    encode, start, found = Invented(sd35.bundle), threading.Barrier(8), []
    embeddings = on_disk(sd35.bundle, encode, tmp_path)

    def call(index):
        start.wait()
        for turn in range(20):
            texts = [str((index + turn + i) % 5) for i in range(3)]
            found.append((texts, embeddings(texts, 8)))

    threads = [threading.Thread(target=call, args=(index,)) for index in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert Counter(encode.asked) == {(str(i), 8): 1 for i in range(5)}
    assert len(found) == 160
    for texts, condition in found:
        assert same(
            condition, Condition.stack([Invented(sd35.bundle)([text], 8) for text in texts])
        )


def test_who_waits_for_a_prompt_does_not_encode_it_again(sd35):
    encode, calls = Invented(sd35.bundle), threading.Semaphore(0)
    entered, leave = threading.Event(), threading.Event()

    def slow(prompts, length):
        entered.set()
        assert leave.wait(60)
        return encode(prompts, length)

    embeddings = EmbeddingCache(sd35.bundle, slow, state=lambda: calls.release())
    threads = [threading.Thread(target=embeddings, args=(["a"], 8)) for _ in range(2)]
    threads[0].start()
    assert entered.wait(60)
    threads[1].start()
    assert all(calls.acquire(timeout=60) for _ in threads)  # both have begun
    threads[1].join(0.2)  # and the second has come to where it waits
    leave.set()
    for each in threads:
        each.join()
    assert encode.asked == [("a", 8)]


# weights


def test_other_weights_are_never_answered_with_old_ones(sd35, tmp_path):
    encode = Invented(sd35.bundle)
    embeddings = on_disk(sd35.bundle, encode, tmp_path, state=lambda: encode.weights or None)
    own = embeddings(["a"], 8)
    for weights in (1, 2):
        encode.weights = weights
        swapped = embeddings(["a"], 8)
        assert not same(swapped, own)
        assert same(swapped, embeddings(["a"], 8))
        assert same(swapped, encode(["a"], 8))
        embeddings(["new"], 8)
    assert len(files_in(tmp_path)) == 1
    encode.weights = 0
    calls = len(encode.asked)
    assert same(embeddings(["a"], 8), own)
    assert len(encode.asked) == calls
    assert same(embeddings(["new"], 8), Invented(sd35.bundle)(["new"], 8))


def test_swapped_weights_of_a_pipeline(sd35_bundle, tmp_path):
    """The same with the weights of an open pipeline, whose state is that of its text encoders."""
    with eri.load(sd35_bundle) as pipe:
        names = [each for each in pipe.bundle.components if each.startswith("text_encoder")]

        def state():
            swapped = any(pipe._live.overrides(each) for each in names)
            return tuple(map(pipe.swaps, names)) if swapped else None

        encode = TextEncoders(pipe.bundle, pipe.run)
        read_lock = pipe._live.generating
        embeddings = on_disk(pipe.bundle, encode, tmp_path, state=state, read_lock=read_lock)
        own = embeddings(["a dog"], 8)
        name = "text_model.final_layer_norm.weight"
        stored = pipe._live.stored("text_encoder_2")
        pipe.update_weights({name: 3 * np.asarray(stored[name])}, component="text_encoder_2")
        swapped = embeddings(["a dog"], 8)
        assert same(swapped, encode(["a dog"], 8))
        assert not same(swapped, own)
        assert len(files_in(tmp_path)) == 1
        pipe.reset_weights()
        assert same(embeddings(["a dog"], 8), own)


def test_the_key_is_all_that_decides(pipe):
    bundle = pipe.bundle
    record = bundle.files[bundle.components["text_encoder"].weights]
    weights = {
        **bundle.files,
        bundle.components["text_encoder"].weights: replace(record, sha256="0" * 64),
    }
    tokenizer = bundle.tokenizers["tokenizer_2"].file
    tokens = {**bundle.files, tokenizer: replace(record, sha256="0" * 64)}
    unet = {**bundle.files, bundle.components["denoiser"].weights: replace(record, sha256="0" * 64)}
    keys = [
        embedding_key(bundle, "cpu", "a", 8),
        embedding_key(bundle, "cuda", "a", 8),
        embedding_key(bundle, "cpu", "a ", 8),
        embedding_key(bundle, "cpu", "a", 9),
        embedding_key(replace(bundle, files=weights), "cpu", "a", 8),
        embedding_key(replace(bundle, files=tokens), "cpu", "a", 8),
    ]
    assert len(set(keys)) == len(keys)
    assert (
        embedding_key(replace(bundle, files=unet, root=Path("elsewhere")), "cpu", "a", 8) == keys[0]
    )
    assert embedding_key(bundle, "cpu", "\ud800", 8) not in keys


# files that are not what they should be


def hostile(good, key):
    """What may lie under the name of a file, by what is wrong with it."""
    tensors, where = load_file(good), {"key": key, "sha256": "0" * 64}
    data = good.read_bytes()
    nan = {**tensors, "pooled": np.full_like(tensors["pooled"], np.nan)}
    scratch = good.with_name("scratch")

    def saved(arrays, metadata):
        save_file(
            {name: np.ascontiguousarray(each) for name, each in arrays.items()}, scratch, metadata
        )
        return scratch.read_bytes()

    def signed(arrays):
        files = EmbeddingFiles(scratch.with_name("signed"))
        files.write(key, Condition(**arrays))
        return (files.folder / f"{key}.safetensors").read_bytes()

    flipped = bytearray(data)
    flipped[-5] ^= 1
    return {
        "empty": b"",
        "seven bytes": data[:7],
        "cut": data[:-1],
        "longer": data + b"\0",
        "flipped": bytes(flipped),
        "a pickle": b"\x80\x04\x95" + bytes(40),
        "a long header": (1 << 62).to_bytes(8, "little") + data[8:],
        "deep": (3000).to_bytes(8, "little") + b"[" * 3000,
        "no metadata": saved(tensors, None),
        "foreign": saved({"x": tensors["embeds"]}, where),
        "other sum": saved(tensors, where),
        "nan": signed(nan),
        "another shape": signed({**tensors, "embeds": tensors["embeds"][:, 1:]}),
        "another key": data.replace(key.encode(), b"0" * 64),
    }


@pytest.mark.parametrize("how", ["damaged", "replaced"])
def test_nothing_is_kept_of_files_that_are_not_the_manifests(sd35_bundle, tmp_path, how):
    """Weights are not the manifest's, of which nothing may be read or written.

    They change before or after the bundle is opened; mended, it gives what it always gave.
    """
    root, folder = Path(shutil.copytree(sd35_bundle, tmp_path / "sd35")), tmp_path / "kept"
    with eri.load(root) as pipe:
        expected = pipe.encode_prompt(["a red heart"], LENGTH)
    file = root / "text_encoder" / "weights.safetensors"
    right = file.read_bytes()
    wrong = right[:-64] + bytes(64)
    for when in ("before", "after", "filled"):
        opened = eri.load(root, embeddings=folder) if when == "after" else None
        if how == "damaged":
            file.write_bytes(wrong)
        else:
            (root / "other").write_bytes(wrong)
            (root / "other").replace(file)
        error = pytest.raises(IntegrityError, match=r"text_encoder.weights")
        with opened or eri.load(root, embeddings=folder) as pipe, error:
            pipe.encode_prompt(["a red heart"], LENGTH)
        assert folder.exists() == (when == "filled")
        file.write_bytes(right)
        if when == "after":
            with eri.load(root, embeddings=folder) as pipe:
                assert same(pipe.encode_prompt(["a red heart"], LENGTH), expected)
    with eri.load(root, embeddings=folder) as pipe:
        assert same(pipe.encode_prompt(["a red heart"], LENGTH), expected)
    assert len(files_in(folder)) == 1


def test_encoders_are_hashed_once_for_all_processes(sd35_bundle, tmp_path, monkeypatch):
    """And again when their files change, though not their contents."""
    root = Path(shutil.copytree(sd35_bundle, tmp_path / "sd35"))
    hashed, sha256 = [], weight_hashes.sha256
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(weight_hashes, "SETTLED", 0)
    monkeypatch.setattr(weight_hashes, "sha256", lambda path: hashed.append(path) or sha256(path))
    weights = root / "text_encoder" / "weights.safetensors"
    for change in ("all", None, "one"):
        if change == "one":
            os.utime(weights, (1, 1))
        with eri.load(root, embeddings=tmp_path / "kept") as pipe:
            pipe.encode_prompt(["a", "b"], LENGTH)
        assert len(hashed) == len(set(hashed))
        if change != "all":
            assert hashed == ([weights] if change else [])
        hashed.clear()


KINDS = ("empty", "seven bytes", "cut", "longer", "flipped", "a pickle", "a long header", "deep",
         "no metadata", "foreign", "other sum", "nan", "another shape", "another key")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_wrong_is_logged_and_replaced(sd35, tmp_path, caplog, kind):
    encode = Invented(sd35.bundle)
    expected = on_disk(sd35.bundle, encode, tmp_path)(["a"], 8)
    key = embedding_key(sd35.bundle, "", "a", 8)
    good = tmp_path / f"{key}.safetensors"
    good.write_bytes(hostile(good, key)[kind])
    found = on_disk(sd35.bundle, encode, tmp_path)(["a"], 8)
    assert same(found, expected)
    assert len(encode.asked) == 2
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    assert f"{good} is not used" in caplog.text
    assert same(on_disk(sd35.bundle, encode, tmp_path)(["a"], 8), expected)
    assert len(encode.asked) == 2


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_is_believed(sd35, tmp_path, data):
    """Whatever is done to a file, the condition is the encoders' own."""
    encode = Invented(sd35.bundle)
    expected = encode(["a"], 8)
    on_disk(sd35.bundle, encode, tmp_path)(["a"], 8)
    (good,) = tmp_path.glob("*.safetensors")
    blob = bytearray(good.read_bytes())
    begin = data.draw(st.integers(0, len(blob)), "begin")
    end = data.draw(st.integers(begin, min(len(blob), begin + 64)), "end")
    blob[begin:end] = data.draw(st.binary(max_size=64), "instead")
    good.write_bytes(blob)
    assert same(on_disk(sd35.bundle, encode, tmp_path)(["a"], 8), expected)
    assert files_in(tmp_path) == [good.name]


def test_a_folder_or_a_pipe_in_the_place_of_a_file(sd35, tmp_path, caplog):
    encode = Invented(sd35.bundle)
    for make in (Path.mkdir, os.mkfifo):
        file = tmp_path / f"{embedding_key(sd35.bundle, '', 'a', 8)}.safetensors"
        make(file)
        assert same(on_disk(sd35.bundle, encode, tmp_path)(["a"], 8), encode(["a"], 8))
        assert "regular file" in caplog.text
        assert [name for name in files_in(tmp_path) if "partial" in name] == []
        file.rmdir() if file.is_dir() else file.unlink()
        caplog.clear()


# folders that do not take files


def test_a_folder_that_takes_no_files_is_said_once(sd35, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    encode = Invented(sd35.bundle)
    embeddings = on_disk(sd35.bundle, encode, tmp_path / "file" / "folder")
    with caplog.at_level(logging.WARNING):
        for text in ("a", "b"):
            assert same(embeddings([text], 8), encode([text], 8))
    assert len([each for each in caplog.records if "not kept" in each.message]) == 1


def test_a_full_disk_leaves_no_part_behind(sd35, tmp_path, caplog, monkeypatch):
    def full(partial, file):
        assert partial.exists()
        raise OSError(28, f"No space left on device for {file}")

    monkeypatch.setattr(Path, "replace", full)
    embeddings = on_disk(sd35.bundle, Invented(sd35.bundle), tmp_path)
    assert len(embeddings(["a", "b"], 8).embeds) == 2
    assert files_in(tmp_path) == []
    assert caplog.text.count("No space left") == 1


def test_a_file_appears_whole(sd35, tmp_path, monkeypatch):
    """Whoever looks while a file is written sees none, or all of it."""
    seen, replace_file = [], Path.replace
    file = tmp_path / f"{embedding_key(sd35.bundle, '', 'a', 8)}.safetensors"

    def watched(partial, target):
        if target == file:
            seen.append((file.exists(), partial.stat().st_size))
        return replace_file(partial, target)

    monkeypatch.setattr(Path, "replace", watched)
    on_disk(sd35.bundle, Invented(sd35.bundle), tmp_path)(["a"], 8)
    assert seen == [(False, file.stat().st_size)]
    assert files_in(tmp_path) == [file.name]
    header = file.read_bytes()[8:408].decode(errors="ignore")
    assert json.dumps("embeds") in header
    assert "heart" not in header


# where


def test_a_caller_says_which_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "eri"
    assert embeddings_folder(True) == tmp_path / "eri" / "embeddings"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert embeddings_folder(True) == tmp_path / "home" / ".cache" / "eri" / "embeddings"
    assert embeddings_folder(None) is embeddings_folder(False) is None
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert embeddings_folder(True) == tmp_path / "home" / ".cache" / "eri" / "embeddings"
    here = Path.cwd() / "here"
    assert embeddings_folder("here") == embeddings_folder(Path("here")) == here
    for wrong in (3, "", b"here", ["here"]):
        with pytest.raises(UsageError, match=r"^embeddings: got"):
            embeddings_folder(wrong)
