"""Step caching beside diffusers' First Block Cache, on the embedded checkpoints.

    python -m benchmarks.step_cache build/step-cache

For every threshold: which steps each of the two computes for the same noise, how far its pictures
are from its own uncached ones (the worst PSNR of the prompts), and its CPU time over that of an
uncached call, the median of interleaved rounds on one thread. diffusers has no such hook for UNets.
Its hook fails on SD3's last block, which returns no text: here that block returns the text it got.
`--large BUNDLE` adds the CPU time of a computed and of a skipped step of that bundle's denoiser
over the whole graph's, on random inputs of two rows. Writes step_cache.json.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline, FirstBlockCacheConfig
from diffusers.hooks import HookRegistry, apply_first_block_cache
from diffusers.models.cache_utils import CacheMixin
from numpy.typing import NDArray

import eri_runtime as eri
from eri_export import export
from eri_export.choices import make_ranges
from eri_export.embedded.assemble import assembled
from eri_runtime.executors import choose
from eri_runtime.version import eri_version

RESULTS = Path(__file__).parent / "results"
FAMILIES = ("sd35", "flux", "sdxl")
PROMPTS = ("a red heart", "a rocket", "a cat face")
THRESHOLDS = (0.05, 0.1, 0.2)
WORDS: dict[str, Any] = {"num_inference_steps": 28, "height": 96, "width": 96}
TOKENS = 16  # of T5
HOOKS = ("fbc_leader_block_hook", "fbc_block_hook")


class Drawn(NamedTuple):
    """A picture (H, W, 3), which steps were computed, and the seconds of CPU time."""

    picture: NDArray[np.float32]
    computed: tuple[bool, ...]
    seconds: float


Draw = Callable[[str, float | None], Drawn]  # prompt, threshold


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the bundles are exported to")
    parser.add_argument("--large", type=Path, metavar="BUNDLE", help="a bundle of more weights")
    parser.add_argument("--rounds", type=int, default=5, metavar="R")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        "command": shlex.join(["python", "-m", "benchmarks.step_cache", *sys.argv[1:]]),
        "versions": {"eri": eri_version(), "diffusers": diffusers.__version__},
        "settings": {**WORDS, "prompts": PROMPTS, "rounds": options.rounds, "threads": 1},
        "families": {
            family: measured(family, options.folder, options.rounds) for family in FAMILIES
        },
    }
    if options.large is not None:
        report["large"] = {name: costs(options.large, name) for name in ("cpu", "openvino")}
    text = json.dumps(report, indent=1) + "\n"
    (options.output / "step_cache.json").write_text(text)
    sys.stdout.write(text)


def measured(family: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Returns the figures of a family by threshold."""
    with ExitStack() as stack:
        checkpoint = stack.enter_context(assembled(family))
        if not (folder / family).exists():
            ranges = make_ranges(size="64:96:256") if family == "flux" else make_ranges()
            export(checkpoint, folder / family, ranges=ranges)
        ours = stack.enter_context(eri.load(folder / family, "cpu", threads=1))
        subjects = {"eri": draw_ours(ours)}
        if family != "sdxl":
            subjects["diffusers"] = draw_theirs(checkpoint)
        return {f"{each:g}": compared(subjects, each, rounds) for each in THRESHOLDS}


def compared(subjects: dict[str, Draw], threshold: float, rounds: int) -> dict[str, Any]:
    """Returns each subject's figures at a threshold, and whether the decisions are the same."""
    figures: dict[str, Any] = {}
    decisions = []
    for name, draw in subjects.items():
        ratios, psnrs, steps = list[float](), list[float](), list[tuple[bool, ...]]()
        for number in range(rounds):
            for prompt in PROMPTS:
                plain, cached = draw(prompt, None), draw(prompt, threshold)
                ratios.append(cached.seconds / plain.seconds)
                if number == 0:
                    psnrs.append(psnr(plain.picture, cached.picture))
                    steps.append(cached.computed)
        decisions.append(steps)
        figures[name] = {
            "computed": [sum(each) for each in steps],
            "psnr": [round(each, 1) for each in psnrs],
            "cpu_time": round(median(ratios), 2),
        }
    if len(decisions) > 1:
        figures["same_decisions"] = all(each == decisions[0] for each in decisions)
    return figures


def costs(folder: Path, backend: str, rounds: int = 3) -> dict[str, Any]:
    """Returns the CPU seconds of a denoiser, and a computed and a skipped step's share of them."""
    bundle = eri.read_bundle(folder)
    spec, engine = bundle.components["denoiser"], choose(bundle, backend, threads=1)
    sizes = {**{name: each.opt for name, each in spec.ranges.items()}, "batch": 2}
    rng = np.random.default_rng(0)
    inputs = {
        each.name: rng.random([sizes.get(str(size), size) for size in each.shape], np.float32)
        for each in spec.inputs
    }
    kept: list[Any] = []

    def compute(blocks: Any) -> list[Any]:
        kept[:] = [blocks[0].rest()]
        return kept

    def skip(blocks: Any) -> list[Any]:
        hidden = blocks[0].hidden
        return kept if hidden is None else [hidden + (kept[0] - hidden)]

    with engine("denoiser") as whole, engine.parted() as parts:
        runs: dict[str, Callable[[], Any]] = {
            "whole": lambda: whole.run(inputs),
            "computed": lambda: parts.run([inputs], compute),
            "skipped": lambda: parts.run([inputs], skip),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds + 1):
            for name, run in runs.items():
                started = time.process_time()
                run()
                seconds[name].append(time.process_time() - started)
    medians = {name: median(each[1:]) for name, each in seconds.items()}
    shares = {name: round(medians[name] / medians["whole"], 3) for name in ("computed", "skipped")}
    about = {"parameters": spec.parameters, "whole_s": round(medians["whole"], 3)}
    return {**about, **shares}


def draw_ours(pipe: eri.Pipeline) -> Draw:
    """Returns a function that draws with `eri`."""

    def draw(prompt: str, threshold: float | None) -> Drawn:
        words: dict[str, Any] = {**WORDS, "seed": 0, "output_type": "np"}
        if pipe.bundle.family != "sdxl":
            words["max_sequence_length"] = TOKENS
        if threshold is not None:
            words |= {"step_cache": "first_block", "step_cache_threshold": threshold}
        request = pipe.request(prompt, **words)
        started = time.process_time()
        steps = list(pipe.denoise(request))
        seconds = time.process_time() - started
        picture = pipe.finish(request, steps[-1].x).images[0]
        return Drawn(picture, tuple(step.computed for step in steps), seconds)

    return draw


def draw_theirs(checkpoint: Path) -> Draw:
    """Returns a function that draws with diffusers' pipeline."""
    pipe: Any = DiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    network, steps = pipe.transformer, list[bool]()
    network.register_forward_pre_hook(lambda *_: steps.append(False))
    network.transformer_blocks[1].attn.register_forward_hook(lambda *_: steps.__setitem__(-1, True))
    if pipe.transformer.config.get("num_single_layers") is None:
        _return_text(network.transformer_blocks[-1])

    def draw(prompt: str, threshold: float | None) -> Drawn:
        steps.clear()
        words = {**WORDS, "max_sequence_length": TOKENS, "output_type": "latent"}
        generator = torch.Generator().manual_seed(0)
        with cached(network, threshold), torch.no_grad():
            started = time.process_time()
            latents = pipe(prompt, generator=generator, **words).images
            seconds = time.process_time() - started
            computed = tuple(steps)
            if hasattr(pipe, "_unpack_latents"):
                size = WORDS["height"], WORDS["width"]
                latents = pipe._unpack_latents(latents, *size, pipe.vae_scale_factor)
            config = pipe.vae.config
            image = pipe.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
        picture = pipe.image_processor.postprocess(image, output_type="np")[0]
        return Drawn(picture, computed, seconds)

    return draw


def _return_text(block: Any) -> None:
    """Makes SD3's last block return the text's states too, which nothing reads."""
    run = block.forward

    def forward(hidden_states: Any, encoder_hidden_states: Any, **words: Any) -> Any:
        return encoder_hidden_states, run(hidden_states, encoder_hidden_states, **words)[1]

    block.forward = forward


@contextmanager
def cached(network: Any, threshold: float | None) -> Iterator[None]:
    """Context manager in which diffusers caches a network's first block."""
    if threshold is None:
        yield
        return
    config = FirstBlockCacheConfig(threshold=threshold)
    if isinstance(network, CacheMixin):  # the pipeline sets the context
        network.enable_cache(config)
        yield
        network.disable_cache()
        return
    apply_first_block_cache(network, config)
    with CacheMixin.cache_context(network, "steps"):
        yield
    for name in HOOKS:
        HookRegistry.check_if_exists_or_initialize(network).remove_hook(name, recurse=True)


def psnr(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Returns the peak signal-to-noise ratio of two pictures in [0, 1], in dB."""
    square = float(np.mean(np.square(one - other)))
    return -10 * math.log10(square) if square else math.inf


if __name__ == "__main__":
    main()
