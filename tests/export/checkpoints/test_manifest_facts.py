"""The manifest's facts against diffusers' own configs and pipelines."""

from __future__ import annotations

import json
import shutil

import pytest
from diffusers import FluxPipeline, StableDiffusion3Pipeline, StableDiffusionXLPipeline
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from eri_export import open_checkpoint
from eri_export.checkpoints import manifest_facts
from eri_export.checkpoints.tokenizers import read_tokenizers
from eri_export.choices.precision import Policy
from eri_export.graphs.recipes import recipes_for
from eri_runtime.bundle import manifest
from eri_runtime.bundle.spec import Defaults, LatentSpec, ScheduleSpec, ShapeRange, TensorSpec
from eri_runtime.errors import CheckpointError

PIPELINES = {
    "sdxl": StableDiffusionXLPipeline,
    "sd35": StableDiffusion3Pipeline,
    "flux": FluxPipeline,
}


def facts(request, family):
    return manifest.read(request.getfixturevalue(f"{family}_bundle"))


def with_scheduler(checkpoint, folder, **changes):
    """A copy of `checkpoint` with another scheduler config, opened."""
    root = shutil.copytree(checkpoint, folder / "checkpoint")
    file = root / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return open_checkpoint(root)


def test_sdxl(request):
    bundle = facts(request, "sdxl")
    assert bundle.family == "sdxl"
    assert bundle.schedule == ScheduleSpec(
        kind="vp",
        prediction="eps",
        beta_start=0.00085,
        beta_end=0.012,
        beta_curve="scaled_linear",
        spacing="leading",
        steps_offset=1,
        final="zero",
    )
    assert bundle.latents == LatentSpec(channels=4, factor=2, scale=0.13025, shift=0.0, patch=1)
    assert bundle.defaults == Defaults(
        sampler="euler",
        num_inference_steps=50,
        guidance_scale=5.0,
        height=64,
        width=64,
        max_sequence_length=16,
    )
    assert bundle.zero_empty_negative
    assert not bundle.guidance_embedding


def test_sdxl_v_prediction(request):
    schedule = facts(request, "sdxl_v").schedule
    assert schedule.prediction == "v"
    assert schedule.zero_terminal_snr


def test_sd35(request):
    bundle = facts(request, "sd35")
    assert bundle.schedule == ScheduleSpec(
        kind="flow", prediction="flow", spacing="linspace", shift=3.0
    )
    assert bundle.latents == LatentSpec(channels=16, factor=4, scale=1.5305, shift=0.0609, patch=2)
    assert bundle.defaults.sampler == "flow_euler"
    assert (bundle.defaults.num_inference_steps, bundle.defaults.guidance_scale) == (28, 7.0)
    assert bundle.defaults.max_sequence_length == 24  # the tokenizer's, not diffusers' 256
    assert not bundle.zero_empty_negative


def test_flux(request):
    bundle = facts(request, "flux")
    assert bundle.schedule == ScheduleSpec(
        kind="flow", prediction="flow", spacing="trailing", shift=3.0, dynamic_shift=True
    )
    assert bundle.latents == LatentSpec(channels=16, factor=2, scale=0.3611, shift=0.1159, patch=2)
    assert (bundle.defaults.num_inference_steps, bundle.defaults.guidance_scale) == (28, 3.5)
    assert bundle.guidance_embedding
    assert bundle.components["denoiser"].inputs[-1].name == "guidance"


def test_flux_without_guidance(request):
    bundle = facts(request, "flux_schnell")
    assert not bundle.schedule.dynamic_shift
    assert (bundle.defaults.num_inference_steps, bundle.defaults.guidance_scale) == (4, 0.0)
    assert not bundle.guidance_embedding
    assert "guidance" not in [each.name for each in bundle.components["denoiser"].inputs]


@pytest.mark.parametrize("family", PIPELINES)
def test_default_size_is_diffusers_own(request, family):
    pipeline = PIPELINES[family].from_pretrained(request.getfixturevalue(f"{family}_checkpoint"))
    size = pipeline.default_sample_size * pipeline.vae_scale_factor
    bundle = facts(request, family)
    assert (bundle.defaults.height, bundle.defaults.width) == (size, size)
    assert bundle.latents.factor == pipeline.vae_scale_factor


@pytest.mark.parametrize("family", PIPELINES)
def test_ranges_hold_the_defaults_and_name_every_dynamic_dimension(request, family):
    bundle = facts(request, family)
    for spec in bundle.components.values():
        named = {size for each in spec.inputs for size in each.shape if isinstance(size, str)}
        assert set(spec.ranges) == named
        assert all(each.min <= each.opt <= each.max for each in spec.ranges.values())
    decoder = bundle.components["vae_decoder"].ranges
    assert decoder["height"].opt == bundle.defaults.height // bundle.latents.factor
    assert decoder["batch"] == ShapeRange(min=1, opt=1, max=8)
    assert bundle.components["denoiser"].ranges["batch"].max == 16


def test_mmdit_stops_where_its_position_table_ends(sd35_checkpoint, tmp_path):
    checkpoint = open_checkpoint(sd35_checkpoint)
    checkpoint.denoiser.config["pos_embed_max_size"] = 10
    latents = manifest_facts.latent_spec(checkpoint)
    tokenizers = {name: each.spec for name, each in read_tokenizers(checkpoint).items()}
    defaults = manifest_facts.defaults(checkpoint, latents, tokenizers)
    denoiser, *_ = recipes_for(checkpoint, Policy(), latents, defaults, tokenizers)
    assert denoiser.ranges["height"].max == 10 * 2


def test_the_contracts_shapes(request):
    denoiser = facts(request, "flux").components["denoiser"]
    assert [(each.name, each.shape) for each in denoiser.inputs] == [
        ("sample", ("batch", "patches", 64)),
        ("timestep", ("batch",)),
        ("encoder_hidden_states", ("batch", "tokens", 64)),
        ("pooled_projections", ("batch", 32)),
        ("img_ids", ("patches", 3)),
        ("txt_ids", ("tokens", 3)),
        ("guidance", ("batch",)),
    ]
    shape = ("batch", "patches", 64)
    assert denoiser.outputs == (TensorSpec(name="output", dtype="float32", shape=shape),)


@pytest.mark.parametrize("family", PIPELINES)
def test_tokenizers_are_transformers_own_without_padding(request, family):
    bundle = facts(request, family)
    checkpoint = request.getfixturevalue(f"{family}_checkpoint")
    for name, spec in bundle.tokenizers.items():
        ours = Tokenizer.from_file(str(bundle.path(spec.file)))
        theirs = AutoTokenizer.from_pretrained(checkpoint / name)
        assert (ours.truncation, ours.padding) == (None, None)
        assert (spec.max_length, spec.pad_id) == (theirs.model_max_length, theirs.pad_token_id)
        for text in ("", "A Red  heart!", "two black cats, blurry " * 9):
            assert ours.encode(text).ids == theirs(text).input_ids


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prediction_type": "sample"}, {"prediction": "x0"}),
        ({"beta_schedule": "linear"}, {"beta_curve": "linear"}),
        ({"timestep_spacing": "trailing"}, {"spacing": "trailing"}),
        ({"final_sigmas_type": "sigma_min"}, {"final": "sigma_min"}),
        (
            {"_class_name": "DDIMScheduler", "set_alpha_to_one": False, "steps_offset": 0},
            {"final": "sigma_min", "steps_offset": 0},
        ),
    ],
)
def test_vp_schedules(sdxl_checkpoint, tmp_path, changes, expected):
    schedule = manifest_facts.schedule_spec(with_scheduler(sdxl_checkpoint, tmp_path, **changes))
    assert {key: getattr(schedule, key) for key in expected} == expected


def test_missing_settings_are_the_schedulers_own_defaults(sdxl_checkpoint, tmp_path):
    root = shutil.copytree(sdxl_checkpoint, tmp_path / "checkpoint")
    file = root / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "EulerDiscreteScheduler"}))
    schedule = manifest_facts.schedule_spec(open_checkpoint(root))
    assert (schedule.beta_start, schedule.beta_curve) == (0.0001, "linear")
    assert (schedule.spacing, schedule.steps_offset) == ("linspace", 0)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
        ({"_class_name": "NoSuchScheduler"}, "NoSuchScheduler"),
        ({"beta_schedule": "sigmoid"}, "sigmoid"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
    ],
)
def test_schedules_we_do_not_know_are_refused(sdxl_checkpoint, tmp_path, changes, word):
    with pytest.raises(CheckpointError, match=word):
        manifest_facts.schedule_spec(with_scheduler(sdxl_checkpoint, tmp_path, **changes))


def test_ddim_starts_as_ddim(sdxl_checkpoint, tmp_path):
    changes = {"_class_name": "DDIMScheduler", "clip_sample": False}
    checkpoint = with_scheduler(sdxl_checkpoint, tmp_path, **changes)
    tokenizers = {name: each.spec for name, each in read_tokenizers(checkpoint).items()}
    latents = manifest_facts.latent_spec(checkpoint)
    assert manifest_facts.defaults(checkpoint, latents, tokenizers).sampler == "ddim"


def test_versions_and_digest_are_recorded(request):
    bundle = facts(request, "sd35")
    assert {"torch", "diffusers", "transformers", "onnx"} <= set(bundle.built_with)
    checkpoint = open_checkpoint(request.getfixturevalue("sd35_checkpoint"))
    assert bundle.source_digest == checkpoint.digest()
