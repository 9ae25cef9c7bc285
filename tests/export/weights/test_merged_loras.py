"""LoRAs merged at export: the bundle is that of the merged checkpoint."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import eri_runtime as eri
from eri_export.checkpoints.sources import open_checkpoint
from eri_export.commands import export
from eri_export.plan.plan import make_plan
from eri_export.weights.merged_loras import merge_loras, with_merged_loras
from eri_runtime.bundle.safetensors_file import read_tensors
from eri_runtime.commands.main import main
from eri_runtime.errors import LoraError, UsageError
from tests.support.loras import base_weights, dotted, joined, low_rank, modules, ours

SCALE = -0.4


@pytest.fixture(scope="module")
def lora(sdxl_checkpoint, tmp_path_factory):
    """Attention of the UNet and of both text encoders."""
    base = base_weights(sdxl_checkpoint)
    parts = [low_rank(modules(base["denoiser"], "to_q", "ff.net.2"), dotted("unet."))]
    parts += [
        low_rank(modules(base[name], "q_proj", "fc1"), dotted(f"{name}."))
        for name in ("text_encoder", "text_encoder_2")
    ]
    file = tmp_path_factory.mktemp("baking") / "style.safetensors"
    save_file({name: np.float32(0.1) * each for name, each in joined(*parts).items()}, file)
    return file


@pytest.fixture(scope="module")
def baked(sdxl_checkpoint, lora, tmp_path_factory):
    """A bundle by the command line."""
    target = tmp_path_factory.mktemp("baked") / "bundle"
    words = ["export", str(sdxl_checkpoint), "-o", str(target), "--lora", f"{lora}:{SCALE}"]
    assert main(words) == 0
    return eri.read_bundle(target)


def test_the_weights_are_the_merged_ones_to_the_bit(sdxl_checkpoint, lora, baked):
    merged = ours(sdxl_checkpoint, "sdxl", read_tensors(lora), SCALE)
    base, changed = base_weights(sdxl_checkpoint), 0
    for component, weights in merged.items():
        written = read_tensors(baked.path(baked.components[component].weights))
        for name in written:
            np.testing.assert_array_equal(written[name], weights[name])
            changed += not np.array_equal(written[name], base[component][name])
    assert changed >= 20


def test_it_draws_what_the_plain_bundle_draws_with_the_lora_loaded(sdxl_bundle, lora, baked):
    words = {"prompt": "a red heart", "height": 48, "width": 64, "seed": 1, "output_type": "latent"}
    with eri.load(baked.root) as pipe:
        made = pipe(**words, num_inference_steps=2).latents
    with eri.load(sdxl_bundle) as pipe:
        plain = pipe(**words, num_inference_steps=2).latents
        pipe.load_lora(lora, SCALE)
        np.testing.assert_array_equal(pipe(**words, num_inference_steps=2).latents, made)
    assert not np.array_equal(plain, made)


def test_the_manifest_says_so(sdxl_bundle, lora, baked, capsys):
    (told,) = baked.baked
    assert (told.file, told.scale, len(told.sha256)) == ("style.safetensors", SCALE, 64)
    assert baked.source_digest != eri.read_bundle(sdxl_bundle).source_digest
    assert main(["inspect", str(baked.root)]) == 0
    assert "LoRA style.safetensors merged in, scale -0.4" in capsys.readouterr().out


def test_the_digest_depends_on_pefts_config_too(sdxl_bundle, lora, tmp_path):
    """Its alpha scales the update as much as the factors do."""
    bundle, file = eri.read_bundle(sdxl_bundle), tmp_path / "style.safetensors"
    shutil.copy(lora, file)
    alone = with_merged_loras(bundle, [(file, 1)])
    digests = {alone.source_digest}
    for alpha in (4, 8):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
        beside = with_merged_loras(bundle, [(file, 1)])
        assert beside.baked == alone.baked
        digests.add(beside.source_digest)
    assert len(digests) == 3


def test_a_dry_run_says_so_and_writes_nothing(sdxl_checkpoint, lora, tmp_path, capsys):
    words = ["export", str(sdxl_checkpoint), "-o", str(tmp_path / "new"), "--dry-run"]
    assert main([*words, "--lora", str(lora)]) == 0
    assert "with style.safetensors merged in, scale 1" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_a_lora_that_fits_in_part(sdxl_checkpoint, lora, tmp_path, capsys, caplog):
    """Without the option it is refused; with it the plan is that of the keys that fit."""
    strange = "unet.nowhere.lora_A.weight"
    part = tmp_path / "part.safetensors"
    save_file({**read_tensors(lora), strange: np.ones((1, 1), np.float32)}, part)
    words = ["export", str(sdxl_checkpoint), "--dry-run", "--lora", str(part)]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert strange in said
    assert "--lora-partial" in said
    assert main([*words, "--lora-partial"]) == 0
    assert f"1 keys of the LoRA match no weight: '{strange}'" in caplog.text
    opened = open_checkpoint(sdxl_checkpoint)
    whole, fitting = merge_loras(opened, [(lora, 1)]), merge_loras(opened, [(part, 1)], True)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    values = [
        torch.cat([*each.components["unet"].tensors[name].chunks()]) for each in (whole, fitting)
    ]
    assert torch.equal(*values)
    plain = torch.cat([*opened.components["unet"].tensors[name].chunks()])
    assert not torch.equal(values[0], plain)


def test_without_loras_a_checkpoint_is_what_it_was(sdxl_checkpoint):
    checkpoint = open_checkpoint(sdxl_checkpoint)
    assert merge_loras(checkpoint, []) is checkpoint


def test_what_does_not_fit_is_refused_before_anything_is_traced(
    sdxl_checkpoint, flux_checkpoint, lora, monkeypatch
):
    with pytest.raises(LoraError, match="SDXL"):
        make_plan(flux_checkpoint, loras=[(lora, 1.0)])
    with pytest.raises(UsageError, match="scale of"):
        make_plan(sdxl_checkpoint, loras=[(lora, float("nan"))])
    monkeypatch.setattr(export, "run_export", lambda *_, **given: pytest.fail(str(given)))
    with pytest.raises(UsageError):
        make_plan(sdxl_checkpoint, loras=[(lora, "much")])
