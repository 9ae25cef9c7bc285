"""`eri generate`: the words of a call as options of a command."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eri_runtime.command import Subparsers, add_command, parse_lora, say
from eri_runtime.errors import UsageError
from eri_runtime.memory.options import add_memory_options, memory_of
from eri_runtime.parsing import (
    parse_also,
    parse_interval,
    parse_limits,
    parse_option,
    parse_sigmas,
    parse_size,
)
from eri_runtime.thresholding import PERCENTILE
from eri_runtime.words import Words

if TYPE_CHECKING:
    from PIL.Image import Image


def generate_command(commands: Subparsers) -> None:
    """Register `eri generate`."""
    parser = add_command(commands, "generate", "Make images from a bundle.", generate)
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder made by eri export")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?")
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="many: a prompt a line (.txt), an object a line (.jsonl) or a row (.csv), whose words "
        "count before these options; images go to the folder -o, and what is there is not redone",
    )
    parser.add_argument("--negative", metavar="TEXT", help="negative prompt")
    parser.add_argument("--size", type=parse_size, metavar="WxH", help="pixels, such as 1024x1024")
    parser.add_argument("--seed", type=int, metavar="S", help="seed of the first image")
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="number of images (1); with --prompts, how many at once (what the bundle takes)",
    )
    _sampling(parser.add_argument_group("sampling"))
    _guidance(parser.add_argument_group("guidance"))
    _editing(parser.add_argument_group("image to image"))
    parser.add_argument(
        "--backend", default="auto", metavar="auto|tensorrt|cuda|openvino[:bf16]|cpu"
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="merge a LoRA into the weights; may be repeated",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the engine")
    add_memory_options(parser.add_argument_group("memory"))
    parser.add_argument(
        "--preview", type=Path, metavar="FILE.png", help="a rough picture after every step"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE.png",
        help="eri-SEED.png, never overwriting, if left; with --prompts a folder",
    )


def _sampling(group: Any) -> None:
    group.add_argument("--steps", type=int, metavar="N", help="denoising steps")
    group.add_argument("--sampler", metavar="NAME")
    group.add_argument(
        "--sigmas",
        type=parse_sigmas,
        metavar="NAME|L1,L2,...",
        help="noise levels: default, karras, exponential, beta, simple, or one a step",
    )
    group.add_argument("--eta", type=float, help="the sampler's noise, 0 to 1")
    group.add_argument(
        "--option",
        type=parse_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another option of the sampler, such as s_churn=10; may be repeated",
    )
    group.add_argument("--noise", metavar="torch|philox|brownian", help="where noise comes from")


def _guidance(group: Any) -> None:
    group.add_argument("--guidance", type=float, metavar="G", help="guidance scale")
    group.add_argument("--true-cfg", type=float, metavar="G", help="Flux's CFG with --negative")
    group.add_argument(
        "--also",
        type=parse_also,
        action="append",
        default=[],
        metavar="TEXT:WEIGHT",
        help="another prompt that guides the same image; may be repeated",
    )
    group.add_argument("--guidance-rescale", type=float, metavar="PHI", help="0 to 1")
    group.add_argument(
        "--guidance-interval",
        type=parse_interval,
        metavar="LOW:HIGH",
        help="noise levels between which CFG acts",
    )
    group.add_argument(
        "--bypass-guidance", action="store_true", help="no CFG and no embedded guidance"
    )
    group.add_argument(
        "--dynamic-thresholding",
        type=parse_limits,
        metavar="T[:P]",
        help=f"threshold and percentile ({PERCENTILE}) of x_0 in every step",
    )


def _editing(group: Any) -> None:
    group.add_argument("--image", type=Path, metavar="FILE", help="begin from this picture")
    group.add_argument("--strength", type=float, metavar="S", help="how much of it to undo (0.6)")
    group.add_argument("--mask", type=Path, metavar="FILE", help="white where to paint anew")


def generate(options: argparse.Namespace) -> None:
    """Make images, save them with their parameters, and name the files."""
    if (options.prompt is None) == (options.prompts is None):
        got = "neither" if options.prompt is None else "both"
        raise UsageError("PROMPT and --prompts", got=got, expected="one of them")
    if options.prompts is None:
        _generate_one(options)
        return
    from eri_runtime.many import generate_many

    generate_many(options)


def _generate_one(options: argparse.Namespace) -> None:
    from eri_runtime.images import write_png
    from eri_runtime.pipelines import load
    from eri_runtime.progress import progress_bars

    for name, path in (("--output", options.output), ("--preview", options.preview)):
        if path is not None and path.suffix.lower() != ".png":
            raise UsageError(name, got=path, expected="a name that ends in .png")
    prompt = {options.prompt: 1.0, **dict(options.also)} if options.also else options.prompt
    with (
        load(
            options.bundle,
            options.backend,
            threads=options.threads,
            **memory_of(options),
        ) as pipe,
        progress_bars() as advance,
    ):
        pipe.set_loras(dict(parse_lora(each) for each in options.lora))
        request = pipe.request(prompt, options.negative, **make_words(options))
        pipe.prepare(request)
        for step in pipe.denoise(request):
            advance("denoising", step.index + 1, step.total)
            if options.preview is not None:
                write_png(pipe.preview(request, step)[0], options.preview)
        result = pipe.finish(request, step.x)
    output = options.output or _unused(f"eri-{result.seeds[0]}")
    for path, seed in zip(result.save(output), result.seeds, strict=True):
        say(f"{path}  seed {seed}")


def make_words(options: argparse.Namespace) -> Words:
    """The words of a call that the options stand for."""
    width, height = options.size or (None, None)
    return {
        "height": height,
        "width": width,
        "num_inference_steps": options.steps,
        "num_images_per_prompt": options.batch,
        "sampler": options.sampler,
        "sigmas": options.sigmas,
        "sampler_options": dict(options.option),
        "eta": options.eta,
        "guidance_scale": options.guidance,
        "true_cfg_scale": options.true_cfg,
        "guidance_rescale": options.guidance_rescale,
        "guidance_interval": options.guidance_interval,
        "bypass_guidance": options.bypass_guidance,
        "dynamic_thresholding": options.dynamic_thresholding,
        "seed": options.seed,
        "noise": options.noise,
        "image": _opened("--image", options.image),
        "strength": options.strength,
        "mask": _opened("--mask", options.mask),
    }


def _opened(name: str, path: Path | None) -> Image | None:
    """The picture in a file, turned as its camera says; raises `UsageError` for no picture."""
    if path is None:
        return None
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, Image.DecompressionBombError) as error:
        raise UsageError(name, got=error, expected="a picture that Pillow reads") from error


def _unused(stem: str) -> Path:
    """`STEM.png` here, or the first `STEM_2.png`, `STEM_3.png`, … of which nothing exists yet."""
    stems = itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(2)))
    free = next(name for name in stems if not any(Path().glob(f"{name}[.-]*")))
    return Path(f"{free}.png")
