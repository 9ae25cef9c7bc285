"""A bundle whose files change on the disk under an open pipeline: the old picture, or an error."""

from __future__ import annotations

import re
import shutil
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.bundle import manifest, pinned_files, read_tensors, weight_hashes
from eri_runtime.errors import IntegrityError
from tests.support.changed_files import (
    CHANGES,
    changed,
    files_of,
    remove,
    rename_over,
    rewrite,
    rewrite_unseen,
)

WORDS = {
    "num_inference_steps": 1,
    "guidance_scale": 1.0,
    "height": 32,
    "width": 32,
    "seed": 0,
    "output_type": "np",
}
OFFLOAD = eri.MemoryEfficientSamplingConfig(enable_cpu_offload=True)
STREAM = eri.MemoryEfficientSamplingConfig(enable_sequential_cpu_offload=True)
WAYS = {
    "cpu": {"backend": "cpu"},
    "cpu numpy": {"backend": "cpu", "loop": "numpy"},
    "cpu low memory": {"backend": "cpu", "low_memory": True},
    "cpu offload": {"backend": "cpu", "memory": OFFLOAD},
    "cpu stream": {"backend": "cpu", "memory": STREAM},
    "openvino": {"backend": "openvino"},
    "openvino stream": {"backend": "openvino", "memory": STREAM},
}
SEGMENTS = tuple(f"segment-{number:02d}" for number in range(4))
WEIGHTS, DECODER = "denoiser/weights.safetensors", "vae_decoder/weights.safetensors"
FEW = {
    "cpu numpy": ("denoiser/model.cpu.onnx", "denoiser/model.onnx", DECODER, WEIGHTS),
    "cpu low memory": (WEIGHTS, DECODER, "denoiser/step.cpu.onnx"),
    "cpu offload": ("text_encoder/model.onnx", WEIGHTS, DECODER),
    "cpu stream": (WEIGHTS, "denoiser/segment-02.onnx", "denoiser/model.onnx"),
    "openvino": (DECODER, WEIGHTS),
    "openvino stream": (WEIGHTS,),
}
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@pytest.fixture
def root(sd35_bundle, tmp_path):
    return Path(shutil.copytree(sd35_bundle, tmp_path / "sd35"))


def picture(pipe):
    """One picture, for which every component that a prompt needs is run."""
    pipe._encode._entries.clear()
    return pipe("a red heart", **WORDS).images


def used(way):
    """The files that a picture is made of."""
    whole = "step" if way.startswith("cpu") and "numpy" not in way else "model"
    form = ".cpu" if way.startswith("cpu") else ""
    graphs = SEGMENTS if "stream" in way else (f"{whole}{form}",)
    names = [f"denoiser/{graph}" for graph in graphs]
    names += [f"{part}/model" for part in ENCODERS]
    names.append(f"vae_decoder/model{form}")
    parts = {name.split("/")[0] for name in names}
    return {f"{name}.onnx" for name in names} | {f"{part}/weights.safetensors" for part in parts}


def outcome(pipe, expected, file):
    """Whether the picture is refused; it must be the expected one otherwise."""
    try:
        found = picture(pipe)
    except IntegrityError as error:
        named = error.offender == str(file) and error.fix == "load the bundle again"
        return "refused" if named else f"{error}"
    assert np.array_equal(found, expected)
    return "old"


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_changes_gives_the_old_picture_or_an_error(root, way):
    """Files in turn, before they are opened and between two uses, in every way to run them.

    On the CPU every file of the bundle; for the others a few, as OpenVINO compiles for each.
    """
    with eri.load(root, threads=1, **WAYS[way]) as pipe:
        expected = picture(pipe)
        reopens = "stream" in way or "offload" in way
        for number, name in enumerate(files_of(root) if way == "cpu" else FEW[way]):
            change = CHANGES[number % len(CHANGES)]
            file, is_used = root / name, name in used(way)
            with changed(file, change):
                between = outcome(pipe, expected, file)
                pipe.close()
                reopened = outcome(pipe, expected, file)
            assert reopened == ("refused" if is_used else "old"), (name, change)
            in_place = change in (rewrite, rewrite_unseen)
            if in_place or not is_used:
                assert between == reopened, (name, change)
            elif not reopens:
                assert between == "old", (name, change)
            assert outcome(pipe, expected, file) == "old", (name, "mended")


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_before_anything_is_open(root, change):
    with eri.load(root, "cpu", threads=1) as pipe:
        expected = picture(pipe)
    for name in ("text_encoder_3/weights.safetensors", "denoiser/step.cpu.onnx"):
        with eri.load(root, "cpu", threads=1) as pipe, changed(root / name, change):
            assert outcome(pipe, expected, root / name) == "refused"
    for name in ("tokenizer/tokenizer.json", "parity.json"):
        with eri.load(root, "cpu", threads=1) as pipe, changed(root / name, change):
            assert outcome(pipe, expected, root / name) == "old"


def test_weights_that_change_during_a_loop_give_no_picture(root):
    file = root / "denoiser" / "weights.safetensors"
    for loop in ("step", "numpy"):
        with eri.load(root, "cpu", threads=1, low_memory=True, loop=loop) as pipe:
            request = pipe.request("a red heart", **{**WORDS, "num_inference_steps": 3})
            steps = pipe.denoise(request)
            next(steps)
            with changed(file, rewrite), pytest.raises(IntegrityError, match="a rewritten file"):
                next(steps)


@contextmanager
def touched(file):
    file.touch()
    yield


@contextmanager
def linked(file):
    (file.parent / "another").hardlink_to(file)
    yield


@contextmanager
def copied_again(file):
    rename_over(file, file.read_bytes())
    yield


@pytest.mark.parametrize("harmless", [touched, linked, copied_again])
def test_the_same_contents_are_the_same_file(root, harmless):
    with eri.load(root, "cpu", threads=1) as pipe:
        expected = picture(pipe)
        for part in (*ENCODERS, "denoiser"):
            with harmless(root / part / "weights.safetensors"):
                assert np.array_equal(picture(pipe), expected)
        pipe.close()
        assert np.array_equal(picture(pipe), expected)


@pytest.mark.parametrize(
    ("module", "reads"),
    [(pinned_files, "sha256"), (weight_hashes, "sha256"), (manifest, "read_regular_file")],
)
def test_a_link_that_comes_while_a_file_is_read_is_no_change(root, monkeypatch, module, reads):
    """As others link the files of a bundle that is in use: `eri export-triton`, a backup."""
    read, links = getattr(module, reads), count()

    def linking(path, *rest):
        contents = read(path, *rest)
        (root / f"link{next(links)}").hardlink_to(path)
        return contents

    with eri.load(root, "cpu", threads=1) as pipe:
        expected = picture(pipe)
        monkeypatch.setattr(module, reads, linking)
        (root / "link").hardlink_to(root / "denoiser" / "weights.safetensors")
        assert np.array_equal(picture(pipe), expected)
    with eri.load(root, "cpu", threads=1, verify="always") as pipe:
        assert np.array_equal(picture(pipe), expected)
    assert next(links) > 0


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_a_lora_is_merged_into_the_bundles_own_weights(root, backend):
    """A refused LoRA leaves everything as it was: the open denoiser runs on."""
    file = root / "denoiser" / "weights.safetensors"
    name = next(n for n in read_tensors(file) if n.endswith("attn.to_q.weight"))
    rows, columns = read_tensors(file)[name].shape
    stem = f"transformer.{name.removesuffix('.weight')}"
    lora = {
        f"{stem}.lora_A.weight": np.full((1, columns), 0.1, np.float32),
        f"{stem}.lora_B.weight": np.full((rows, 1), 0.1, np.float32),
    }
    with eri.load(root, backend, threads=1) as pipe:
        expected = picture(pipe)
        with changed(file, rename_over):
            with pytest.raises(IntegrityError, match="another file in its place"):
                pipe.load_lora(lora, name="style")
            assert np.array_equal(picture(pipe), expected)
        pipe.load_lora(lora, name="style")
        merged = picture(pipe)
        assert not np.array_equal(merged, expected)
        with changed(file, rewrite), pytest.raises(IntegrityError, match="a rewritten file"):
            pipe.unload_loras()
        assert np.array_equal(picture(pipe), merged)
        with changed(file, remove), pytest.raises(IntegrityError, match="got no file"):
            pipe.unload_loras()
        pipe.unload_loras()
        assert np.array_equal(picture(pipe), expected)


def test_a_folder_that_is_exchanged_is_another_bundle(root, sdxl_bundle, tmp_path):
    """An export over an open bundle, and a link that is moved to a new one."""
    link = tmp_path / "current"
    link.symlink_to(root)
    with eri.load(link, "cpu", threads=1) as linked_pipe, eri.load(root, threads=1) as pipe:
        expected = picture(linked_pipe)
        link.unlink()
        link.symlink_to(sdxl_bundle)
        linked_pipe.close()
        assert np.array_equal(picture(linked_pipe), expected)
        root.rename(tmp_path / "old")
        shutil.copytree(sdxl_bundle, root)
        assert np.array_equal(picture(linked_pipe), expected)  # all of it is open
        with pytest.raises(IntegrityError, match="load the bundle again"):
            picture(pipe)


def test_a_new_tokenizer_is_not_mixed_with_the_old(root):
    """Tokens of a textual inversion need the tokenizer's file again."""
    file = root / "tokenizer" / "tokenizer.json"
    with eri.load(root, "cpu", threads=1) as pipe:
        width = pipe._live.stored("text_encoder")["text_model.embeddings.token_embedding.weight"]
        vectors = {"clip_l": np.ones((1, width.shape[1]), np.float32)}
        vectors["clip_g"] = vectors["clip_l"]
        expected = picture(pipe)
        with changed(file, rename_over), pytest.raises(IntegrityError, match=r"tokenizer\.json"):
            pipe.load_textual_inversion(vectors, "<cat>")
        assert np.array_equal(picture(pipe), expected)


# why a module may take a path without asking for the state of the file
UNCHECKED = {
    "bundle/integrity.py": "hashes it",
    "bundle/manifest.py": "notes its state",
    "bundle/spec.py": "checks it",
    "bundle/weight_hashes.py": "hashes it",
    "executors/choice.py": "opens it within `UsedFiles`",
    "executors/one_picture.py": "asks whether there is a compiled model of it",
    "executors/openvino/compiled_models.py": "is opened within `UsedFiles`",
    "executors/sequential_offload.py": "is opened within `UsedFiles`",
    "executors/tensorrt/backend.py": "is opened within `UsedFiles`",
    "executors/tensorrt/plans.py": "hashes what it has read",
    "executors/ort/backend.py": "only says why a graph cannot run",
    "text/tokenizer.py": "names it in errors",
    "triton/repository.py": "hashes what it links",
}


def test_every_module_opens_the_files_of_a_bundle_by_checked_paths():
    package = Path(eri.__file__).parent
    unchecked = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"(bundle|self|contents)\.path\(|\.root /", path.read_text(encoding="utf-8"))
    }
    assert unchecked == UNCHECKED.keys()
