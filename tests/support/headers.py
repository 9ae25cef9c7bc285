"""Safetensors files written by hand, to be as wrong as a test wants them."""

from __future__ import annotations

import pytest

from eri_export.checkpoints.stored_tensors import read_header
from eri_runtime.errors import CheckpointError, DamagedWeightsError

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
