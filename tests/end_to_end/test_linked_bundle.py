"""Bundles of links, as the Hub's cache has them, and bundles named by a relative path."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import eri_runtime as eri
from eri_runtime.bundle import read_tensors
from eri_runtime.commands.main import main
from tests.support.changed_files import linked_copy, scattered_copy
from tests.support.loras import low_rank, modules

WORDS = {
    "num_inference_steps": 1,
    "guidance_scale": 1.0,
    "height": 32,
    "width": 32,
    "seed": 0,
    "output_type": "np",
}
MODES = {
    "": {},
    "low memory": {"low_memory": True},
    "offload": {"memory": eri.MemoryEfficientSamplingConfig(enable_cpu_offload=True)},
    "stream": {"memory": eri.MemoryEfficientSamplingConfig(enable_sequential_cpu_offload=True)},
}
LAYOUTS = {"hub": linked_copy, "scattered": scattered_copy}
WAYS = [
    (backend, layout, mode)
    for backend, modes in (("cpu", MODES), ("openvino", ("", "stream")))
    for layout in LAYOUTS
    for mode in modes
    if (backend, layout) != ("openvino", "scattered")  # to OpenVINO both are the same
]


@pytest.fixture(scope="module")
def folder(sd35_bundle, tmp_path_factory):
    """A working folder with the bundle in every layout and a LoRA."""
    folder = tmp_path_factory.mktemp("links")
    for layout, copy in LAYOUTS.items():
        link = folder / layout
        link.symlink_to(copy(sd35_bundle, folder / f"{layout} cache"))
    shapes = modules(read_tensors(sd35_bundle / "denoiser" / "weights.safetensors"), "attn.to_q")
    save_file(low_rank(shapes, lambda name: f"transformer.{name}"), folder / "style.safetensors")
    return folder


@pytest.fixture(scope="module")
def expected(sd35_bundle, folder):
    """Pictures of the bundle itself with and without the LoRA, by backend and mode."""
    kept = {}

    def pictures(backend, mode):
        if (backend, mode) not in kept:
            with eri.load(sd35_bundle, backend, threads=1, **MODES[mode]) as pipe:
                plain = pipe("a red heart", **WORDS).images
                pipe.load_lora(folder / "style.safetensors", 2.0)
                kept[backend, mode] = plain, pipe("a red heart", **WORDS).images
        return kept[backend, mode]

    return pictures


@pytest.mark.parametrize(("backend", "layout", "mode"), WAYS)
def test_links_give_the_same_pictures_from_any_folder(
    folder, expected, tmp_path, monkeypatch, backend, layout, mode
):
    """Everything is named by relative paths, and the working folder changes after `load`."""
    plain, merged = expected(backend, mode)
    assert not np.array_equal(plain, merged)
    monkeypatch.chdir(folder)
    kept = f"kept {backend} {layout} {mode}"
    with eri.load(layout, backend, threads=1, embeddings=kept, **MODES[mode]) as pipe:
        pipe.load_lora("style.safetensors", 2.0)
        monkeypatch.chdir(tmp_path)
        assert np.array_equal(pipe("a red heart", **WORDS).images, merged)
        pipe.close()
        pipe.unload_loras()
        assert np.array_equal(pipe("a red heart", **WORDS).images, plain)
    assert len(list((folder / kept).glob("*.safetensors"))) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_commands_take_a_bundle_of_links(folder, tmp_path, monkeypatch, capsys, layout):
    monkeypatch.chdir(folder)
    assert main(["inspect", layout]) == 0
    assert "verified" in capsys.readouterr().out
    options = ["--steps", "1", "--size", "32x32", "--seed", "0", "--backend", "cpu"]
    output = os.path.relpath(tmp_path / "heart.png", folder)
    assert main(["generate", layout, "a red heart", *options, "-o", output]) == 0
    (tmp_path / "prompts.txt").write_text("a red heart\na pizza\n")
    many = ["--prompts", str(tmp_path / "prompts.txt"), "-o", str(tmp_path / "many")]
    assert main(["generate", layout, *options, *many]) == 0
    (first, _) = sorted((tmp_path / "many").glob("*.png"))
    alone = np.asarray(Image.open(tmp_path / "heart.png"))
    assert alone.shape == (32, 32, 3)
    assert np.array_equal(np.asarray(Image.open(first)), alone)


def test_a_run_is_kept_where_it_was_begun(folder, tmp_path, monkeypatch):
    """The folder of a run is given relatively, and the working folder changes."""
    from eri_runtime.batch import Run, make_entries
    from eri_runtime.request import Job

    bundle = eri.read_bundle(Path(folder, "hub"))
    monkeypatch.chdir(tmp_path)
    with Run(Path("run"), bundle, seed=0) as run:
        entries = make_entries([Job(prompt="a red heart", seed=0)], {})
        monkeypatch.chdir(folder)
        assert run.resume(entries) == [0]
        run.add(entries[0], Image.new("RGB", (8, 8)), "")
    assert len(list((tmp_path / "run").glob("*.png"))) == 1


def test_an_export_over_a_link_leaves_open_pipelines_alone(sd35_bundle, expected, tmp_path):
    """The link leads to the new bundle; what is open has the old one."""
    from eri_export.publishing.atomic_publish import staging

    plain, _ = expected("cpu", "")
    link = tmp_path / "current"
    link.symlink_to(shutil.copytree(sd35_bundle, tmp_path / "disk" / "v1"))
    with eri.load(link, "cpu", threads=1) as pipe:
        assert np.array_equal(pipe("a red heart", **WORDS).images, plain)
        with staging(link) as folder:
            shutil.copytree(sd35_bundle, folder, dirs_exist_ok=True)
        assert link.is_symlink()
        assert np.array_equal(pipe("a red heart", **WORDS).images, plain)
