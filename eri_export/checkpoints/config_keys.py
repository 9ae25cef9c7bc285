"""What becomes of every key of every config: a closed list.

A key is honoured, harmless with a word why, or refused unless it has the value that a network here
is built for. `tests/export/checkpoints/test_config_keys.py` walks the constructors' arguments and
fails for a key that is missing here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eri_export.checkpoints.checkpoint import Checkpoint, Config
from eri_export.checkpoints.scheduler_facts import settings_of
from eri_export.checkpoints.scheduler_settings import FIX, arguments_of
from eri_runtime.errors import CheckpointError, short

Verdict = Literal["honoured", "harmless", "only"]


@dataclass(frozen=True)
class Decision:
    """What becomes of a key.

    Attributes:
        verdict: `honoured`, `harmless`, or `only` for a key that is refused unless it is `value`.
        why: What it does, or why it does nothing.
        values: The values that are accepted, for `only`.
    """

    verdict: Verdict
    why: str
    values: tuple[Any, ...] = ()


def _all(verdict: Verdict, why: str, keys: str) -> dict[str, Decision]:
    return dict.fromkeys(keys.split(), Decision(verdict, why))


def _only(why: str, **values: Any) -> dict[str, Decision]:
    return {
        key: Decision("only", why, value if isinstance(value, tuple) else (value,))
        for key, value in values.items()
    }


BUILT = "the network is built with it"
INPUT = "the pipelines here have no such input"
TRAINING = "only training reads it"

SCHEDULER = {
    **_all(
        "honoured",
        "the training schedule",
        "num_train_timesteps beta_start beta_end beta_schedule trained_betas prediction_type "
        "rescale_betas_zero_snr shift base_shift max_shift base_image_seq_len max_image_seq_len "
        "use_dynamic_shifting time_shift_type shift_terminal use_flow_sigmas flow_shift sigma_data "
        "sigma_schedule rho",
    ),
    **_all(
        "honoured",
        "the noise levels of a call",
        "timestep_spacing steps_offset interpolation_type timestep_type use_karras_sigmas "
        "use_exponential_sigmas use_beta_sigmas use_lu_lambdas sigma_min sigma_max "
        "final_sigmas_type set_alpha_to_one original_inference_steps",
    ),
    **_all(
        "honoured",
        "the sampler and its options",
        "solver_order algorithm_type solver_type lower_order_final euler_at_final "
        "timestep_scaling stochastic_sampling variance_type predict_x0 disable_corrector "
        "skip_prk_steps predictor_order corrector_order",
    ),
    **_all(
        "honoured",
        "clipping of x_0",
        "clip_sample clip_sample_range thresholding dynamic_thresholding_ratio sample_max_value",
    ),
    **_all("honoured", "refused if it takes away timesteps", "lambda_min_clipped"),
    **_all("harmless", "it seeds noise that no other library draws", "noise_sampler_seed"),
    **_all("harmless", "only `scale_factors` reads it", "upscale_mode"),
    **_only("from noise to image", invert_sigmas=False),
    **_only("one size for all steps", scale_factors=(None, [])),
    **_only("another scheduler as predictor", solver_p=None),
    **_only("a function, which no file holds", tau_func=None),
}

# of the keys above, those that a class takes and its steps do not read
UNREAD: Mapping[str, frozenset[str]] = {
    "LCMScheduler": frozenset({"timestep_spacing", "steps_offset", "set_alpha_to_one"}),
    "TCDScheduler": frozenset(
        {
            *("timestep_spacing", "steps_offset", "set_alpha_to_one", "timestep_scaling"),
            *("clip_sample", "clip_sample_range", "sample_max_value"),
            *("thresholding", "dynamic_thresholding_ratio"),
        }
    ),
}

VAE = {
    **_all(
        "honoured",
        BUILT,
        "in_channels out_channels down_block_types up_block_types block_out_channels "
        "layers_per_block act_fn latent_channels norm_num_groups use_quant_conv "
        "use_post_quant_conv mid_block_add_attention",
    ),
    **_all("honoured", "the scale of the latents", "scaling_factor"),
    **_all("honoured", "for SD3.5 and Flux; diffusers' SDXL does not read it", "shift_factor"),
    **_all(
        "honoured",
        "for SDXL; diffusers' SD3.5 and Flux do not read it",
        "latents_mean latents_std",
    ),
    **_all("harmless", "sizes come from the call", "sample_size"),
    **_all("harmless", "precision comes from `--precision`", "force_upcast"),
}

UNET = {
    **_all(
        "honoured",
        BUILT,
        "in_channels out_channels center_input_sample flip_sin_to_cos freq_shift down_block_types "
        "mid_block_type up_block_types only_cross_attention block_out_channels layers_per_block "
        "downsample_padding mid_block_scale_factor act_fn norm_num_groups norm_eps "
        "cross_attention_dim transformer_layers_per_block reverse_transformer_layers_per_block "
        "attention_head_dim num_attention_heads dual_cross_attention use_linear_projection "
        "upcast_attention resnet_time_scale_shift resnet_skip_time_act resnet_out_scale_factor "
        "time_embedding_type time_embedding_dim time_embedding_act_fn timestep_post_act "
        "conv_in_kernel conv_out_kernel projection_class_embeddings_input_dim "
        "addition_time_embed_dim mid_block_only_cross_attention cross_attention_norm "
        "addition_embed_type_num_heads",
    ),
    **_all("honoured", "the default size of a call", "sample_size"),
    **_all("honoured", "an input of the graph, or refused with the recipe", "addition_embed_type"),
    **_all("honoured", "guidance is an input of the graph", "time_cond_proj_dim"),
    **_all("harmless", TRAINING, "dropout"),
    **_only(INPUT, class_embed_type=None, num_class_embeds=None, class_embeddings_concat=False),
    **_only(INPUT, encoder_hid_dim=None, encoder_hid_dim_type=None),
    **_only(INPUT, attention_type="default"),
}

MMDIT = {
    **_all(
        "honoured",
        BUILT,
        "patch_size in_channels num_layers attention_head_dim num_attention_heads "
        "joint_attention_dim caption_projection_dim pooled_projection_dim out_channels "
        "pos_embed_max_size dual_attention_layers qk_norm",
    ),
    **_all("honoured", "the default size of a call", "sample_size"),
}

FLUX = {
    **_all(
        "honoured",
        BUILT,
        "in_channels out_channels num_layers num_single_layers attention_head_dim "
        "num_attention_heads joint_attention_dim pooled_projection_dim axes_dims_rope",
    ),
    **_all("honoured", "guidance is an input of the graph", "guidance_embeds"),
    **_only("the pipeline packs the patches", patch_size=1),
}

LIBRARY = {
    **_all(
        "harmless",
        "transformers' own bookkeeping",
        "transformers_version architectures output_hidden_states return_dict dtype "
        "chunk_size_feed_forward id2label label2id problem_type is_encoder_decoder use_cache",
    ),
    **_all("harmless", TRAINING, "initializer_range initializer_factor"),
}

CLIP = {
    **LIBRARY,
    **_all(
        "honoured",
        BUILT,
        "vocab_size hidden_size intermediate_size projection_dim num_hidden_layers "
        "num_attention_heads max_position_embeddings hidden_act layer_norm_eps",
    ),
    **_all("honoured", "where a prompt ends", "eos_token_id"),
    **_all("harmless", "the tokenizer has its own", "bos_token_id pad_token_id"),
    **_all("harmless", TRAINING, "attention_dropout"),
}

T5 = {
    **LIBRARY,
    **_all(
        "honoured",
        BUILT,
        "vocab_size d_model d_kv d_ff num_layers num_heads relative_attention_num_buckets "
        "relative_attention_max_distance layer_norm_epsilon feed_forward_proj",
    ),
    **_all("honoured", "where a prompt ends", "eos_token_id"),
    **_all("harmless", "the tokenizer has its own", "pad_token_id"),
    **_all("harmless", TRAINING, "dropout_rate classifier_dropout"),
    **_all("harmless", "the encoder alone is exported", "num_decoder_layers is_decoder"),
}

NETWORKS: Mapping[str, Mapping[str, Decision]] = {
    "AutoencoderKL": VAE,
    "UNet2DConditionModel": UNET,
    "SD3Transformer2DModel": MMDIT,
    "FluxTransformer2DModel": FLUX,
    "CLIPTextModel": CLIP,
    "CLIPTextModelWithProjection": CLIP,
    "T5EncoderModel": T5,
}


def check_keys(checkpoint: Checkpoint) -> None:
    """Raises `CheckpointError` for a key of a component with a value that nothing here honours."""
    for name, component in checkpoint.components.items():
        for key, decision in NETWORKS[component.class_name].items():
            _check(component.origin, f"{name}: {key}", key, component.config, decision)
    settings = settings_of(checkpoint)
    arguments = arguments_of(settings.name)
    for key, decision in SCHEDULER.items():
        if key in arguments:
            _check(settings.where, key, key, checkpoint.scheduler, decision, FIX)


def _check(
    where: Path,
    label: str,
    key: str,
    config: Config,
    decision: Decision,
    fix: str = "a network of this kind cannot be exported; use one without this setting",
) -> None:
    if decision.verdict != "only" or key not in config:
        return
    value = config[key]
    if not any(value == each and type(value) is type(each) for each in decision.values):
        raise CheckpointError(
            f"{where}: {label}",
            got=short(value),
            expected=f"{decision.values[0]!r}: {decision.why}",
            fix=fix,
        )


def honoured_keys(checkpoint: Checkpoint) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yields each config's part, its keys that were honoured, and those that change nothing.

    A key that the class does not have changes nothing in diffusers either.
    """
    for name, component in checkpoint.components.items():
        yield name, *_sorted(component.config, NETWORKS[component.class_name])
    name = settings_of(checkpoint).name
    keys = arguments_of(name).keys() - UNREAD.get(name, frozenset())
    decisions = {key: value for key, value in SCHEDULER.items() if key in keys}
    yield "scheduler", *_sorted(checkpoint.scheduler, decisions)


def _sorted(config: Config, decisions: Mapping[str, Decision]) -> tuple[list[str], list[str]]:
    """Returns the keys that were honoured or checked, and those that change nothing."""
    keys = [key for key in config if not key.startswith("_")]
    read = [key for key in keys if key in decisions and decisions[key].verdict != "harmless"]
    return read, [key for key in keys if key not in read]
