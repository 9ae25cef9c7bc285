"""Weights files that are damaged, hostile or something else: refused by name, never a surprise.

The safetensors library is the oracle of what a header may say.
"""

from __future__ import annotations

import json
import math
import os
import shutil

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.torch import load_file, save, save_file

from eri_export import bundle as exporter
from eri_export import export, header, open_checkpoint, stored
from eri_export.names import check_names
from eri_export.recipes.text import ClipPooled, clip_recipe
from eri_export.stored import read_header, read_headers
from eri_export.weights import Conversion, write_weights
from eri_runtime.errors import CheckpointError, DamagedWeightsError, PickleError

WEIGHTS = "diffusion_pytorch_model.safetensors"
NAMES = ["../../x", "/etc/passwd", "C:\\x", "a\0b", "", "x" * 100_000, "\n\x1b[2J", "é.心", "__m__"]


def entry(name="a", dtype="F32", shape="[1]", offsets="[0,4]", more=""):
    """One entry of a header, as text."""
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}{more}}}'


def listed(*entries):
    return "{" + ",".join(entries) + "}"


def raw_file(text, data=b"\0" * 4, length=None):
    """The bytes of a safetensors file with this header, or with another length before it."""
    text = text if isinstance(text, bytes) else text.encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def written(tmp_path, raw):
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw)
    return file


def refusal(file, error=DamagedWeightsError):
    """What `read_header` says of a file it refuses by exactly `error`: short, and by name."""
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert caught.type is error
    assert len(str(caught.value)) < 1500
    assert str(file) in str(caught.value)
    return str(caught.value)


# the library as the oracle

# What the library reads and we do not, by our own words for it: it keeps the last of two tensors
# of one name, passes over fields it does not know, and reads a struct from a list and an enum
# from an object, which no writer writes.
STRICTER = ("is given twice", "expected dtype", "got type {")

SIZES = st.one_of(
    st.integers(0, 3),
    st.sampled_from([-1, 2**31, 2**32, 2**63, 2**64 - 1, 2**64, 10**30]),
    st.sampled_from([1.0, True, None, "1", [], float("inf")]),
)
TEXTS = st.one_of(st.sampled_from(NAMES), st.text(max_size=4))  # no lone surrogates
DTYPES = st.sampled_from([*header.BITS, "F128", "f32", None, 4, {"F32": None}])


@st.composite
def sound(draw):
    """A header as it should be, and the bytes after it."""
    tensors, position = {}, 0
    for name in draw(st.lists(TEXTS, max_size=4, unique=True)):
        dtype = draw(st.sampled_from(list(header.BITS)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        end = position + header.BITS[dtype] * math.prod(shape) // 8
        tensors[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    if draw(st.booleans()):
        tensors["__metadata__"] = draw(st.dictionaries(TEXTS, TEXTS, max_size=2) | st.none())
    return tensors, draw(st.binary(min_size=position, max_size=position))


@st.composite
def unsound(draw):
    """A header with one place changed to something else."""
    tensors, data = draw(sound())
    entries = [each for name, each in tensors.items() if name != "__metadata__"]
    if not entries or draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from([[], 1, None, {"a": []}, {"__metadata__": {"a": 1}}])), data
    broken = draw(st.sampled_from(entries))
    key = draw(st.sampled_from([*broken, "more"]))
    is_list = key in ("shape", "data_offsets")
    broken[key] = draw(st.lists(SIZES, max_size=3) | SIZES if is_list else DTYPES)
    if draw(st.booleans()):
        broken.pop(draw(st.sampled_from([*broken])))
    return tensors, data


TOKENS = st.one_of(
    st.binary(max_size=3),
    st.sampled_from([b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"-", b"0", b"1e9", b".0"]),
    st.sampled_from([b"\\ud800", b"\\u0000", b"\xed\xa0\x80", b"NaN", b" ", b"\n", b"\0", b"null"]),
)


@st.composite
def files(draw):
    """The bytes of a file: sound, unsound, or with some bytes put in, taken out or overwritten."""
    tensors, data = draw(sound() | sound() | unsound())
    separators = draw(st.sampled_from([(",", ":"), (", ", ":\n ")]))
    text = json.dumps(tensors, separators=separators, ensure_ascii=draw(st.booleans()))
    raw = raw_file(
        text.encode("utf-8", "surrogatepass") + draw(st.sampled_from([b"", b"  "])), data
    )
    for _ in range(draw(st.sampled_from([0, 0, 1, 2, 3]))):
        start = draw(st.integers(0, len(raw)))
        raw = raw[:start] + draw(TOKENS) + raw[start + draw(st.integers(0, 3)) :]
        if draw(st.booleans()):  # keep the length true, so that more than it is tried
            raw = raw_file(
                raw[8 : max(8, len(raw) - len(data))], raw[max(8, len(raw) - len(data)) :]
            )
    return raw


def library_reads(file):
    """Name -> (dtype, shape) by the library, or None where it refuses the file."""
    try:
        with safe_open(file, "np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: (one.get_dtype(), one.get_shape()) for name, one in slices.items()}
    except (SafetensorError, OSError, ValueError):
        return None


@given(files())
@example(raw_file(listed(entry(), entry())))
@example(raw_file('{"a":["F32",[1],[0,4]]}'))
@example(raw_file('{"a":{"dtype":{"F32":null},"shape":[1],"data_offsets":[0,4]}}'))
@example(raw_file(listed(entry(more=',"more":-0.5'))))
@example(raw_file(listed(entry(shape="[-0]", offsets="[0,0]")), b""))
@example(raw_file(listed(entry(shape="[0,9223372036854775808,4]", offsets="[0,0]")), b""))
@example(raw_file(listed(entry(shape="[9223372036854775808,4,0]", offsets="[0,0]")), b""))
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_header_is_read_as_the_library_reads_it(tmp_path, raw):
    file = written(tmp_path, raw)
    theirs = library_reads(file)
    try:
        ours = read_header(file)
    except (DamagedWeightsError, PickleError) as error:
        refused_for = str(error)
    else:
        refused_for = None
    if refused_for is not None:
        assert theirs is None or any(reason in refused_for for reason in STRICTER)
        return
    assert {each.name: (each.dtype, list(each.shape)) for each in ours} == theirs
    data = {name: bytes(each["data"]) for name, each in deserialize(raw)}
    for each in ours:
        assert raw[each.start :][: each.nbytes] == data[each.name]


@given(
    st.binary(max_size=40), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"GGUF", b" <html"])
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_at_all(tmp_path, raw, head):
    file = written(tmp_path, head + raw)
    try:
        assert read_header(file) == () == tuple(library_reads(file))
    except (DamagedWeightsError, PickleError):
        assert library_reads(file) is None


# files of which we know what is wrong


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "0 bytes"),
        (b"\1\0\0", "3 bytes"),
        (raw_file("{}", b"", length=2**63), "header of 9223372036854775808 bytes"),
        (raw_file("{}", b"", length=3), "header of 3 bytes"),
        (raw_file("[]", b""), "got list, expected an object"),
        (raw_file(b"\xff\xfe{\0}\0", b""), "decode"),
        (raw_file(b"\xef\xbb\xbf{}", b""), "BOM"),
        (raw_file("{}x", b""), "Extra data"),
        (raw_file("{}\0", b""), "Extra data"),
        (raw_file(listed(entry(more=',"shape":[1]'))), "'shape' is given twice"),
        (raw_file('{"__metadata__":{"x":1}}', b""), "__metadata__: got {'x': 1}"),
        (raw_file('{"__metadata__":[]}', b""), "__metadata__: got []"),
        (raw_file(listed(entry(shape="[-1]"))), "shape [-1.0]"),
        (raw_file(listed(entry(shape="[1.0]"))), "shape [1.0]"),
        (raw_file(listed(entry(shape="[18446744073709551616]"))), "expected lists of sizes"),
        (raw_file(listed(entry(shape="[true]"))), "shape [True]"),
        (raw_file(listed(entry(shape='["1"]'))), "shape ['1']"),
        (raw_file(listed(entry(shape=f"[{10**4000}]"))), "shape [inf]"),
        (raw_file(listed(entry(shape="[NaN]"))), "NaN is no JSON"),
        (raw_file(listed(entry(shape="[4294967296,4294967296]"))), "overflows"),
        (raw_file(listed(entry(shape=f"[{'2,' * 99999}2]"))), "overflows"),
        (raw_file(listed(entry(offsets="[4,0]"))), "got -4 bytes"),
        (raw_file(listed(entry(offsets="[4,8]")), b"\0" * 8), "at byte 4, expected 0"),
        (raw_file(listed(entry(offsets="[0,8]")), b"\0" * 8), "got 8 bytes"),
        (raw_file(listed(entry("a"), entry("b"))), "at byte 0, expected 4"),
        (raw_file(listed(entry()), b"\0" * 5), "take 4 bytes, the file holds 5"),
        (raw_file(listed(entry()), b"\0" * 3), "take 4 bytes, the file holds 3"),
        (raw_file(listed(entry(dtype="F128"))), "got type 'F128'"),
        (raw_file(listed(entry(dtype="F4"))), "got 4 bytes for F4 [1]"),
        (raw_file(listed(entry("\\ud800"))), "surrogates"),
        (raw_file(listed(entry("x" * 100_000, shape="1"))), "xxx...xxx"),
        (raw_file("[" * 1_000_000, b""), "recursion"),
        (raw_file('{"a":' * 1_000_000, b""), "recursion"),
        (raw_file(f'{{"a":{"[" * 900}{"]" * 900}}}', b""), "[[["),
    ],
)
def test_damage_is_named(tmp_path, raw, words):
    file = written(tmp_path, raw)
    assert words in refusal(file)
    assert library_reads(file) is None


def test_a_name_given_twice(tmp_path):
    """The library keeps the last of the two, other readers the first."""
    assert "'a' is given twice" in refusal(written(tmp_path, raw_file(listed(entry(), entry()))))


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = save({"a": torch.ones(3), "b": torch.ones(2, 2)})
    assert len(read_header(written(tmp_path, whole))) == 2
    for kept in range(len(whole)):
        refusal(written(tmp_path, whole[:kept]))
    refusal(written(tmp_path, whole + b"\0"))


def test_a_header_is_never_longer_than_a_network_could_need(tmp_path):
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write((stored.MAX_HEADER + 1).to_bytes(8, "little"))
        stream.truncate(200_000_000)
    assert "at most 25000000" in refusal(file)


@pytest.mark.parametrize(
    ("head", "error", "words"),
    [
        (b"PK\x03\x04\x14\0\0\0\x08\0archive/data.pkl", PickleError, "safe_serialization=True"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", PickleError, "may run code"),
        (b"\x80\x04\x95\x1b\0\0\0\0\0\0\0}\x94\x8c\x01a", PickleError, "may run code"),
        (b"\x80\x02}q\0.", PickleError, "may run code"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:",
            DamagedWeightsError,
            "lfs pull",
        ),
        (b"<!DOCTYPE html>\n<html><head>", DamagedWeightsError, "a web page"),
        (b'\n<?xml version="1.0"?><Error>', DamagedWeightsError, "a web page"),
        (b"GGUF\x03\0\0\0\x10\0\0\0", DamagedWeightsError, "a GGUF file"),
    ],
)
def test_other_files_under_the_name_of_safetensors(tmp_path, head, error, words):
    for padding in (b"", b"\0" * 1000):
        assert words in refusal(written(tmp_path, head + padding), error)


def test_a_header_whose_length_begins_as_a_pickle_does(tmp_path):
    """0x0280 bytes: the first two are a pickle's, and the file is sound."""
    file = written(tmp_path, raw_file(listed(entry()).ljust(0x280)))
    assert file.read_bytes().startswith(b"\x80\x02")
    assert [each.name for each in read_header(file)] == ["a"]


def folder(path):
    path.mkdir()


def loop(path):
    path.symlink_to(path)


def beyond_a_file(path):
    path.parent.rmdir()
    path.parent.write_bytes(b"")


OBSTACLES = {
    folder: "not a regular file",
    os.mkfifo: "not a regular file",
    (lambda path: path.symlink_to("/dev/zero")): "not a regular file",
    loop: "symbolic links",
    (lambda path: path.symlink_to("nowhere")): "No such file",
    beyond_a_file: "Not a directory",
}


@pytest.mark.parametrize("make", OBSTACLES)
def test_what_is_no_readable_file(tmp_path, make):
    path = tmp_path / "weights" / "model.safetensors"
    path.parent.mkdir()
    make(path)
    assert OBSTACLES[make] in refusal(path)


def test_a_name_in_two_shards(tmp_path):
    shards = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for file in shards:
        save_file({"w": torch.ones(1)}, file)
    with pytest.raises(DamagedWeightsError, match=r"two\.safetensors: got 'w', also in one"):
        read_headers(shards)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_words_and_never_paths(tmp_path, name):
    """A name is read as it is, as the library does; who needs no such weight refuses it."""
    file = written(tmp_path, raw_file(listed(entry(json.dumps(name)[1:-1]))))
    (tensor,) = read_header(file)
    assert tensor.name == name
    write_weights(tmp_path / "out.safetensors", [Conversion(tensor, torch.float32)])
    assert set(load_file(tmp_path / "out.safetensors")) == {name}
    assert {path.name for path in tmp_path.iterdir()} == {file.name, "out.safetensors"}


# through `export`


@pytest.fixture
def broken(flux_checkpoint, tmp_path):
    """A copy of a sound checkpoint, to break."""
    return shutil.copytree(flux_checkpoint, tmp_path / "checkpoint")


def refused(checkpoint, error, *words):
    """Assert that `export` raises exactly `error`, says `words`, and leaves no file."""
    before = sorted(checkpoint.parent.rglob("*"))
    with pytest.raises(error) as caught:
        export(checkpoint, checkpoint.parent / "engines" / "bundle")
    assert caught.type is error
    for word in words:
        assert word in str(caught.value)
    left = set(checkpoint.parent.rglob("*")) - {checkpoint.parent / "engines"}
    assert sorted(left) == before


def test_hostile_names_in_a_checkpoint(broken):
    file = broken / "transformer" / WEIGHTS
    save_file({**load_file(file), **{name: torch.zeros(1) for name in NAMES}}, file)
    refused(broken, DamagedWeightsError, "unknown '', '\\n\\x1b[2J', '../../x', '/etc/passwd'")


@pytest.mark.parametrize(
    ("raw", "error", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", DamagedWeightsError, "git lfs pull"),
        (b"PK\x03\x04 model.pkl", PickleError, "may run code"),
        (raw_file(listed(entry(), entry())), DamagedWeightsError, "given twice"),
    ],
)
def test_damage_in_a_checkpoint(broken, raw, error, word):
    (broken / "vae" / WEIGHTS).write_bytes(raw)
    refused(broken, error, WEIGHTS, word)


def test_a_pipe_as_a_shard(broken):
    os.mkfifo(broken / "vae" / "pipe.safetensors")
    index = {"weight_map": {"a": "pipe.safetensors"}}
    (broken / "vae" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    refused(broken, DamagedWeightsError, "pipe.safetensors", "not a regular file")


def shorter(file):
    os.truncate(file, file.stat().st_size - 1)


def gone(file):
    file.unlink()


@pytest.mark.parametrize(
    ("change", "words"), [(shorter, "end of file inside"), (gone, "No such file")]
)
def test_a_file_that_changes_during_the_export(broken, change, words):
    """It is read when the network has been traced, which takes minutes for a large one."""

    def progress(what, done, _total):
        if (what, done) == ("denoiser", 1):
            change(broken / "transformer" / WEIGHTS)

    engines = broken.parent / "engines"
    with pytest.raises(DamagedWeightsError, match=words):
        export(broken, engines / "bundle", progress=progress)
    assert not list(engines.iterdir())


@pytest.mark.parametrize("left", [0, 1, 7, 63, 64, 65, 399])
def test_a_tensor_whose_file_has_shrunk(tmp_path, monkeypatch, left):
    monkeypatch.setattr(stored, "CHUNK", 64)
    file = written(tmp_path, save({"w": torch.ones(100)}))
    (tensor,) = read_header(file)
    os.truncate(file, tensor.start + left)
    with pytest.raises(DamagedWeightsError, match="end of file inside 'w'"):
        list(tensor.chunks())


# types

FP8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
UNREADABLE = sorted(set(header.BITS) - set(stored.TORCH_DTYPES))


@pytest.mark.parametrize("dtype", UNREADABLE)
def test_a_type_torch_cannot_convert_is_named_when_it_is_read(tmp_path, dtype):
    bits = header.BITS[dtype]  # of one element, and bytes of eight
    text = listed(entry("w", dtype, shape="[8]", offsets=f"[0,{bits}]"))
    (tensor,) = read_header(written(tmp_path, raw_file(text, bytes(bits))))
    with pytest.raises(DamagedWeightsError, match=f"'w': got type {dtype}, expected one of F64"):
        list(tensor.chunks())


def all_values(dtype):
    """Every finite value of an 8-bit type."""
    values = torch.arange(256, dtype=torch.uint8).view(dtype)
    return values[torch.isfinite(values.float())]


@pytest.mark.parametrize("name", FP8)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_8_bit_float_is_converted_as_torch_does(tmp_path, name, dtype):
    values = all_values(FP8[name])
    (tensor,) = read_header(written(tmp_path, save({"w": values})))
    assert tensor.dtype == name
    write_weights(tmp_path / "out.safetensors", [Conversion(tensor, dtype)])
    assert torch.equal(load_file(tmp_path / "out.safetensors")["w"], values.to(dtype))


@pytest.mark.parametrize("name", FP8)
def test_an_8_bit_nan_is_refused(tmp_path, name):
    (tensor,) = read_header(
        written(tmp_path, save({"w": torch.tensor([1, torch.nan]).to(FP8[name])}))
    )
    with pytest.raises(DamagedWeightsError, match="'w': got NaN or Inf"):
        list(Conversion(tensor, torch.float32).chunks())


def clip(checkpoint):
    source = open_checkpoint(checkpoint).components["text_encoder"]
    return clip_recipe(source, "fp32", ClipPooled, 16)


def test_a_component_in_8_bits_is_exported(broken, tmp_path):
    """As the smaller files of Flux are: every matrix in fp8, without a scale."""
    file = broken / "text_encoder" / "model.safetensors"
    save_file({k: v.to(torch.float8_e4m3fn) for k, v in load_file(file).items()}, file)
    (tmp_path / "bundle").mkdir()
    exported = exporter._component(clip(broken), tmp_path / "bundle", exporter.silent)
    assert all(metric.passed for metric in exported.metrics)
    source = load_file(file)
    for name, value in load_file(tmp_path / "bundle" / exported.spec.weights).items():
        assert torch.equal(value, source[name].float()), name


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.complex64])
def test_a_weight_that_is_no_real_number(broken, dtype):
    file = broken / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("fc1.weight"))
    save_file({**tensors, name: tensors[name].to(dtype)}, file)
    with pytest.raises(DamagedWeightsError, match=r"fc1.weight.*F8_E4M3.*not quantised"):
        check_names(clip(broken))


def test_scales_beside_8_bit_weights_are_not_passed_over(broken):
    file = broken / "text_encoder" / "model.safetensors"
    save_file({**load_file(file), "scaled_fp8": torch.zeros(1)}, file)
    with pytest.raises(DamagedWeightsError, match="unknown scaled_fp8"):
        check_names(clip(broken))
