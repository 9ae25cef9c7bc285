"""The bundle's weights are the checkpoint's, where the graph says they are."""

from __future__ import annotations

import time
from dataclasses import replace
from hashlib import sha256

import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save, save_file

from eri_export import open_checkpoint
from eri_export.checkpoints import stored_tensors
from eri_export.checkpoints.stored_tensors import read_header
from eri_export.weights import weights_file as weights
from eri_export.weights.weights_file import ALIGNMENT, Conversion, write_weights
from eri_runtime.bundle import manifest
from eri_runtime.bundle.spec import FileRecord
from eri_runtime.errors import DamagedWeightsError

FAMILIES = ["sdxl", "sd35", "flux"]
FOLDERS = {"vae_decoder": "vae", "vae_encoder": "vae"}


def opened(request, family):
    """Bundle and checkpoint, and the checkpoint's component of each of the bundle's."""
    bundle = manifest.read(request.getfixturevalue(f"{family}_bundle"))
    checkpoint = open_checkpoint(request.getfixturevalue(f"{family}_checkpoint"))
    for name, spec in bundle.components.items():
        folder = checkpoint.denoiser.name if name == "denoiser" else FOLDERS.get(name, name)
        yield name, bundle.path(spec.graph), checkpoint.components[folder]


def source_tensors(component):
    return {
        k: v for file in component.origin.glob("*.safetensors") for k, v in load_file(file).items()
    }


def external(graph):
    """Name -> (location, offset, length) of every initialiser outside the graph."""
    found = {}
    for each in onnx.load(graph, load_external_data=False).graph.initializer:
        if each.data_location == onnx.TensorProto.EXTERNAL:
            where = {entry.key: entry.value for entry in each.external_data}
            found[each.name] = (where["location"], int(where["offset"]), int(where["length"]))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_point_at_the_checkpoints_bytes_by_the_checkpoints_names(request, family):
    for name, graph, component in opened(request, family):
        source, weights = source_tensors(component), external(graph)
        assert weights, name
        for tensor, (location, offset, length) in weights.items():
            raw = (graph.parent / location).read_bytes()[offset : offset + length]
            assert raw == source[tensor].numpy().tobytes(), (name, tensor)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_holds_what_the_graph_reads_and_the_denoiser_reads_all(request, family):
    for name, graph, component in opened(request, family):
        held = set(load_file(graph.parent / "weights.safetensors"))
        assert held == set(external(graph)), name
        assert held <= set(component.tensors)
        if name in ("denoiser", "text_encoder_3"):
            assert held == set(component.tensors)


@pytest.mark.parametrize("family", FAMILIES)
def test_offsets_are_aligned(request, family):
    for name, graph, _ in opened(request, family):
        for tensor, (_, offset, length) in external(graph).items():
            own = min(length & -length, ALIGNMENT)
            assert offset % own == 0, (name, tensor)


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64]
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
TENSORS = st.dictionaries(
    st.text("ab.é", min_size=1, max_size=6), st.tuples(SHAPES, st.sampled_from(DTYPES)), min_size=1
)


@given(TENSORS)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_what_safetensors_reads(tmp_path, described):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (100 * torch.randn(shape, generator=generator)).to(dtype)
        for name, (shape, dtype) in described.items()
    }
    source, copy = tmp_path / "source.safetensors", tmp_path / "copy.safetensors"
    save_file(tensors, source)
    copy.unlink(missing_ok=True)
    items = [Conversion(t, tensors[t.name].dtype) for t in read_header(source)]
    written = write_weights(copy, items).tensors
    again = load_file(copy)
    assert set(again) == set(written) == set(tensors)
    for name, value in tensors.items():
        assert again[name].dtype == value.dtype
        assert torch.equal(again[name], value)
    assert min(tensor.start for tensor in written.values()) % ALIGNMENT == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conversion_is_torchs_own_across_chunks(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(stored_tensors, "CHUNK", 64)
    value = torch.randn(7, 11)
    (tmp_path / "source.safetensors").write_bytes(save({"w": value}))
    (tensor,) = read_header(tmp_path / "source.safetensors")
    write_weights(tmp_path / "out.safetensors", [Conversion(tensor, dtype)])
    assert torch.equal(load((tmp_path / "out.safetensors").read_bytes())["w"], value.to(dtype))


def test_the_record_is_the_files_own_and_every_byte_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_tensors, "CHUNK", 64)
    save_file({"a": torch.randn(7, 11), "b": torch.arange(3)}, tmp_path / "source.safetensors")
    items = [
        Conversion(each, torch.float16) for each in read_header(tmp_path / "source.safetensors")
    ]
    told = []
    written = write_weights(tmp_path / "out.safetensors", items, told.append)
    raw = (tmp_path / "out.safetensors").read_bytes()
    assert written.record == FileRecord(size=len(raw), sha256=sha256(raw).hexdigest())
    assert sum(told) == len(raw)
    assert len(told) > 4


@pytest.mark.parametrize("rows", [5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_transposed_tensor_comes_in_chunks_too(tmp_path, monkeypatch, rows, dtype):
    monkeypatch.setattr(stored_tensors, "CHUNK", 128)
    value = torch.randn(24, rows)
    save_file({"w": value}, tmp_path / "source.safetensors")
    (tensor,) = read_header(tmp_path / "source.safetensors")
    turned = replace(tensor, shape=(rows, 24), transposed=True)
    assert {chunk.nbytes for chunk in turned.chunks()} == {96}
    write_weights(tmp_path / "out.safetensors", [Conversion(turned, dtype)])
    assert torch.equal(load_file(tmp_path / "out.safetensors")["w"], value.T.to(dtype))


class SlowDigest:
    """A hash that does not keep up with the disk."""

    parts = 0

    def update(self, _part):
        time.sleep(0.001)
        self.parts += 1

    def hexdigest(self):
        return ""


def test_what_is_not_hashed_yet_does_not_pile_up_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_tensors, "CHUNK", 1 << 10)
    save_file({"w": torch.randn(1 << 14)}, tmp_path / "source.safetensors")
    (tensor,) = read_header(tmp_path / "source.safetensors")
    digest, waiting = SlowDigest(), []
    monkeypatch.setattr(weights, "sha256", lambda: digest)
    write_weights(
        tmp_path / "out.safetensors",
        [Conversion(tensor, torch.float16)],
        lambda _: waiting.append(len(waiting) + 2 - digest.parts),  # the first was b""
    )
    assert len(waiting) == 1 + 64
    assert max(waiting) == 1


FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 500, -1])
def test_one_value_that_is_not_finite_is_found(tmp_path, dtype, value, place):
    values = torch.linspace(-3, 3, 1001).to(dtype)
    values[place] = value
    save_file({"w": values}, tmp_path / "source.safetensors")
    (tensor,) = read_header(tmp_path / "source.safetensors")
    with pytest.raises(DamagedWeightsError, match=r"'w'.*NaN or Inf"):
        write_weights(tmp_path / "out.safetensors", [Conversion(tensor, dtype)])


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_values_of_a_type_are_finite(tmp_path, dtype):
    limits = torch.finfo(dtype)
    values = torch.tensor([limits.max, limits.min, limits.smallest_normal, -0.0], dtype=dtype)
    save_file({"w": values}, tmp_path / "source.safetensors")
    (tensor,) = read_header(tmp_path / "source.safetensors")
    write_weights(tmp_path / "out.safetensors", [Conversion(tensor, dtype)])
    assert torch.equal(load_file(tmp_path / "out.safetensors")["w"], values)


def test_float16_overflow_names_the_tensor_and_the_way_out(tmp_path):
    save_file({"big": torch.tensor([1.0, 7e4])}, tmp_path / "source.safetensors")
    (tensor,) = read_header(tmp_path / "source.safetensors")
    with pytest.raises(DamagedWeightsError, match=r"'big'.*70000.*bf16"):
        write_weights(tmp_path / "out.safetensors", [Conversion(tensor, torch.float16)])
