"""Compiled models in files: the second process compiles nothing, and draws the same picture."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.bundle import entry_folders
from eri_runtime.commands.main import main
from eri_runtime.errors import IntegrityError
from eri_runtime.executors import choose
from eri_runtime.executors.openvino import executor as module
from eri_runtime.executors.openvino.backend import cpu_capabilities
from eri_runtime.executors.openvino.compiled_models import SUFFIX
from tests.support.bundle_copies import uncompiled_copy

WAYS = [("sdxl", "openvino"), ("sd35", "openvino:bf16"), ("flux", "openvino:bf16")]
WORDS = {"height": 32, "width": 48, "num_inference_steps": 1, "seed": 3, "output_type": "np"}
COMPONENT = "text_encoder"  # the smallest
LENGTH = 16  # tokens


@pytest.fixture
def root(sd35_bundle, tmp_path, monkeypatch):
    """A copy of a bundle for which nothing was compiled, and an empty cache folder."""
    return uncompiled_copy(sd35_bundle, tmp_path, monkeypatch)


@pytest.fixture
def compiled(monkeypatch):
    """The shapes of the first input of every model that is compiled."""
    shapes = []

    def compile_model(core, model, named, options):
        shapes.append(named and next(iter(named.values())))
        return real(core, model, named, options)

    real = module.compile_model
    monkeypatch.setattr(module, "compile_model", compile_model)
    return shapes


def ids(batch=1):
    """Tokens for a text encoder."""
    return {"input_ids": np.arange(batch * LENGTH).reshape(batch, LENGTH) % 40}


def states(root, *batches, **options):
    """What a text encoder makes of tokens, in a process of its own as far as files go."""
    engine = choose(eri.read_bundle(root), "openvino", threads=1, **options)
    with engine(COMPONENT) as encoder:
        return [encoder.run(ids(batch))["hidden_states"] for batch in batches or (1,)]


def entries(root):
    """The entries beside a bundle."""
    return sorted((root / "compiled").glob("*"))


@pytest.mark.parametrize(("family", "backend"), WAYS)
def test_the_second_pipeline_compiles_nothing(
    family, backend, request, tmp_path, monkeypatch, compiled
):
    if backend.endswith("bf16") and "BF16" not in cpu_capabilities():
        pytest.skip("this processor has no bfloat16")
    bundle = request.getfixturevalue(f"{family}_bundle")
    root = uncompiled_copy(bundle, tmp_path, monkeypatch)
    images, counts = [], []
    for cache in (False, True, True):
        with eri.load(root, backend, cache=cache) as pipe:
            images.append(pipe("a red heart", **WORDS).images)
            again = pipe("a red heart", **WORDS).images
        np.testing.assert_array_equal(again, images[-1])
        counts.append(len(compiled))
        compiled.clear()
    plain, first, second = images
    used = [name for name in pipe.bundle.components if name != "vae_encoder"]
    # OpenVINO 2026.4 does not read Flux's rotary embeddings as it wrote them
    again = int(family == "flux")
    assert counts == [len(used), len(used) + again, again]
    np.testing.assert_array_equal(second, first)
    # read from a file, the UNet's tensors lie otherwise in memory and are summed in another order
    rounding = 1e-5 if family == "sdxl" else 0
    np.testing.assert_allclose(first, plain, rtol=0, atol=rounding)
    assert len(entries(root)) == len(used)
    weights = sum((root / name / "weights.safetensors").stat().st_size for name in used)
    assert sum(path.stat().st_size for path in entries(root)) < max(weights / 2, 4e6)


def test_the_command_keeps_nothing_if_told_so(root, tmp_path):
    words = ["generate", str(root), "a red heart", "--steps", "1", "--size", "48x32", "-q"]
    words += ["--backend", "openvino", "-o", str(tmp_path / "a.png")]
    assert main([*words, "--no-cache"]) == 0
    assert not (root / "compiled").exists()
    assert main(words) == 0
    assert len(entries(root)) == 5
    eri.read_bundle(root)


def test_every_size_has_its_own_and_any_size_has_none(root, compiled):
    expected = states(root, 1, 2, 3, cache=False)
    assert compiled == [(1, LENGTH), None]
    compiled.clear()
    for _ in range(2):
        found = states(root, 1, 2, 3)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert compiled == [(1, LENGTH), None, None]
    states(root, 2)
    assert compiled[3:] == [(2, LENGTH)]
    assert len(entries(root)) == 2


@pytest.mark.parametrize("change", ["threads", "machine", "format"])
def test_what_it_depends_on_is_in_its_key(root, compiled, change, monkeypatch):
    states(root)
    compiled.clear()
    if change == "threads":
        with choose(eri.read_bundle(root), "openvino", threads=2)(COMPONENT) as encoder:
            encoder.run(ids())
    else:
        name = {"machine": "processor", "format": "FORM"}[change]
        value = {"machine": lambda: ("x86_64", "other"), "format": 0}[change]
        monkeypatch.setattr(f"eri_runtime.executors.openvino.compiled_models.{name}", value)
        states(root)
    assert compiled == [(1, LENGTH)]
    assert len(entries(root)) == 2


def test_a_flipped_bit_is_compiled_again(root, compiled):
    expected = states(root)
    (path,) = entries(root)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 4
    path.write_bytes(damaged)
    compiled.clear()
    np.testing.assert_array_equal(states(root), expected)
    assert compiled == [(1, LENGTH)]
    np.testing.assert_array_equal(states(root), expected)
    assert compiled == [(1, LENGTH)]


def test_an_entry_that_openvino_refuses_is_compiled_again(root, compiled, monkeypatch, caplog):
    expected = states(root)
    (path,) = entries(root)
    monkeypatch.setattr(entry_folders, "_digest", lambda *_: bytes(32))
    path.write_bytes(bytes(32) + b"of another version, say")
    compiled.clear()
    np.testing.assert_array_equal(states(root), expected)
    assert compiled == [(1, LENGTH)]
    assert "a compiled model is made again" in caplog.text
    assert path.stat().st_size > 1000


def replace_weights(root):
    """Writes other weights of the same size over the old ones, in the manifest too."""
    name = f"{COMPONENT}/weights.safetensors"
    data = bytearray((root / name).read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    np.frombuffer(data, np.uint8, offset=start).view(np.float32)[:] *= np.float32(0.5)
    (root / name).write_bytes(data)
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["files"][name]["sha256"] = hashlib.sha256(data).hexdigest()
    (root / "manifest.json").write_text(json.dumps(manifest))


def test_other_weights_in_the_same_file_are_compiled(root, compiled):
    before = states(root)
    replace_weights(root)
    compiled.clear()
    after = states(root)
    assert compiled == [(1, LENGTH)]
    assert not np.array_equal(after, before)
    np.testing.assert_array_equal(after, states(root, cache=False))


def test_damaged_weights_are_not_kept(root):
    expected = states(root, cache=False)
    path = root / COMPONENT / "weights.safetensors"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[-2] ^= 0x40
    path.write_bytes(damaged)
    with pytest.raises(IntegrityError):
        states(root)
    assert entries(root) == []
    states(root, verify="never")
    assert entries(root) == []
    path.write_bytes(whole)
    np.testing.assert_array_equal(states(root), expected)


def test_damaged_weights_are_found_though_nothing_is_compiled(root):
    states(root)
    path = root / COMPONENT / "weights.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-2] ^= 0x40
    path.write_bytes(damaged)
    with pytest.raises(IntegrityError):
        states(root)


def test_unverified_files_use_an_entry_and_make_none(root, compiled):
    states(root)
    states(root, verify="never")
    assert compiled == [(1, LENGTH)]
    states(root, 2, verify="never")
    assert len(entries(root)) == 1


def test_a_file_renamed_over_the_weights_does_not_reach_an_open_component(root, tmp_path):
    (expected,) = states(root)
    with choose(eri.read_bundle(root), "openvino", threads=1)(COMPONENT) as encoder:
        other = shutil.copytree(root, tmp_path / "other")
        replace_weights(other)
        name = f"{COMPONENT}/weights.safetensors"
        (other / name).replace(root / name)
        np.testing.assert_array_equal(encoder.run(ids())["hidden_states"], expected)


def test_new_weights_are_compiled_and_the_old_ones_are_not(root, compiled):
    (expected,) = states(root)
    compiled.clear()
    engine = choose(eri.read_bundle(root), "openvino", threads=1)
    stored = eri.bundle.read_tensors(root / COMPONENT / "weights.safetensors")
    name = max(stored, key=lambda each: stored[each].size)
    with engine(COMPONENT) as encoder:
        encoder.run(ids())
        assert compiled == []
        encoder.replace({name: stored[name] * np.float32(0.5)})
        changed = encoder.run(ids())["hidden_states"]
        assert compiled == [(1, LENGTH)]
        encoder.replace({})
        np.testing.assert_array_equal(encoder.run(ids())["hidden_states"], expected)
        assert compiled == [(1, LENGTH)]
    assert not np.array_equal(changed, expected)
    assert len(entries(root)) == 1


def test_where_the_bundle_is_read_only_the_user_s_cache_has_it(root, compiled):
    (root / "compiled").write_bytes(b"in the way")  # root may write anywhere
    states(root)
    states(root)
    assert compiled == [(1, LENGTH)]
    fallback = entry_folders.kept_beside(root, SUFFIX).fallback
    assert len(list(fallback.iterdir())) == 1


def test_what_computes_otherwise_from_a_file_is_not_kept(root, compiled, monkeypatch):
    monkeypatch.setattr(module, "TOLERANCES", {"f32": -1.0})
    (expected,) = states(root)
    assert compiled == [(1, LENGTH)] * 2
    with choose(eri.read_bundle(root), "openvino", threads=1)(COMPONENT) as encoder:
        for _ in range(2):
            np.testing.assert_array_equal(encoder.run(ids())["hidden_states"], expected)
    assert compiled == [(1, LENGTH)] * 3
    assert [path.stat().st_size for path in entries(root)] == [32]
