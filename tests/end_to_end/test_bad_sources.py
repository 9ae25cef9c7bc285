"""What is no path, and tensors by keys that are no text: a typed error that names it."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

import eri_runtime as eri
from eri_export import make_plan, open_checkpoint
from eri_runtime.commands.main import main
from eri_runtime.errors import EriError, UsageError
from tests.support.loras import base_weights, dotted, low_rank

NAME = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
# each takes a pipeline, a checkpoint and the value
TAKERS = {
    "load": lambda pipe, checkpoint, value: eri.load(value),
    "read_bundle": lambda pipe, checkpoint, value: eri.read_bundle(value),
    "load_lora": lambda pipe, checkpoint, value: pipe.load_lora(value),
    "set_loras": lambda pipe, checkpoint, value: pipe.set_loras({value: 1.0}),
    "update_weights": lambda pipe, checkpoint, value: pipe.update_weights(value),
    "textual inversion": lambda pipe, checkpoint, value: pipe.load_textual_inversion(value),
    "checkpoint": lambda pipe, checkpoint, value: open_checkpoint(value),
    "vae": lambda pipe, checkpoint, value: open_checkpoint(checkpoint, vae=value),
    "scheduler": lambda pipe, checkpoint, value: open_checkpoint(checkpoint, scheduler=value),
    "text encoder": lambda pipe, checkpoint, value: open_checkpoint(
        checkpoint, text_encoders=[value]
    ),
    "merged LoRA": lambda pipe, checkpoint, value: make_plan(checkpoint, loras=[(value, 1.0)]),
}
NO_PATHS = {
    "NUL": "a\0b",
    "NUL in a file": "a\0b.safetensors",
    "a lone surrogate": "a\ud800b.safetensors",
    "too long": "x" * 5000 + ".safetensors",
    "a number": 5,
    "bytes": b"a.safetensors",
}


@pytest.fixture(scope="module")
def pipe(sdxl_bundle):
    with eri.load(sdxl_bundle) as pipe:
        yield pipe


@pytest.mark.parametrize("value", NO_PATHS.values(), ids=NO_PATHS)
@pytest.mark.parametrize("take", TAKERS.values(), ids=TAKERS)
def test_what_is_no_path_is_a_typed_error(pipe, sdxl_checkpoint, take, value):
    with pytest.raises(EriError) as caught:
        take(pipe, sdxl_checkpoint, value)
    start = value[:3] if isinstance(value, str) else str(value)
    assert start in str(caught.value) or ascii(start)[1:-1] in str(caught.value)
    assert pipe.loras == {}


KEYED = {
    "load_lora": lambda pipe, tensors: pipe.load_lora(tensors, name="own"),
    "update_weights": lambda pipe, tensors: pipe.update_weights(tensors),
    "textual inversion": lambda pipe, tensors: pipe.load_textual_inversion(tensors),
    "apply_lora": lambda pipe, tensors: eri.apply_lora_for_inference(
        {"conv_in.weight": np.zeros((2, 2, 3, 3), np.float32)}, tensors
    ),
    "apply_lora, base": lambda pipe, tensors: eri.apply_lora_for_inference(tensors, {}),
}


@pytest.mark.parametrize("key", [5, None, b"conv_in.weight", ("conv_in", "weight")], ids=repr)
@pytest.mark.parametrize("take", KEYED.values(), ids=KEYED)
def test_a_key_that_is_no_text_is_a_typed_error(pipe, take, key):
    with pytest.raises(UsageError) as caught:
        take(pipe, {key: np.zeros((2, 2), np.float32)})
    assert repr(key) in str(caught.value)


@pytest.fixture
def lora(sdxl_checkpoint, tmp_path):
    shape = base_weights(sdxl_checkpoint)["denoiser"][f"{NAME}.weight"].shape
    file = tmp_path / "style.safetensors"
    save_file(low_rank({NAME: shape}, dotted("unet.")), file)
    return file


def test_an_export_merges_a_lora_once(sdxl_checkpoint, lora, tmp_path, capsys):
    other = lora.with_name("other.safetensors")
    other.write_bytes(lora.read_bytes())
    plan = make_plan(sdxl_checkpoint, loras=[(lora, 1.0), (other, 0.5)])
    assert [each.scale for each in plan.bundle.baked] == [1.0, 0.5]
    again = lora.parent / ".." / lora.parent.name / lora.name
    with pytest.raises(UsageError, match=r"style\.safetensors twice.*sum of its scales"):
        make_plan(sdxl_checkpoint, loras=[(lora, 1.0), (again, 0.5)])
    words = ["export", str(sdxl_checkpoint), "-o", str(tmp_path / "out"), "--dry-run"]
    assert main([*words, "--lora", str(lora), "--lora", f"{lora}:0.5"]) == 2
    assert "style.safetensors twice" in capsys.readouterr().err
