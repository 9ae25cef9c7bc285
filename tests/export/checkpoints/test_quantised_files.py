"""Quantised files of every kind and family open as the plain file of their values does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eri_export import make_plan, open_checkpoint
from eri_export.gate.parity import compare
from eri_export.graphs.recipes.text import ClipPooled, clip_recipe
from eri_export.plan.plan import spec_of
from eri_runtime.errors import CheckpointError
from tests.support import quantised
from tests.support import single_files as made
from tests.support.components import write_component
from tests.support.single_file_keys import bfl_flux, ldm_unet, rewritten, sd3_mmdit

pytest.importorskip("gguf")

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "export.md"
GGUF = ("Q8_0", "Q4_0", "Q5_1", "BF16", "F16")


def gguf(state):
    return quantised.gguf_state(state, GGUF)


def by_layer(quantise):
    return lambda state: quantised.layers(state, quantise)


def nested(layer, weight):
    return quantised.nf4(layer, weight, nested=True)


KINDS = {
    "old scaled fp8": quantised.old_fp8,
    **{form: lambda state, form=form: quantised.comfy(state, form) for form in quantised.COMFY},
    "nf4": by_layer(quantised.nf4),
    "nested nf4": by_layer(nested),
    "LLM.int8()": by_layer(quantised.llm_int8),
    "GGUF": gguf,
}
DENOISERS = {
    "flux": ("transformer", bfl_flux),
    "flux, diffusers' names": ("transformer", dict),
    "sd35": ("transformer", sd3_mmdit),
    "sdxl": ("unet", ldm_unet),
}


def file_of(folder, name, stored):
    """A GGUF or safetensors file of these tensors."""
    if isinstance(next(iter(stored.values())), tuple):
        return quantised.gguf_file(folder / f"{name}.gguf", stored, {})
    return made.written(folder / f"{name}.safetensors", stored)


def values(tensor):
    return torch.cat([chunk.float() for chunk in tensor.chunks()]).view(tensor.shape)


def same(one, other, exactly=True):
    """Asserts that two components have the same tensors; a rotation is a sum without an order."""
    assert set(one.tensors) == set(other.tensors)
    assert one.config == other.config
    for name, tensor in one.tensors.items():
        expected = values(other.tensors[name])
        assert tensor.shape == expected.shape
        if exactly:
            assert torch.equal(values(tensor), expected), name
        else:
            torch.testing.assert_close(values(tensor), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("layout", DENOISERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_denoiser(request, tmp_path, layout, kind):
    """Under its authors' names, with fused, swapped and split matrices."""
    root = request.getfixturevalue(f"{layout.split(',')[0]}_checkpoint")
    part, names = DENOISERS[layout]
    stored, meant = KINDS[kind](names(made.weights(root / part)))
    opened, plain = (
        open_checkpoint(file_of(tmp_path, name, each), config=root).denoiser
        for name, each in (("a", stored), ("b", meant))
    )
    packed = {tensor.stored_as for tensor in opened.tensors.values()}
    assert packed - {tensor.stored_as for tensor in plain.tensors.values()}  # something is
    same(opened, plain, "rotated" not in kind)


def llama(state):
    """T5 under llama.cpp's names."""
    rules = (
        (r"encoder\.embed_tokens\.weight|shared\.weight", "token_embd.weight"),
        (r"encoder\.final_layer_norm", "enc.output_norm"),
        (r"encoder\.block", "enc.blk"),
        (r"layer\.0\.SelfAttention\.relative_attention_bias", "attn_rel_b"),
        (r"layer\.0\.SelfAttention\.([qkvo])\.", r"attn_\1."),
        (r"layer\.0\.layer_norm", "attn_norm"),
        (r"layer\.1\.DenseReluDense\.wi_0", "ffn_gate"),
        (r"layer\.1\.DenseReluDense\.wi_1", "ffn_up"),
        (r"layer\.1\.DenseReluDense\.wo", "ffn_down"),
        (r"layer\.1\.layer_norm", "ffn_norm"),
    )
    return rewritten(state, rules)


@pytest.mark.parametrize("kind", [*KINDS, "llama.cpp's GGUF", "a whole T5"])
def test_a_text_encoder(flux_checkpoint, tmp_path, kind):
    """T5 as a file of its own; llama.cpp's may hold the decoder too."""
    state = made.weights(flux_checkpoint / "text_encoder_2")
    if kind in KINDS:
        stored, meant = KINDS[kind](state)
    else:
        stored, _ = gguf(llama(state))
        _, meant = gguf(state)
        if kind == "a whole T5":
            stored |= {
                "dec.blk.0.attn_q.weight": stored["enc.blk.0.attn_q.weight"],
                "output.weight": stored["token_embd.weight"],
            }
    opened, plain = (
        open_checkpoint(flux_checkpoint, text_encoders=[file_of(tmp_path, name, each)])
        for name, each in (("a", stored), ("b", meant))
    )
    unread = {"decoder.blk.0.attn_q.weight", "lm_head.weight"}
    t5 = opened.components["text_encoder_2"]
    kept = {name: tensor for name, tensor in t5.tensors.items() if name not in unread}
    assert (len(kept) < len(t5.tensors)) == (kind == "a whole T5")
    expected = plain.components["text_encoder_2"].tensors
    assert kept.keys() == expected.keys()
    exactly = "rotated" not in kind
    for name, tensor in kept.items():
        tolerance = {"rtol": 0, "atol": 0 if exactly else 2e-6}
        torch.testing.assert_close(values(tensor), values(expected[name]), **tolerance)


def test_one_file_of_several_kinds(flux_checkpoint, tmp_path):
    """ComfyUI's all-in-one: fp8 by the old scheme, T5 by the new one, the rest plain."""
    state = made.comfy_flux(flux_checkpoint)
    parts = {prefix: {} for prefix in (made.LDM, made.T5)}
    for name in list(state):
        for prefix, part in parts.items():
            if name.startswith(prefix):
                part[name] = state.pop(name)
    old, old_values = quantised.old_fp8(parts[made.LDM], made.LDM)
    new, new_values = quantised.comfy(parts[made.T5], "float8_e4m3fn")
    files = (
        made.written(tmp_path / "a.safetensors", {**state, **old, **new}),
        made.written(tmp_path / "b.safetensors", {**state, **old_values, **new_values}),
    )
    opened, plain = (open_checkpoint(file, config=flux_checkpoint) for file in files)
    assert set(opened.components) == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    for name, component in opened.components.items():
        same(component, plain.components[name])
    assert opened.digest() != plain.digest()


def test_parts_of_several_kinds(flux_checkpoint, tmp_path):
    """A GGUF transformer, T5 in scaled fp8, CLIP in int8 and a plain VAE."""
    states = {
        name: made.weights(flux_checkpoint / name)
        for name in ("transformer", "text_encoder", "text_encoder_2")
    }
    transformer, _ = gguf(bfl_flux(states["transformer"]))
    t5, _ = quantised.old_fp8(states["text_encoder_2"])
    clip, _ = quantised.comfy(states["text_encoder"], "int8_tensorwise")
    opened = open_checkpoint(
        file_of(tmp_path, "a", transformer),
        config=flux_checkpoint,
        vae=flux_checkpoint,
        text_encoders=[file_of(tmp_path, "b", clip), file_of(tmp_path, "c", t5)],
    )
    kinds = {
        name: {tensor.stored_as for tensor in part.tensors.values()}
        for name, part in opened.components.items()
    }
    assert {"Q8_0", "Q4_0", "Q5_1"} <= kinds["transformer"]
    assert kinds["text_encoder"] >= {"int8_tensorwise"}
    assert kinds["text_encoder_2"] >= {"scaled F8_E4M3"}
    assert kinds["vae"] == {"F32"}


def test_a_vae(sdxl_checkpoint, tmp_path):
    """Given by itself; its attention is quantised, which was stored as convolutions."""
    stored, meant = KINDS["old scaled fp8"](made.weights(sdxl_checkpoint / "vae"))
    opened, plain = (
        open_checkpoint(sdxl_checkpoint, vae=file_of(tmp_path, name, each))
        for name, each in (("a", stored), ("b", meant))
    )
    same(opened.components["vae"], plain.components["vae"])


@pytest.mark.parametrize("kind", ["nf4", "nested nf4", "LLM.int8()"])
@pytest.mark.parametrize("part", ["transformer", "text_encoder_2"])
def test_a_folder_that_bitsandbytes_quantised(flux_checkpoint, tmp_path, kind, part):
    """A folder with `quantization_config`; planning builds the networks by their configs."""
    root = shutil.copytree(flux_checkpoint, tmp_path / "checkpoint")
    (file,) = (root / part).glob("*.safetensors")
    stored, meant = KINDS[kind](load_file(file))
    save_file(stored, file)
    config = json.loads((root / part / "config.json").read_text())
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": "nf4" in kind}
    (root / part / "config.json").write_text(
        json.dumps({**config, "quantization_config": settings})
    )
    tensors = open_checkpoint(root).components[part].tensors
    assert set(tensors) == set(meant)
    for name, tensor in tensors.items():
        assert torch.equal(values(tensor), meant[name].float()), name
    assert make_plan(root).nbytes == make_plan(flux_checkpoint).nbytes


@pytest.mark.parametrize("method", ["torchao", "quanto", "svdquant", "modelopt", None])
def test_a_folder_of_another_method(flux_checkpoint, tmp_path, method):
    root = shutil.copytree(flux_checkpoint, tmp_path / "checkpoint")
    file = root / "transformer" / "config.json"
    settings = {"quant_method": method}
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": settings}))
    with pytest.raises(CheckpointError, match=f"quantised by {method!r}.*GGUF file of this model"):
        open_checkpoint(root)


@pytest.mark.parametrize("kind", KINDS)
def test_a_component_is_exported(flux_checkpoint, tmp_path, shared_trace, kind):
    """End to end: the bundle's weights are the format's values, rounded once."""
    stored, meant = KINDS[kind](made.weights(flux_checkpoint / "text_encoder"))
    opened = open_checkpoint(flux_checkpoint, text_encoders=[file_of(tmp_path, "a", stored)])
    recipe = clip_recipe(opened.components["text_encoder"], "fp32", ClipPooled, 16)
    graph = write_component(shared_trace(recipe), recipe, tmp_path / "part")
    assert compare(recipe, graph, spec_of(recipe), None).report
    written = load_file(graph.with_name("weights.safetensors"))
    assert len(written) > 20
    tolerance = {"rtol": 0, "atol": 2e-6 if "rotated" in kind else 0}
    for name, value in written.items():
        torch.testing.assert_close(value, meant[name].float(), **tolerance)


REFUSED = {
    "SVDQuant weights of nunchaku": "transformer_blocks.0.attn.to_qkv.wscales",
    "AWQ or GPTQ weights": "transformer_blocks.0.norm1.linear.qweight",
    "weights quantised by quanto": "transformer_blocks.0.norm1.linear.weight._data",
    "weights quantised by torchao": "transformer_blocks.0.norm1.linear._weight_qdata",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_read_is_refused_by_name(tmp_path, what):
    file = made.sparse(tmp_path / "a.safetensors", {REFUSED[what]: (4, 4)})
    words = f"{what} .*export the 16-bit, fp8 or GGUF file of this model"
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(file)


@pytest.mark.parametrize("form", ["convrot_w4a4", "asym_w4a8_int8", "awq_w4a16", "new"])
def test_a_format_of_comfy_that_is_not_read(tmp_path, form):
    stored = {
        "x.weight": torch.zeros(4, 4, dtype=torch.int8),
        "x.weight_scale": torch.ones(4),
        "x.comfy_quant": quantised.described(form),
    }
    words = f"x.weight.*the format '{form}', expected one of float8_e4m3fn.*GGUF file of this"
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(made.written(tmp_path / "a.safetensors", stored))


def test_awq_in_nvfp4(tmp_path):
    stored, _ = quantised.nvfp4("x", torch.ones(16, 16))
    stored["x.comfy_quant"] = quantised.described("nvfp4")
    stored["x.pre_quant_scale"] = torch.ones(16)
    with pytest.raises(CheckpointError, match=r"x.pre_quant_scale.*which is AWQ"):
        open_checkpoint(made.written(tmp_path / "a.safetensors", stored))


def test_integers_with_a_scale_and_no_format(tmp_path):
    stored = {"x.weight": torch.zeros(4, 4, dtype=torch.uint8), "x.weight_scale": torch.ones(4)}
    with pytest.raises(CheckpointError, match="type U8 with a scale and no comfy_quant"):
        open_checkpoint(made.written(tmp_path / "a.safetensors", stored))


def rows():
    """The kinds of files that the guide says are read, and the words of those that are refused."""
    lines = GUIDE.read_text().split("### Files in fp8 and quantised files")[1].splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("| ")]
    read = [cell[1] for cell in cells if cell[3].startswith("read")]
    refused = [cell[3] for cell in cells if cell[3].startswith("refused")]
    return read, refused


def test_the_guide_lists_what_is_tested_here():
    read, refused = rows()
    kinds = ["old scaled fp8", *quantised.COMFY, "NF4", "LLM.int8()", "GGUF", "llama.cpp"]
    for kind in kinds:
        assert any(kind.removesuffix(" rotated") in row for row in read), kind
    assert len(read) == 10
    words = [*REFUSED, "the format 'convrot_w4a4'", "which is AWQ", "a scale and no comfy_quant"]
    words.append("weights quantised by 'torchao'")
    assert sorted(refused) == sorted(f"refused: `{each}`" for each in words)
