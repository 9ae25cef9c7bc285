"""Quantised files that lie are errors that name the tensor, and never anything raw."""

from __future__ import annotations

import json
import os
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from eri_export import open_checkpoint
from eri_export.checkpoints.quantised import dequantised, read_file
from eri_export.weights.weights_file import Conversion
from eri_runtime.errors import CheckpointError, DamagedWeightsError
from tests.support import quantised as made

pytest.importorskip("gguf")

WEIGHT = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
SCALED, _ = made.scaled("x", WEIGHT, "scale_weight")
INT8, _ = made.comfy({"x.weight": WEIGHT}, "int8_tensorwise rotated")
MXFP8, _ = made.comfy({"x.weight": WEIGHT}, "mxfp8")
NVFP4, _ = made.comfy({"x.weight": WEIGHT}, "nvfp4")
NF4, _ = made.nf4("x", WEIGHT)
NESTED, _ = made.nf4("x", WEIGHT, nested=True)
STATE = "x.weight.quant_state.bitsandbytes__nf4"


def text(value):
    return torch.tensor(
        list(value if isinstance(value, bytes) else value.encode()), dtype=torch.uint8
    )


def state(**changes):
    """The state of `NESTED` with other settings."""
    settings = json.loads(bytes(NESTED[STATE].tolist()))
    return {STATE: text(json.dumps({**settings, **changes}))}


NAN8 = torch.full((128, 4), torch.nan).to(torch.float8_e4m3fn)
LIES = {
    "NaN scale": (SCALED, {"x.scale_weight": torch.tensor(torch.nan)}, "x.scale_weight': got NaN"),
    "Inf scale": (SCALED, {"x.scale_weight": torch.tensor(torch.inf)}, "x.scale_weight': got NaN"),
    "scales": (SCALED, {"x.scale_weight": torch.ones(2)}, r"x.scale_weight': got shape \[2\]"),
    "no scale": (SCALED, {"x.scale_weight": torch.ones(0)}, r"x.scale_weight': got shape \[0\]"),
    "whole scale": (SCALED, {"x.scale_weight": torch.ones((), dtype=torch.int64)}, "got type I64"),
    "no weight": (SCALED, {"x.weight": None}, "no weight beside it, expected x.weight"),
    "described, no scale": (INT8, {"x.weight_scale": None}, "int8_tensorwise alone"),
    "another type": (INT8, {"x.weight": WEIGHT}, "'x.weight': got type F32, expected I8"),
    "no JSON": (INT8, {"x.comfy_quant": text("{")}, "x.comfy_quant': got no JSON"),
    "no text": (INT8, {"x.comfy_quant": text(b"\xff\xfe\x00")}, "x.comfy_quant': got no JSON"),
    "deep JSON": (INT8, {"x.comfy_quant": text("[" * 4000)}, "x.comfy_quant': got no JSON"),
    "long JSON": (INT8, {"x.comfy_quant": text("[" * 5000)}, "got 5000 bytes"),
    "a list": (INT8, {"x.comfy_quant": text("[]")}, r"x.comfy_quant': got \[\]"),
    "a strange format": (INT8, {"x.comfy_quant": made.described([1])}, r"the format \[1\]"),
    "a rotation": (
        INT8,
        {"x.comfy_quant": made.described("int8_tensorwise", convrot=True, convrot_groupsize=2)},
        "a rotation in groups of 2, expected 4 or 16",
    ),
    "a wider rotation": (
        INT8,
        {"x.comfy_quant": made.described("int8_tensorwise", convrot=True)},
        "got rows of 32, expected a multiple of 256",
    ),
    "a rotation by words": (
        INT8,
        {"x.comfy_quant": made.described("int8_tensorwise", convrot=True, convrot_groupsize="x")},
        "convrot_groupsize 'x'",
    ),
    "mxfp8 of rows of 8": (MXFP8, {"x.weight": MXFP8["x.weight"][:, :8]}, r"shape \[32, 8\]"),
    "mxfp8 scales": (MXFP8, {"x.weight_scale": MXFP8["x.weight_scale"][:32]}, "expected 512"),
    "mxfp8 Inf": (MXFP8, {"x.weight_scale": MXFP8["x.weight_scale"] | 255}, "'x.weight': got NaN"),
    "nvfp4 NaN": (NVFP4, {"x.weight_scale": NAN8}, "x.weight_scale': got NaN"),
    "nvfp4 alone": (NVFP4, {"x.weight_scale_2": None}, "nvfp4 without weight_scale_2"),
    "nvfp4 scale 2": (NVFP4, {"x.weight_scale_2": torch.ones(3)}, "x.weight_scale_2': got shape"),
    "nvfp4 of no matrix": (NVFP4, {"x.weight": NVFP4["x.weight"].view(-1)}, "expected a matrix"),
    "no absmax": (NF4, {"x.weight.absmax": None}, "no absmax beside it"),
    "few absmax": (NF4, {"x.weight.absmax": torch.ones(3)}, "absmax': got shape .*expected 16"),
    "NaN absmax": (NF4, {"x.weight.absmax": torch.full((16,), torch.nan)}, "absmax': got NaN"),
    "a short table": (NF4, {"x.weight.quant_map": torch.ones(3)}, "quant_map': got shape"),
    "nested, no table": (NESTED, {"x.weight.nested_quant_map": None}, "no nested_quant_map"),
    "nested offset": (NESTED, state(nested_offset=torch.inf), "nested_offset inf"),
    "nested offset of words": (NESTED, state(nested_offset="1"), "nested_offset '1'"),
    "nested blocks": (NESTED, state(nested_blocksize=0), "got blocks of 0"),
    "blocks": (NF4, state(blocksize=-64), "got blocks of -64"),
    "a shape": (NF4, state(shape=[2**40, 2**40]), "'x.weight': got 512 bytes"),
    "a negative shape": (NF4, state(shape=[-32, -32]), r"shape \[-32, -32\]"),
    "no shape": (NF4, state(shape=None), "shape None"),
    "no state": (NF4, {STATE: text("1")}, "no JSON object"),
    "the weight is lost": (NF4, {"x.weight": None}, "no weight beside it"),
}


def written(tmp_path, stored):
    save_file(
        {name: each.contiguous() for name, each in stored.items()}, tmp_path / "a.safetensors"
    )
    return tmp_path / "a.safetensors"


def read(file):
    """Reads a file and all its weights, as an export does."""
    for tensor in dequantised(read_file(file)).values():
        for _ in Conversion(tensor, torch.float32).chunks():
            pass


@pytest.mark.parametrize("lie", LIES)
def test_lies(tmp_path, lie):
    stored, changes, words = LIES[lie]
    changed = {name: each for name, each in {**stored, **changes}.items() if each is not None}
    with pytest.raises(CheckpointError, match=words) as caught:
        read(written(tmp_path, changed))
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("metadata", ["{", "[]", '{"layers": 1}', '{"layers": {"x": 1}}'])
def test_metadata_that_is_none(tmp_path, metadata):
    save_file(SCALED, tmp_path / "a.safetensors", {"_quantization_metadata": metadata})
    with pytest.raises(DamagedWeightsError, match="_quantization_metadata"):
        read(tmp_path / "a.safetensors")


def test_metadata_of_another_layer(tmp_path):
    text = json.dumps({"layers": {"y": {"format": "nvfp4"}}})
    save_file(SCALED, tmp_path / "a.safetensors", {"_quantization_metadata": text})
    with pytest.raises(DamagedWeightsError, match="'y': got a format alone, expected its weight"):
        read(tmp_path / "a.safetensors")


# GGUF

Q8 = made.gguf_block(WEIGHT, "Q8_0")[0]
HEAD = b"GGUF" + struct.pack("<I", 3)


def gguf_bytes(tmp_path, settings=None):
    return made.gguf_file(tmp_path / "s.gguf", {"x.weight": Q8}, settings or {}).read_bytes()


def changed_info(sizes, kind=8, offset=0):
    """A file whose only tensor says this of itself."""
    head = HEAD + struct.pack("<QQ", 1, 0) + made.info("x.weight", sizes, kind, offset)
    return head + bytes(-len(head) % 32) + Q8[2]


def counts(tensors, settings, rest=b""):
    return HEAD + struct.pack("<QQ", tensors, settings) + rest


def with_setting(raw):
    """A file without tensors and with one setting."""
    return counts(0, 1, made.text("s") + raw) + bytes(64)


GGUFS = {
    "version": (b"GGUF" + struct.pack("<I", 1) + bytes(40), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(40), "expected version 2 or 3, little"),
    "magic alone": (b"GGUF", "end of file in its header"),
    "tensors": (counts(2**63, 0), f"{2**63} tensors"),
    "settings": (counts(0, 2**63), f"{2**63} settings"),
    "many tensors": (counts(90_000, 0), "end of file in its header"),
    "a long name": (counts(0, 1, struct.pack("<Q", 2**40)), "bytes in a name"),
    "no name": (counts(0, 1, made.text(b"\xff") + bytes(40)), "UTF-8"),
    "a setting's type": (with_setting(struct.pack("<I", 99)), "'s' of type 99"),
    "lists of lists": (with_setting(struct.pack("<IIQ", 9, 9, 1)), "'s' of type 9"),
    "a long list": (with_setting(struct.pack("<IIQ", 9, 4, 2**60)), "end of file"),
    "an endless list": (with_setting(struct.pack("<IIQ", 9, 4, 2**63)), f"{2**63} numbers"),
    "many texts": (with_setting(struct.pack("<IIQ", 9, 8, 2**60)), f"{2**60} texts"),
    "a long text": (with_setting(struct.pack("<IQ", 8, 2**50)), "end of file"),
    "a setting twice": (counts(0, 2, 2 * made.setting("s", 1)), "'s', twice"),
    "six sizes": (changed_info([2] * 6), "6 sizes of 'x.weight'"),
    "sizes": (changed_info([2**32, 2**32]), "'x.weight': got sizes"),
    "more bytes": (changed_info([32, 33]), "for 'x.weight'"),
    "an offset": (changed_info([32, 32], offset=2**63), "for 'x.weight'"),
    "part of a block": (changed_info([33, 2]), "'x.weight': got shape .*a block of Q8_0"),
    "no sizes": (changed_info([]), "a block of Q8_0"),
    "an unknown type": (changed_info([32, 32], kind=200), "'x.weight': got ggml's type 200"),
    "a removed type": (changed_info([32, 32], kind=4), "'x.weight': got ggml's type 4"),
    "a type without weights": (changed_info([32, 32], kind=15), "got ggml's type 15"),
    "a tensor twice": (
        counts(2, 0, 2 * made.info("x", [1], 0, 0)) + bytes(64),
        "'x', twice, expected each name once",
    ),
}


@pytest.mark.parametrize("lie", GGUFS)
def test_lies_in_gguf(tmp_path, lie):
    raw, words = GGUFS[lie]
    (tmp_path / "a.gguf").write_bytes(raw)
    with pytest.raises(DamagedWeightsError, match=words) as caught:
        open_checkpoint(tmp_path / "a.gguf")
    assert str(tmp_path) in str(caught.value)


def test_a_gguf_whose_names_would_fill_the_memory(tmp_path):
    """Each name is as long as one may be, and there are fewer than the tensors that may be."""
    infos = (made.info(f"{i:065535d}", [1], 0, 0) for i in range(260))
    (tmp_path / "a.gguf").write_bytes(counts(260, 0, b"".join(infos)))
    with pytest.raises(DamagedWeightsError, match="more than 16777216 bytes of names"):
        read(tmp_path / "a.gguf")


@pytest.mark.parametrize("alignment", [0, 3, 2**31 + 1])
def test_a_gguf_with_an_alignment_that_is_none(tmp_path, alignment):
    raw = counts(0, 1, made.setting("general.alignment", alignment)) + bytes(64)
    (tmp_path / "a.gguf").write_bytes(raw)
    with pytest.raises(DamagedWeightsError, match="a power of two"):
        read(tmp_path / "a.gguf")


@pytest.mark.parametrize("shape", [[32, 31], [-32, -32], [2**16, 0], []])
def test_a_gguf_with_an_original_shape_that_is_none(tmp_path, shape):
    settings = {"comfy.gguf.orig_shape.x.weight": shape}
    file = made.gguf_file(tmp_path / "a.gguf", {"x.weight": Q8}, settings)
    with pytest.raises(DamagedWeightsError, match=r"'x.weight': got comfy.gguf.orig_shape"):
        read(file)


def test_a_gguf_with_nan_scales(tmp_path):
    raw = struct.pack("<e", float("nan")) + bytes(32)
    file = made.gguf_file(tmp_path / "a.gguf", {"x.weight": (8, (32, 1), raw)}, {})
    with pytest.raises(DamagedWeightsError, match=r"'x.weight': got NaN or Inf"):
        read(file)


def test_a_gguf_that_is_cut(tmp_path):
    """At every byte of its header, and within its data."""
    raw = gguf_bytes(tmp_path, {"general.architecture": "flux", "n": 1, "list": [1, 2]})
    file = tmp_path / "a.gguf"
    for end in [*range(4, 200), len(raw) - 1]:
        file.write_bytes(raw[:end])
        with pytest.raises(DamagedWeightsError):
            read(file)


def test_a_gguf_that_shrinks(tmp_path):
    file = made.gguf_file(tmp_path / "a.gguf", {"x.weight": Q8}, {})
    (tensor,) = dequantised(read_file(file)).values()
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(DamagedWeightsError, match=r"end of file inside 'x.weight'"):
        list(tensor.chunks())


def test_gguf_without_its_package(tmp_path, monkeypatch):
    from eri_export.checkpoints.quantised import gguf_file

    def missing(kind):
        raise ImportError("no module named gguf")

    monkeypatch.setattr(gguf_file, "_block_type", missing)
    file = made.gguf_file(tmp_path / "a.gguf", {"x.weight": Q8}, {})
    with pytest.raises(CheckpointError, match="pip install gguf"):
        read(file)


FILES = {
    "scaled": save(SCALED),
    "int8": save(INT8),
    "mxfp8": save(MXFP8),
    "nvfp4": save(NVFP4),
    "nf4": save(NESTED),
}


@given(data=st.data())
def test_any_change_is_sound_or_a_typed_error(tmp_path_factory, data):
    """Bytes changed, inserted and cut out: a file reads, or the error is one of ours."""
    home = tmp_path_factory.mktemp("fuzz")
    kinds = {**FILES, "gguf": gguf_bytes(home, {"comfy.gguf.orig_shape.x.weight": [4, 8, 32]})}
    raw = bytearray(kinds[data.draw(st.sampled_from(sorted(kinds)))])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(raw), 900) - 1))
        piece = data.draw(st.binary(max_size=9))
        raw[at : at + data.draw(st.integers(0, 9))] = piece
    file = home / "a"
    file.write_bytes(raw)
    try:
        read(file)
    except CheckpointError as error:
        assert str(file) in str(error)  # noqa: PT017
