"""Measures how fast samplers converge on the embedded checkpoint, and what guidance costs.

    eri demo && python -m benchmarks.convergence engines/demo

Errors are of the final latents, ‖x − r‖/‖r‖ over all images, against a reference r:

- ode: the samplers without noise, on the checkpoint's own noise levels and on Karras's, which share
  their first and last level, against one reference: a second-order sampler with many steps. The
  reference's uncertainty is its distance to another second-order sampler with twice as many steps.
  Also the samplers' orders on an analytic problem with the same levels, and how smooth the network
  is in t: no method reaches its order before its steps resolve the network's changes
- sde: the samplers with noise, each against itself with many steps and the same seeds, once with
  the increments of one Brownian path and once with independent draws
- guidance: for each scale the error of few steps, the share of pictures whose nearest training
  image is the prompt's own, and how much a small change of the initial noise grows

Writes convergence.json, convergence.png and steps_and_guidance.png; needs `.[bench]`. No figure is
a time, so other load on the machine does not matter.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import eri_runtime as eri
from benchmarks import convergence_figures as figures
from benchmarks.convergence_control import analytic, ripple
from eri_export.embedded.emoji_data import captions, chosen_names
from eri_export.embedded.retrieval import nearest_vectors, shrink
from eri_runtime.version import eri_version

Array = NDArray[np.float32]
RESULTS = Path(__file__).parent / "results"
THUMBNAILS = Path(__file__).parent.parent / "tests" / "data" / "emoji-24px.webp"
PACKAGES = ("numpy", "onnxruntime", "matplotlib")
LOG = logging.getLogger("convergence")

PROMPTS = ("a red heart", "a pizza", "a cat face", "a rocket")
SEEDS_EACH, SEED = 2, 0
GUIDANCE = 4.0
STEPS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 100)
REFERENCE, CHECK = ("flow_heun", 200), ("dpm2", 400)  # on Karras's levels, dense towards 0
LEVELS = ("default", "karras")
SMOOTH_STEPS, RIPPLE_AT = (16, 32, 64, 128), (0.9, 0.7, 0.5, 0.2, 0.05)
# the order in theory on a smooth problem, and the method it follows from
EXPECTED = {
    "flow_euler": (1, "Euler"),
    "flow_heun": (2, "Heun"),
    "dpm2": (2, "midpoint, in log sigma"),
    "dpmpp_2m": (2, "two-step exponential Adams-Bashforth"),
    "unipc": (3, "order 2 and a corrector, 2 + 1"),
    "lms": (2, "order 4, but an Euler step of h² begins it"),
}
SDE_SAMPLERS = ("euler_a", "dpmpp_2m_sde", "dpmpp_sde")
SDE_STEPS, SDE_REFERENCE, SDE_PROMPTS = (8, 16, 32, 64, 100), 200, PROMPTS[:2]
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
SCALE_STEPS, SCALE_REFERENCE, SCALE_SAMPLERS = (8, 16, 32), 100, ("flow_euler", "dpmpp_2m")
DRAWN, DRAWN_STEPS, AT_ONCE = 24, (2, 4, 8, 16, 32), 8
NUDGE = 1e-3  # relative change of the initial noise, whose growth is measured
STRIP_SCALES, STRIP_STEPS = (1.0, 2.0, 4.0, 8.0), (2, 4, 8, 16, 32)
# errors that an order is fitted to: below SET_IN, and above ABOVE times the reference's uncertainty
SET_IN, ABOVE = 0.1, 10.0


def main() -> None:
    """Measures, writes the results and draws the figures."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--threads", type=int, help="ONNX Runtime's threads")
    options = parser.parse_args()
    figures.require()
    with eri.load(options.bundle, threads=options.threads) as pipe:
        results = {
            "about": _about(pipe.bundle),
            "ode": ode(pipe),
            "sde": sde(pipe),
            "guidance": guidance(pipe),
        }
        strip = {
            (scale, steps): _pictures(pipe, PROMPTS[2:3], steps, scale)[0]
            for scale in STRIP_SCALES
            for steps in STRIP_STEPS
        }
    options.output.mkdir(exist_ok=True, parents=True)
    (options.output / "convergence.json").write_text(json.dumps(results) + "\n")
    figures.curves(results, options.output / "convergence.png")
    figures.strip(strip, options.output / "steps_and_guidance.png")


def final(
    pipe: eri.Pipeline,
    sampler: str,
    steps: int,
    prompts: Sequence[str] = PROMPTS,
    scale: float = GUIDANCE,
    **arguments: Any,
) -> tuple[Array, int]:
    """Returns the final latents (B, C, h, w) and the number of network evaluations."""
    arguments |= {"sampler": sampler, "num_inference_steps": steps, "guidance_scale": scale}
    defaults: dict[str, Any] = {
        "num_images_per_prompt": SEEDS_EACH,
        "seed": SEED,
        "output_type": "latent",
    }
    *_, last = pipe.denoise(pipe.request(list(prompts), **(defaults | arguments)))
    return last.x, last.total


def distance(x: Array, reference: Array) -> float:
    """Returns ‖x − r‖/‖r‖ over all images."""
    difference = np.asarray(x, np.float64) - reference
    return float(np.linalg.norm(difference) / np.linalg.norm(np.asarray(reference, np.float64)))


def _each(x: Array, reference: Array) -> list[float]:
    """Returns the distance of each image."""
    return [rounded(distance(a, b)) for a, b in zip(x, reference, strict=True)]


def rounded(value: float) -> float:
    """Rounds to four digits."""
    return float(f"{value:.4g}")


def order(steps: Sequence[int], errors: Sequence[float], floor: float) -> dict[str, Any] | None:
    """Fits an order to the straight part of the curve; None if it has fewer than three points."""
    points = [
        (n, e) for n, e in zip(steps, errors, strict=True) if ABOVE * floor < e < SET_IN and n > 4
    ]
    if len(points) < 3:
        return None
    n, e = np.log(np.array(points)).T
    slope = float(np.polyfit(n, e, 1)[0])
    return {"order": round(-slope, 2), "from": points[0][0], "to": points[-1][0]}


def ode(pipe: eri.Pipeline) -> dict[str, Any]:
    """Measures the samplers without noise against one reference."""
    reference, _ = final(pipe, *REFERENCE, sigmas="karras")
    check, _ = final(pipe, *CHECK, sigmas="karras")
    other, _ = final(pipe, REFERENCE[0], 2 * REFERENCE[1])
    uncertainty = distance(reference, check)
    LOG.info("reference is known to %.1e", uncertainty)
    return {
        "prompts": PROMPTS,
        "seeds": f"{SEED} to {SEED + len(reference) - 1}, {SEEDS_EACH} a prompt",
        "guidance": GUIDANCE,
        "steps": STEPS,
        "reference": (*REFERENCE, "karras"),
        "uncertainty": rounded(uncertainty),
        "uncertainty_is_to": (*CHECK, "karras"),
        "uncertainty_each_image": _each(reference, check),
        "to_twice_the_steps_on_default_levels": rounded(distance(other, reference)),
        "levels": {
            sigmas: {
                "samplers": _samplers(pipe, sigmas, reference, uncertainty),
                "analytic": analytic(pipe.bundle, list(EXPECTED), SMOOTH_STEPS, sigmas),
            }
            for sigmas in LEVELS
        },
        "ripple_in_t": ripple(pipe, PROMPTS[1], RIPPLE_AT),
    }


def _samplers(
    pipe: eri.Pipeline, sigmas: str, reference: Array, uncertainty: float
) -> dict[str, Any]:
    """Returns the errors and fitted orders of all samplers on one set of noise levels."""
    samplers = {}
    for sampler, (expected, why) in EXPECTED.items():
        runs = [final(pipe, sampler, steps, sigmas=sigmas) for steps in STEPS]
        errors = [distance(x, reference) for x, _ in runs]
        row = {
            "evaluations": [evaluations for _, evaluations in runs],
            "errors": list(map(rounded, errors)),
            "errors_each_image": [_each(x, reference) for x, _ in runs],
            "fitted": order(STEPS, errors, uncertainty),
            "expected_order": expected,
            "expected_because": why,
        }
        samplers[sampler] = row
        LOG.info("%s %s %s %s", sigmas, sampler, row["fitted"], row["errors"])
    return samplers


def sde(pipe: eri.Pipeline) -> dict[str, Any]:
    """Measures the samplers with noise, each against itself."""
    samplers: dict[str, Any] = {}
    for sampler in SDE_SAMPLERS:
        for noise in ("brownian", "torch"):
            arguments: Any = {"prompts": SDE_PROMPTS, "noise": noise}
            reference, _ = final(pipe, sampler, SDE_REFERENCE, **arguments)
            runs = [final(pipe, sampler, steps, **arguments) for steps in SDE_STEPS]
            row = {
                "evaluations": [evaluations for _, evaluations in runs],
                "errors": [rounded(distance(x, reference)) for x, _ in runs],
                "errors_each_image": [_each(x, reference) for x, _ in runs],
            }
            samplers.setdefault(sampler, {})[noise] = row
            LOG.info("%s %s %s", sampler, noise, row["errors"])
    about = {"prompts": SDE_PROMPTS, "steps": SDE_STEPS, "reference_steps": SDE_REFERENCE}
    return {**about, "guidance": GUIDANCE, "samplers": samplers}


def guidance(pipe: eri.Pipeline) -> dict[str, Any]:
    """Measures each guidance scale: errors of few steps, retrieval, growth of differences."""
    all_prompts = [captions(name)[0] for name in chosen_names()]
    indices = list(range(0, len(all_prompts), len(all_prompts) // DRAWN))[:DRAWN]
    prompts = [all_prompts[i] for i in indices]
    training = np.asarray(Image.open(THUMBNAILS), np.float64).reshape(-1, 24, 24, 3)
    scales = []
    for scale in SCALES:
        reference, _ = final(pipe, REFERENCE[0], SCALE_REFERENCE, scale=scale, sigmas="karras")
        errors = {
            sampler: [
                rounded(distance(final(pipe, sampler, steps, scale=scale)[0], reference))
                for steps in SCALE_STEPS
            ]
            for sampler in SCALE_SAMPLERS
        }
        right = [_share_right(pipe, prompts, indices, training, n, scale) for n in DRAWN_STEPS]
        row = {"scale": scale, "errors": errors, "growth": _growth(pipe, scale), "right": right}
        scales.append(row)
        LOG.info("%s", row)
    return {
        "prompts": PROMPTS,
        "steps": SCALE_STEPS,
        "reference": (REFERENCE[0], SCALE_REFERENCE, "karras"),
        "growth_of": NUDGE,
        "right_of": {"captions": len(prompts), "sampler": "flow_euler", "steps": DRAWN_STEPS},
        "scales": scales,
    }


def _growth(pipe: eri.Pipeline, scale: float) -> float:
    """Returns ‖Δx‖ at the end divided by ‖Δx‖ at the start, with flow_heun at 50 steps."""
    spec, (height, width) = pipe.bundle.latents, _size(pipe)
    shape = (len(PROMPTS) * SEEDS_EACH, spec.channels, height // spec.factor, width // spec.factor)
    rng = np.random.default_rng(SEED)
    unit, nudge = rng.standard_normal((2, *shape)).astype(np.float32)
    nudged = unit + np.float32(NUDGE) * nudge
    ends = [final(pipe, "flow_heun", 50, scale=scale, latents=x)[0] for x in (unit, nudged)]
    return rounded(float(np.linalg.norm(ends[1] - ends[0]) / np.linalg.norm(nudged - unit)))


def _share_right(
    pipe: eri.Pipeline,
    prompts: list[str],
    indices: list[int],
    training: NDArray[np.float64],
    steps: int,
    scale: float,
) -> float:
    """Returns the share of pictures whose nearest training image is the prompt's own."""
    images = _pictures(pipe, prompts, steps, scale)
    shrunk = shrink("generated", np.stack([np.asarray(image) for image in images]), 4)
    return round(nearest_vectors(shrunk, training).accuracy(indices), 3)


def _pictures(
    pipe: eri.Pipeline, prompts: Sequence[str], steps: int, scale: float
) -> list[Image.Image]:
    """Draws one picture per prompt with flow_euler, prompt i with seed i."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), AT_ONCE):
        images += pipe(
            list(prompts[start : start + AT_ONCE]),
            sampler="flow_euler",
            num_inference_steps=steps,
            guidance_scale=scale,
            seed=SEED + start,
        ).images
    return images


def _size(pipe: eri.Pipeline) -> tuple[int, int]:
    """Returns the bundle's default height and width."""
    return pipe.bundle.defaults.height, pipe.bundle.defaults.width


def _about(bundle: eri.Bundle) -> dict[str, Any]:
    """Returns the bundle, machine and versions of the measurement."""
    return {
        "command": "python -m benchmarks.convergence engines/demo",
        "device": f"{platform.machine()}, ONNX Runtime CPU",
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {"eri": eri_version(), **{name: version(name) for name in PACKAGES}},
        "precision": bundle.components["denoiser"].precision,
        "state": "float32",
        "size": f"{bundle.defaults.width}x{bundle.defaults.height}",
        "source_digest": bundle.source_digest,
    }


if __name__ == "__main__":
    main()
