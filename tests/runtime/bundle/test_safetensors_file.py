"""Weights as memory-mapped NumPy arrays: the library's bytes, and rounded as torch rounds."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eri_runtime.bundle.safetensors_file import read_tensors, round_to
from eri_runtime.errors import (
    DamagedWeightsError,
    NonFiniteError,
    NotACheckpointError,
    PickleError,
)

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@pytest.fixture
def saved(tmp_path):
    """A file with a tensor of every type, and what is in it."""
    values = torch.linspace(-3, 100, 12).view(3, 4)
    written = {name: values.to(dtype) for name, dtype in TORCH.items()}
    written |= {"empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}
    save_file(written, tmp_path / "a.safetensors", {"who": "me"})
    return tmp_path / "a.safetensors", written


def test_every_type_has_the_bytes_of_the_file(saved):
    file, written = saved
    tensors = read_tensors(file)
    assert set(tensors) == set(written)
    assert len(tensors) == len(written)
    assert tensors.metadata == {"who": "me"}
    for name, value in written.items():
        assert tensors[name].shape == tensors.shapes[name] == tuple(value.shape)
        assert (
            tensors[name].tobytes()
            == value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    assert tensors["BF16"].dtype == ml_dtypes.bfloat16


def test_arrays_are_pages_of_the_file_and_cannot_be_written(saved):
    tensors = read_tensors(saved[0])
    assert np.shares_memory(tensors["F32"], tensors["F32"])
    with pytest.raises(ValueError, match="read-only"):
        tensors["F32"][0] = 1


def test_a_name_that_is_not_there_is_a_plain_key_error(saved):
    with pytest.raises(KeyError):
        read_tensors(saved[0])["other"]


def test_a_type_numpy_has_not(tmp_path):
    save_file({"a.weight": torch.zeros(2, dtype=torch.float8_e8m0fnu)}, tmp_path / "a.safetensors")
    tensors = read_tensors(tmp_path / "a.safetensors")
    with pytest.raises(DamagedWeightsError, match=r"a\.weight.*type F8_E8M0.*F16"):
        tensors["a.weight"]


def test_a_pickle_is_refused_with_the_way_out(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "lora.pt")
    with pytest.raises(PickleError, match=r"eri convert .*lora\.pt -o .*lora\.safetensors"):
        read_tensors(tmp_path / "lora.pt")


def test_a_file_that_is_missing_or_cut(saved, tmp_path):
    with pytest.raises(NotACheckpointError, match="got no such file"):
        read_tensors(tmp_path / "b.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(saved[0].read_bytes()[:-1])
    with pytest.raises(DamagedWeightsError, match="copy or download"):
        read_tensors(cut)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_values_are_rounded_once_as_torch_rounds(name):
    values = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    values[:4] = 1 + 2.0**-9, 1 + 3 * 2.0**-9, 1 + 2.0**-11, 1 + 3 * 2.0**-11  # ties
    dtype = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[name]
    expected = torch.from_numpy(values).to(TORCH[name]).float().numpy()
    assert np.array_equal(round_to("w", values, dtype).astype(np.float32), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 65520.0])
def test_what_a_type_cannot_hold_is_named(bad):
    with pytest.raises(NonFiniteError, match=r"a\.weight"):
        round_to("a.weight", np.array([0, bad, 1], np.float32), np.float16)


def test_the_largest_float16_is_held():
    values = np.array([65504.0, -65519.0], np.float32)
    assert np.array_equal(round_to("w", values, np.float16), np.array([65504, -65504], np.float16))
