"""A request: the keyword arguments of a call, validated and completed with the bundle's defaults.

`keywords` lists every keyword and `configs` has objects that set several at once. `arguments`,
`sampler_choice` and `prompt_syntax` validate single arguments and `request` a whole call, whose
prompts may name LoRAs (`lora_tags`). `image_to_image` handles images, masks and strength,
`start_images` what it starts from, `kept_pixels` what an edit leaves alone. Words of diffusers have
`encoder_prompts`, `latent_scale`, `micro_conditions`, `noise_arguments`, `schedule_part`,
`step_end` and `positional`; `refused_words` says why some have no meaning. `step_cache` checks the
words of step caching. `jobs` has prompts with settings of their own, and `option_text` parses
options of the command line. Start with `keywords`.
"""

from eri_runtime.request.configs import AncestralSamplerConfig, GuidanceConfig, SamplingConfig
from eri_runtime.request.image_to_image import (
    Edit,
    add_noise,
    first_noise,
    keep_outside_mask,
    slice_schedule,
)
from eri_runtime.request.jobs import (
    CHECKS,
    Job,
    assign_seeds,
    error_prefix,
    first_seed,
    group_into_batches,
    make_jobs,
)
from eri_runtime.request.keywords import Words
from eri_runtime.request.latent_scale import scheduler_scale
from eri_runtime.request.lora_tags import takes_lora_inputs
from eri_runtime.request.micro_conditions import MicroConditions
from eri_runtime.request.option_text import (
    parse_also,
    parse_interval,
    parse_limits,
    parse_option,
    parse_sigmas,
    parse_size,
)
from eri_runtime.request.positional import POSITIONAL, name_positional
from eri_runtime.request.request import Request, make_request
from eri_runtime.request.start_images import list_images
from eri_runtime.request.step_cache import CACHE_THRESHOLD, FIRST_BLOCK, check_step_cache
from eri_runtime.request.step_end import MICRO, StepEnd, tensor_inputs
from eri_runtime.request.tables import noise_scale, request_schedule, request_table

__all__ = [
    "CACHE_THRESHOLD",
    "CHECKS",
    "FIRST_BLOCK",
    "MICRO",
    "POSITIONAL",
    "AncestralSamplerConfig",
    "Edit",
    "GuidanceConfig",
    "Job",
    "MicroConditions",
    "Request",
    "SamplingConfig",
    "StepEnd",
    "Words",
    "add_noise",
    "assign_seeds",
    "check_step_cache",
    "error_prefix",
    "first_noise",
    "first_seed",
    "group_into_batches",
    "keep_outside_mask",
    "list_images",
    "make_jobs",
    "make_request",
    "name_positional",
    "noise_scale",
    "parse_also",
    "parse_interval",
    "parse_limits",
    "parse_option",
    "parse_sigmas",
    "parse_size",
    "request_schedule",
    "request_table",
    "scheduler_scale",
    "slice_schedule",
    "takes_lora_inputs",
    "tensor_inputs",
]
