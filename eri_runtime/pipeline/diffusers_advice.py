"""What to do here instead of a method or attribute of diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Advice(NamedTuple):
    """What a pipeline has instead.

    Attributes:
        expected: What there is here.
        fix: What to do, or None.
    """

    expected: str
    fix: str | None = None


def _memory(option: str) -> Advice:
    """Returns the advice for a memory mode."""
    config = f"eri_runtime.MemoryEfficientSamplingConfig({option}=True)"
    return Advice("memory modes, chosen at load", f"pass memory={config} to eri_runtime.load")


_ATTENTION = Advice("an engine that fuses attention by itself", "remove this line")
_FIXED = Advice("graphs, which cannot be changed", "remove this line")
_FREEU = Advice("a graph without FreeU", "remove this line")
_FUSED = Advice("LoRAs that are always merged", "use pipe.load_lora and pipe.set_loras")
_IP = Advice("a graph without IP-Adapter")
_MODULE = Advice("components of a bundle, which pipe.run runs", "use pipe.run(NAME, inputs)")
_SAVED = Advice("a bundle, which is a folder", "copy the folder, or export the checkpoint again")
_NOTHING = Advice("memory modes that the pipeline chooses", "remove this line")
_CONFIG = Advice("pipe.bundle, which describes the model", "read pipe.bundle")
_SAMPLER = Advice("a sampler for each call", "pass sampler= and sigmas= to the call")
_CALL = Advice("settings of a call", "read them from pipe.request(…)")
_OPEN = Advice("eri_runtime.load, which opens a bundle", "run `eri export` on the checkpoint first")
_NO_HOOK = Advice("no such step", "remove this line")

_PARTS = (
    *("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"),
    *("tokenizer", "tokenizer_2", "tokenizer_3"),
    *("image_encoder", "feature_extractor", "image_processor"),
)

ADVICE: Mapping[str, Advice] = {
    "scheduler": _SAMPLER,
    **dict.fromkeys(_PARTS, _MODULE),
    "safety_checker": Advice("pictures that nothing censors", "remove this line"),
    "watermark": Advice("pictures without watermark", "remove this line"),
    "components": Advice("pipe.bundle.components", "use that, or eri_runtime.load the bundle"),
    "dtype": Advice("a precision per component", 'read pipe.bundle.components["denoiser"]'),
    **dict.fromkeys(("config", "config_name", "name_or_path", "parameters"), _CONFIG),
    **dict.fromkeys(("model_cpu_offload_seq", "hf_device_map"), _NOTHING),
    **dict.fromkeys(("clip_skip", "guidance_scale", "guidance_rescale", "denoising_end"), _CALL),
    **dict.fromkeys(("denoising_start", "num_timesteps", "current_timestep"), _CALL),
    **dict.fromkeys(("cross_attention_kwargs", "joint_attention_kwargs"), _CALL),
    **dict.fromkeys(("do_classifier_free_guidance", "skip_guidance_layers"), _CALL),
    "progress_bar": Advice("on_step=, which is called after every step", "pass it to the call"),
    "enable_model_cpu_offload": _memory("enable_cpu_offload"),
    "enable_sequential_cpu_offload": _memory("enable_sequential_cpu_offload"),
    "enable_group_offload": _memory("enable_sequential_cpu_offload"),
    "enable_attention_slicing": _memory("enable_attention_slicing"),
    "set_attention_slice": _memory("enable_attention_slicing"),
    "enable_vae_slicing": _memory("enable_vae_slicing"),
    "enable_vae_tiling": _memory("enable_vae_tiling"),
    **dict.fromkeys(("disable_attention_slicing", "disable_vae_slicing"), _NOTHING),
    **dict.fromkeys(("disable_vae_tiling", "remove_all_hooks", "reset_device_map"), _NOTHING),
    "enable_xformers_memory_efficient_attention": _ATTENTION,
    "disable_xformers_memory_efficient_attention": _ATTENTION,
    "set_use_memory_efficient_attention_xformers": _ATTENTION,
    **dict.fromkeys(("enable_freeu", "disable_freeu"), _FREEU),
    **dict.fromkeys(("fuse_qkv_projections", "unfuse_qkv_projections", "upcast_vae"), _FIXED),
    **dict.fromkeys(("fuse_lora", "unfuse_lora", "fused_loras", "num_fused_loras"), _FUSED),
    **dict.fromkeys(("enable_lora", "enable_lora_hotswap", "set_lora_device"), _FUSED),
    **dict.fromkeys(("get_list_adapters", "lora_scale", "lora_state_dict"), _FUSED),
    **dict.fromkeys(("load_lora_into_unet", "load_lora_into_transformer"), _FUSED),
    "load_lora_into_text_encoder": _FUSED,
    **dict.fromkeys(("load_ip_adapter", "unload_ip_adapter", "set_ip_adapter_scale"), _IP),
    **dict.fromkeys(("is_ip_adapter_active", "encode_image"), _IP),
    **dict.fromkeys(("prepare_ip_adapter_image_embeds",), _IP),
    "unload_textual_inversion": Advice("pipe.unload_textual_inversions", "use that"),
    **dict.fromkeys(("save_pretrained", "save_config", "save_lora_weights"), _SAVED),
    **dict.fromkeys(("push_to_hub", "write_lora_layers", "pack_weights"), _SAVED),
    **dict.fromkeys(("to_json_file", "to_json_string", "register_to_config"), _CONFIG),
    **dict.fromkeys(("get_config_dict", "load_config", "extract_init_dict"), _CONFIG),
    **dict.fromkeys(("has_compatibles", "ignore_for_config", "register_modules"), _CONFIG),
    **dict.fromkeys(("register_for_auto_class",), _CONFIG),
    **dict.fromkeys(("from_pipe", "from_single_file", "from_config", "download"), _OPEN),
    "check_inputs": Advice("pipe.request, which checks a call", "use pipe.request(…)"),
    "get_timesteps": Advice("pipe.schedule, which returns the levels", "use pipe.schedule(…)"),
    "prepare_latents": Advice("latents= and noise= of a call", "pass them"),
    "prepare_mask_latents": Advice("mask_image= of a call", "pass it"),
    "numpy_to_pil": Advice('output_type="pil" of a call', "pass it"),
    "maybe_convert_prompt": Advice("pipe.load_textual_inversion", "use that"),
    **dict.fromkeys(("get_guidance_scale_embedding", "prepare_extra_step_kwargs"), _NO_HOOK),
    **dict.fromkeys(("text_encoder_name", "transformer_name", "unet_name"), _CONFIG),
}

# attributes of diffusers' pipelines that people set; here that would change nothing
MODULES = ("scheduler", *_PARTS, "safety_checker", "watermark", "config")
