"""A LoRA of its own for each image, as inputs of the denoiser."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

import eri_runtime as eri
from eri_export import export
from eri_export.choices.ranges import make_ranges
from eri_export.commands.dry_run import dry_run_lines
from eri_export.gate.parity import compare
from eri_export.plan.plan import make_plan
from eri_runtime.bundle import manifest
from eri_runtime.bundle.spec import LORA_A
from eri_runtime.commands.describe_bundle import describe_bundle
from eri_runtime.errors import LoraError, ParityError, UnknownNameError, UsageError
from eri_runtime.weights.lora.inputs import LoraInputs

RANK = 6
BLOCK = "transformer_blocks.0"
WORDS = {
    "guidance_scale": 4.0,
    "num_inference_steps": 3,
    "height": 32,
    "width": 48,
    "max_sequence_length": 8,
    "output_type": "latent",
}
PROMPTS = ("a red heart", "a cat", "a green house")
WAYS = [("cpu", "step"), ("cpu", "numpy"), ("openvino", "auto")]


@pytest.fixture(scope="module")
def root(sd35_checkpoint, tmp_path_factory):
    target = tmp_path_factory.mktemp("loras") / "bundle"
    return export(sd35_checkpoint, target, lora_rank=RANK).root


@pytest.fixture(scope="module", params=WAYS, ids=" ".join)
def pipe(request, root):
    backend, loop = request.param
    with eri.load(root, backend, loop=loop) as pipe:
        load_all(pipe)
        yield pipe


def lora(pipe, rank, modules):
    """Diffusers' tensors of a LoRA of so many ranks."""
    shapes = pipe.bundle.components["denoiser"].lora.targets
    rng = np.random.default_rng(rank)
    tensors = {}
    for module in modules:
        out, width = shapes[f"{module}.weight"]
        down, up = rng.standard_normal((rank, width)), rng.standard_normal((out, rank))
        tensors[f"transformer.{module}.lora_A.weight"] = (down * width**-0.5).astype("f")
        tensors[f"transformer.{module}.lora_B.weight"] = (up * rank**-0.5).astype("f")
    return tensors


# modules of sequences and of vectors
LORAS = {
    "style": (2, [f"{BLOCK}.attn.to_q", f"{BLOCK}.attn.to_out.0", f"{BLOCK}.norm1.linear"]),
    "face": (3, [f"{BLOCK}.attn.to_q", "time_text_embed.text_embedder.linear_1", "proj_out"]),
    "large": (5, [f"{BLOCK}.attn.to_q"]),
}


def load_all(pipe):
    """Know the LoRAs without merging any."""
    for name, (rank, modules) in LORAS.items():
        pipe.load_lora(lora(pipe, rank, modules), 0, name=name)


def latents(pipe, prompts=PROMPTS, seed=0, **words):
    return pipe(list(prompts), seed=seed, **{**WORDS, **words}).latents


def close(ours, expected, tolerance=2e-5):
    assert np.abs(ours - expected).max() <= tolerance * np.abs(expected).max()


def differ(one, other):
    assert np.abs(one - other).max() > 1e-2 * np.abs(other).max()


@pytest.fixture(scope="module")
def plain(sd35_bundle):
    with eri.load(sd35_bundle, "cpu") as pipe:
        yield pipe


def test_without_loras_it_is_the_plain_bundle(pipe, plain):
    assert pipe.bundle.components["denoiser"].compared == {}
    close(latents(pipe), latents(plain))
    close(latents(pipe, loras={"style": 0.0}), latents(plain))


def test_one_for_all_is_the_merged_one(pipe, plain):
    ours = latents(pipe, loras={"style": 0.8, "face": -0.5})
    differ(ours, latents(plain))
    with eri.load(plain.bundle.root, "cpu") as merged:
        for name, scale in (("style", 0.8), ("face", -0.5)):
            merged.load_lora(lora(pipe, *LORAS[name]), scale, name=name)
        close(ours, latents(merged))


def test_each_image_has_its_own(pipe):
    own = [{"style": 1.0, "face": 0.5}, None, {"large": -1.0}]
    together = latents(pipe, loras=own)
    for i, each in enumerate(own):
        alone = latents(pipe, PROMPTS[i : i + 1], i, loras=each)
        close(together[i : i + 1], alone)
    differ(together, latents(pipe))


def test_one_a_prompt_with_more_rows_than_fit_at_once(cpu):
    """Four conditions of 6 images are 24 rows, two pieces of a graph that takes 16."""
    prompts = [{each: 0.5, "a photograph": 0.3, "low quality": 0.2} for each in PROMPTS]
    own, seeds = [{"style": 1.0}, {}, {"large": 1.0}], list(range(6))
    words = {"num_images_per_prompt": 2, "num_inference_steps": 2}
    together = latents(cpu, prompts, seeds, loras=own, **words)
    for i, each in enumerate(own):
        mine = seeds[2 * i : 2 * i + 2]
        close(together[mine], latents(cpu, prompts[i : i + 1], mine, loras=each, **words))


def test_inputs_are_made_once(root):
    spec = eri.read_bundle(root).components["denoiser"]
    inputs = LoraInputs(spec)
    none = inputs.products([{}, {}], {})
    assert none is inputs.products([{}, {}], {})
    assert set(none.shared) == {each.name for each in spec.inputs} - {
        each.name for each in spec.plain_inputs
    }
    assert {value.shape[0] for value in none.shared.values()} == {1}
    assert not any(value.any() for value in none.shared.values())
    sizes = {value.shape[2] for name, value in none.shared.items() if name.startswith(LORA_A)}
    assert sizes == {1}
    assert not none.rows


def test_a_static_graph_is_given_every_row_and_rank(root):
    spec = eri.read_bundle(root).components["denoiser"]
    fixed = {name: eri.ShapeRange(min=n, opt=n, max=n) for name, n in (("loras", 2), ("rank", 6))}
    inputs = LoraInputs(dataclasses.replace(spec, ranges={**spec.ranges, **fixed}))
    made = inputs.products([{}, {}], {})
    assert not made.shared
    downs = {v.shape[::2] for name, v in made.rows.items() if name.startswith(LORA_A)}
    assert downs == {(2, 6)}


def test_the_manifest_and_inspect_say_it(root, sd35_bundle):
    bundle = eri.read_bundle(root)
    spec = bundle.components["denoiser"].lora
    assert (spec.rank, spec.least, spec.shared) == (RANK, 1, True)
    assert spec.targets[f"{BLOCK}.attn.to_q.weight"] == (32, 32)
    assert manifest.dump(bundle) == (root / "manifest.json").read_text()
    plain = eri.read_bundle(sd35_bundle)
    assert plain.components["denoiser"].lora is None
    assert "lora" not in (sd35_bundle / "manifest.json").read_text()
    weights = "denoiser/weights.safetensors"
    assert plain.files[weights] == bundle.files[weights]
    (line,) = (line for line in describe_bundle(bundle) if "lora_A" in line)
    assert f"of {len(spec.targets)} linear weights W: LoRAs up to rank 6" in line
    assert len(list(describe_bundle(plain))) < len(list(describe_bundle(bundle)))


WRONG = {
    "unknown": ({"art": 1.0}, UnknownNameError, "loras: got 'art', expected style, face, large"),
    "ranks": (
        {"style": 1.0, "large": 1.0},
        UsageError,
        "loras style, large: got a rank of 7 in all, expected at most 6 an image; merge .*rank 7",
    ),
    "count": ([{}, {}], UsageError, "loras: got 2 of them"),
    "text": ("style", UsageError, "loras: got 'style'"),
    "scale": ({"style": "much"}, UsageError, "finite scales"),
    "infinite": ({"style": float("inf")}, UsageError, "finite scales"),
    "kinds": ([1.0, 2.0, 3.0], UsageError, "loras: got 1.0"),
}


@pytest.fixture(scope="module")
def cpu(root):
    with eri.load(root, "cpu") as pipe:
        load_all(pipe)
        yield pipe


@pytest.mark.parametrize("loras, kind, words", WRONG.values(), ids=WRONG)  # noqa: PT006
def test_wrong_ones_are_named(cpu, loras, kind, words):
    with pytest.raises(kind, match=words):
        latents(cpu, loras=loras)


def test_a_bundle_without_inputs_says_how_to_get_them(plain):
    with pytest.raises(UsageError, match=r"exported with `--lora-rank`; merge them .*load_lora"):
        latents(plain, loras={"style": 1.0})


def test_what_is_no_product_is_merged_instead(cpu):
    name = f"lora_transformer_{BLOCK.replace('.', '_')}_attn_to_q"
    sides = {"w1_a": (32, 2), "w1_b": (2, 32), "w2_a": (32, 2), "w2_b": (2, 32)}
    loha = {f"{name}.hada_{part}": np.ones(shape, "f") for part, shape in sides.items()}
    cpu.load_lora({**loha, f"{name}.alpha": np.float32([2])}, 0, name="h")
    text = "text_model.encoder.layers.0.self_attn.q_proj"
    factors = {"down": np.ones((2, 32), "f"), "up": np.ones((32, 2), "f")}
    name = f"lora_te1_{text.replace('.', '_')}"
    cpu.load_lora({f"{name}.lora_{k}.weight": v for k, v in factors.items()}, 0, name="text")
    with pytest.raises(LoraError, match=r"LoRA h: got a change of denoiser: .*to_q.* merge it"):
        latents(cpu, loras={"h": 1.0})
    with pytest.raises(LoraError, match=r"LoRA text: got a change of text_encoder: .* merge it"):
        latents(cpu, loras={"text": 1.0})
    cpu.unload_loras("h", "text")


@pytest.mark.parametrize("rank", [0, -1, 10_000, True, 2.5, "4"])
def test_bad_ranks(sd35_checkpoint, rank):
    with pytest.raises(UsageError, match=r"lora_rank: got .* expected a whole number from 1 to"):
        make_plan(sd35_checkpoint, lora_rank=rank)


@pytest.mark.parametrize("static", [False, True])
def test_a_dry_run_says_it(sd35_checkpoint, tmp_path, static):
    ranges = make_ranges(size="32x48" if static else None, static=static)
    plan = make_plan(sd35_checkpoint, lora_rank=RANK, ranges=ranges)
    assert any(
        "LoRAs up to rank 6 as inputs of" in line for line in dry_run_lines(plan, tmp_path / "b")
    )
    (recipe,) = (each for each in plan.recipes if each.name == "denoiser")
    ranges = recipe.lora_ranges
    assert (ranges["rank"].min, ranges["rank"].max) == (RANK if static else 1, RANK)
    assert ranges["loras"].max == recipe.ranges["batch"].max
    if static:
        assert ranges["loras"].min == ranges["loras"].max


def test_the_gate_finds_inputs_of_the_wrong_layer(root, sd35_checkpoint):
    bundle = eri.read_bundle(root)
    spec = bundle.components["denoiser"]
    plan = make_plan(sd35_checkpoint, lora_rank=RANK)
    (recipe,) = (each for each in plan.recipes if each.name == "denoiser")
    graph = bundle.path(spec.graph)
    model = ir.load(graph)
    inputs = {value.name: value for value in model.graph.inputs}
    one, other = (inputs[f"{LORA_A}{BLOCK}.attn.to_{each}.weight"] for each in "qk")
    one.name, other.name = other.name, one.name
    wrong = graph.with_name("wrong.onnx")
    ir.save(model, wrong)
    try:
        with pytest.raises(ParityError, match=r"denoiser\.output"):
            compare(recipe, wrong, dataclasses.replace(spec, segments=(), step_cache=()), None)
    finally:
        wrong.unlink()
    metrics = compare(recipe, graph, spec, None).report.metrics
    assert {"loras", "step"} <= {each.case for each in metrics}
