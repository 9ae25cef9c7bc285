"""For one picture `auto` weighs what opening OpenVINO takes against what running it saves."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

import eri_runtime as eri
from eri_runtime.bundle import FileRecord
from eri_runtime.commands.main import main
from eri_runtime.executors import Settings, choose
from eri_runtime.executors import one_picture as module
from eri_runtime.executors.one_picture import backend_for_one_picture, weigh

SIZES = {
    "text_encoder": {"batch": 1},
    "denoiser": {"batch": 2, "height": 64, "width": 64, "tokens": 16},
    "vae_decoder": {"batch": 1, "height": 64, "width": 64},
}


def of_size(bundle, millions):
    """A bundle whose manifest says that its denoiser has so many million parameters."""
    spec = replace(bundle.components["denoiser"], parameters=millions * 10**6)
    record = FileRecord(size=millions * 4 * 10**6, sha256="0" * 64)
    components = {**bundle.components, "denoiser": spec}
    return replace(
        bundle, components=components, files={**bundle.files, spec.weights: record}, pins=None
    )


@pytest.fixture
def bundle(sd35_bundle):
    """A tiny bundle."""
    return eri.read_bundle(sd35_bundle)


def never():
    raise AssertionError("it decides nothing")


def test_a_small_network_is_done_before_openvino_is_open(bundle):
    name, why = weigh(bundle, SIZES, 28, never)
    assert name == "cpu"
    assert why.startswith("compiling for OpenVINO takes about 0.")
    assert why.endswith(" s more than its 28 steps and decoding save, 0.0 s")


def test_a_large_network_pays_for_compiling(bundle):
    assert weigh(of_size(bundle, 2500), SIZES, 28, never)[0] == "openvino"


def test_between_the_two_it_depends_on_what_is_kept(bundle):
    medium = of_size(bundle, 160)
    assert weigh(medium, SIZES, 1, lambda: False)[0] == "cpu"
    name, why = weigh(medium, SIZES, 1, lambda: True)
    assert name == "openvino"
    assert "opening what is compiled for OpenVINO takes about" in why
    assert weigh(medium, SIZES, 100, never)[0] == "openvino"


def test_fewer_pixels_save_less(bundle):
    sizes = {**SIZES, "denoiser": SIZES["denoiser"] | {"height": 16, "width": 16}}
    large = of_size(bundle, 500)
    assert module.running_saved(large, sizes, 9) < module.running_saved(large, SIZES, 9) / 8


def test_what_another_process_kept_counts(bundle, tmp_path, monkeypatch):
    """What the pipeline compiles is what the choice looks for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = shutil.copytree(
        bundle.root, tmp_path / "bundle", ignore=shutil.ignore_patterns("compiled")
    )
    copy = eri.read_bundle(root)
    sizes = {"vae_decoder": {"batch": 1, "height": 8, "width": 8}}
    assert not module._is_kept(copy, sizes, Settings())
    with eri.load(root, "openvino") as pipe:
        words = {"height": 16, "width": 16, "num_inference_steps": 1, "output_type": "np"}
        pipe("a red heart", **words)
    sides = {"height": 16 // copy.latents.factor, "width": 16 // copy.latents.factor}
    sizes = {"vae_decoder": {"batch": 1, **sides}}
    assert module._is_kept(copy, sizes, Settings())
    assert not module._is_kept(copy, sizes, Settings(cache=False))
    assert not module._is_kept(copy, sizes, Settings(threads=1))


def test_the_command_says_which_and_why(bundle, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(module, "first_usable", lambda _: "openvino")
    words = ["generate", str(bundle.root), "a red heart", "--steps", "1", "--size", "32x32", "-v"]
    assert main([*words, "-o", str(tmp_path / "a.png")]) == 0
    (said,) = [text for text in caplog.messages if text.startswith("backend cpu")]
    assert said.startswith("backend cpu is used: compiling for OpenVINO takes about ")


def test_python_is_not_weighed(bundle):
    specs = {name: replace(spec, compared={"openvino": 0.0}) for name, spec in _specs(bundle)}
    compared = replace(bundle, components=specs)
    assert choose(compared).name == "openvino"
    assert backend_for_one_picture(compared, SIZES, 1, Settings()) == "cpu"


def test_what_openvino_may_not_run_is_not_weighed(bundle):
    specs = {name: replace(spec, compared={}) for name, spec in _specs(bundle)}
    large = of_size(replace(bundle, components=specs), 2500)
    assert backend_for_one_picture(large, SIZES, 28, Settings()) == "cpu"


def _specs(bundle):
    return bundle.components.items()
