"""The options of `eri generate`, and the keywords of a call that they set."""

from __future__ import annotations

import argparse
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from eri_runtime.commands.cache_option import add_cache_option
from eri_runtime.commands.memory_options import add_memory_options
from eri_runtime.commands.output import add_output_options
from eri_runtime.commands.subcommand import parsed_by
from eri_runtime.commands.threads_option import add_threads_option

if TYPE_CHECKING:
    from PIL.Image import Image

    from eri_runtime.request import Words

# importing these from their rooms would bring NumPy before the paths are checked
VERIFY = ("first", "always", "never")  # those of `eri_runtime.bundle.Verify`
PERCENTILE = 0.995  # that of `eri_runtime.sampling`


def add_generate_options(parser: argparse.ArgumentParser) -> None:
    """Adds all options and arguments of `eri generate`."""
    parser.add_argument("bundle", metavar="BUNDLE", help="folder written by eri export")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="text of the image")
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="many prompts instead of PROMPT: one per line (.txt), one object per line (.jsonl) or "
        "one per row (.csv), whose settings override these options; -o is then a folder, and "
        "finished images in it are kept",
    )
    parser.add_argument(
        "--negative",
        metavar="TEXT",
        help="negative prompt (default: zeros for SDXL, empty for SD3.5, no CFG for Flux)",
    )
    parser.add_argument(
        "--prompt-syntax",
        choices=("plain", "a1111"),
        help="how prompts are read: plain, or a1111 for (word:1.3), [a:b:0.4], AND, BREAK and "
        "<lora:NAME:0.8>, whose NAME is that of a --lora (default: plain)",
    )
    parser.add_argument(
        "--size",
        type=parsed_by("parse_size"),
        metavar="WxH",
        help="size in pixels, such as 1024x1024 (default: --image's, or the bundle's)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="S",
        help="seed of the first image; image i has S + i (default: random)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="number of images (default: 1); with --prompts, images per batch (default: as many as "
        "the bundle allows)",
    )
    _add_sampling(parser.add_argument_group("sampling"))
    _add_guidance(parser.add_argument_group("guidance"))
    _add_image_to_image(parser.add_argument_group("image to image"))
    parser.add_argument(
        "--backend",
        default="auto",
        metavar="auto|tensorrt|cuda[:tf32]|openvino[:bf16]|cpu",
        help="engine to run the bundle (default: auto, the first that can)",
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="LORA[:SCALE]",
        help="merge a LoRA into the weights: a file, a folder, or OWNER/NAME[:FILE] of the Hub "
        "(default scale: 1); may be repeated",
    )
    parser.add_argument(
        "--textual-inversion",
        action="append",
        default=[],
        metavar="FILE",
        help="add the tokens of a file for prompts to name; may be repeated",
    )
    parser.add_argument(
        "--lora-partial",
        action="store_true",
        help="leave out the keys of a LoRA that match no weight, with a warning that names them",
    )
    add_threads_option(parser, "CPU threads of the engine (default: all cores)")
    parser.add_argument(
        "--verify",
        choices=VERIFY,
        default="first",
        help="compare weights with their sha256 when a file is first used, always or never "
        "(default: %(default)s)",
    )
    add_cache_option(parser)
    add_memory_options(parser.add_argument_group("memory"))
    add_output_options(parser)
    parser.add_argument(
        "--preview", type=Path, metavar="FILE.png", help="save a rough image after every step"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="with --prompts, draw images again whose settings changed since they were drawn into "
        "the folder, and replace them (default: refuse)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE.png",
        help="file to write, which replaces an older one and says so (default: eri-SEED.png, or "
        "the next free eri-SEED_N.png); with --prompts, a folder",
    )


def _add_sampling(group: Any) -> None:
    """Adds the options for sampler, steps and noise."""
    group.add_argument(
        "--steps", type=int, metavar="N", help="denoising steps (default: the bundle's)"
    )
    group.add_argument(
        "--sampler",
        metavar="NAME",
        help="name of the sampler, such as dpmpp_2m or 'DPM++ 2M Karras'; `eri samplers` lists "
        "them (default: the bundle's)",
    )
    group.add_argument(
        "--sigmas",
        type=parsed_by("parse_sigmas"),
        metavar="NAME|L1,L2,...",
        help="noise levels: default, karras, exponential, beta, simple, or one number per step "
        "(default: the bundle's)",
    )
    group.add_argument(
        "--spacing",
        metavar="leading|trailing|linspace",
        help="how timesteps are chosen from those of training (default: the checkpoint's)",
    )
    group.add_argument(
        "--eta", type=float, help="noise of the sampler, 0 to 1 (default: the sampler's)"
    )
    group.add_argument(
        "--option",
        type=parsed_by("parse_option"),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another option of the sampler, such as s_churn=10; may be repeated",
    )
    group.add_argument(
        "--step-cache",
        metavar="first_block",
        help="skip most of the denoiser in steps that change little: faster, and lossy",
    )
    group.add_argument(
        "--step-cache-threshold",
        type=float,
        metavar="T",
        help="change of the first block below which a step is skipped (default: 0.1)",
    )
    group.add_argument(
        "--noise", metavar="torch|philox|brownian", help="noise source (default: torch)"
    )


def _add_guidance(group: Any) -> None:
    """Adds the options for CFG and other guidance."""
    group.add_argument(
        "--guidance", type=float, metavar="G", help="guidance scale (default: the bundle's)"
    )
    group.add_argument(
        "--true-cfg",
        type=float,
        metavar="G",
        help="scale of Flux's CFG, with --negative (default: 1)",
    )
    group.add_argument(
        "--also",
        type=parsed_by("parse_also"),
        action="append",
        default=[],
        metavar="TEXT:WEIGHT",
        help="another prompt that guides the same image; may be repeated",
    )
    group.add_argument(
        "--guidance-rescale",
        type=float,
        metavar="PHI",
        help="rescale of the guided prediction, 0 to 1 (default: 0)",
    )
    group.add_argument(
        "--guidance-interval",
        type=parsed_by("parse_interval"),
        metavar="LOW:HIGH",
        help="noise levels between which CFG acts (default: all)",
    )
    group.add_argument(
        "--bypass-guidance", action="store_true", help="no CFG and no embedded guidance"
    )
    group.add_argument(
        "--dynamic-thresholding",
        type=parsed_by("parse_limits"),
        metavar="T[:P]",
        help=f"threshold and percentile (default: {PERCENTILE}) for x_0 in every step",
    )


def _add_image_to_image(group: Any) -> None:
    """Adds the options for image to image and inpainting."""
    group.add_argument("--image", type=Path, metavar="FILE", help="image to start from")
    group.add_argument(
        "--strength",
        type=float,
        metavar="S",
        help="share of the steps to run on it, up to 1 (default: 0.6)",
    )
    group.add_argument(
        "--mask", type=Path, metavar="FILE", help="mask of the image; white is repainted"
    )
    group.add_argument(
        "--overlay",
        action="store_true",
        help="keep the image's own pixels where the mask is black, and mix them where it is grey",
    )
    group.add_argument(
        "--padding-mask-crop",
        type=int,
        metavar="N",
        help="repaint only the part around the mask and N pixels, at --size (default: the "
        "bundle's), and put it back",
    )


def samplers_text() -> str:
    """Returns the names of the samplers, for the end of the help."""
    from eri_runtime.sampling import SAMPLERS

    lists = {
        "SDXL": [name for name, each in SAMPLERS.items() if "vp" in each.kinds],
        "SD3.5 and Flux": [name for name, each in SAMPLERS.items() if "flow" in each.kinds],
    }
    lines = (f"{family}: {' '.join(names)}" for family, names in lists.items())
    return "\n".join(
        fill(line, initial_indent="  ", subsequent_indent="    ")
        for line in ("samplers of", *lines)
    ).lstrip()


def call_keywords(options: argparse.Namespace) -> Words:
    """Returns the keywords of a call that the options set."""
    width, height = options.size or (None, None)
    return {
        "height": height,
        "width": width,
        "num_inference_steps": options.steps,
        "num_images_per_prompt": options.batch,
        "prompt_syntax": options.prompt_syntax,
        "sampler": options.sampler,
        "sigmas": options.sigmas,
        "spacing": options.spacing,
        "sampler_options": dict(options.option),
        "eta": options.eta,
        "guidance_scale": options.guidance,
        "true_cfg_scale": options.true_cfg,
        "guidance_rescale": options.guidance_rescale,
        "guidance_interval": options.guidance_interval,
        "bypass_guidance": options.bypass_guidance,
        "dynamic_thresholding": options.dynamic_thresholding,
        "step_cache": options.step_cache,
        "step_cache_threshold": options.step_cache_threshold,
        "seed": options.seed,
        "noise": options.noise,
        "image": _picture("--image", options.image),
        "strength": options.strength,
        "mask": _picture("--mask", options.mask),
        "overlay": options.overlay or None,
        "padding_mask_crop": options.padding_mask_crop,
    }


def _picture(name: str, path: Path | None) -> Image | None:
    """Reads the picture of an option, if it is given; raises `UsageError` if that fails."""
    if path is None:
        return None
    from eri_runtime.images import read_picture

    return read_picture(name, path)
