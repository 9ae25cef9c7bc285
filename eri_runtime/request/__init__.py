"""A request: the keyword arguments of a call, validated and completed with the bundle's defaults.

`keywords` lists every keyword and `configs` has objects that set several at once. `arguments`,
`sampler_choice` and `prompt_syntax` validate single arguments and `request` a whole call, whose
prompts may name LoRAs (`lora_tags`). `image_to_image` handles images, masks and
strength, `kept_pixels` what an edit leaves alone, `jobs` has prompts with settings of their own,
and `option_text` parses options of the command line. Start with `keywords`.
"""

from eri_runtime.request.configs import AncestralSamplerConfig, GuidanceConfig, SamplingConfig
from eri_runtime.request.image_to_image import (
    add_noise,
    keep_outside_mask,
    list_images,
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
from eri_runtime.request.option_text import (
    parse_also,
    parse_interval,
    parse_limits,
    parse_option,
    parse_sigmas,
    parse_size,
)
from eri_runtime.request.request import Request, make_request
from eri_runtime.request.tables import request_schedule, request_table

__all__ = [
    "CHECKS",
    "AncestralSamplerConfig",
    "GuidanceConfig",
    "Job",
    "Request",
    "SamplingConfig",
    "Words",
    "add_noise",
    "assign_seeds",
    "error_prefix",
    "first_seed",
    "group_into_batches",
    "keep_outside_mask",
    "list_images",
    "make_jobs",
    "make_request",
    "parse_also",
    "parse_interval",
    "parse_limits",
    "parse_option",
    "parse_sigmas",
    "parse_size",
    "request_schedule",
    "request_table",
    "slice_schedule",
]
