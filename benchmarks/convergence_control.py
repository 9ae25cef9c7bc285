"""Explains convergence orders: the samplers on an analytic problem, the network's smoothness in t.

Used by `benchmarks.convergence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import eri_runtime as eri
from eri_runtime.bundle import Bundle
from eri_runtime.latents import token_count
from eri_runtime.sampling import SAMPLERS, Point
from eri_runtime.text import condition_inputs, shared_inputs

Float64 = NDArray[np.float64]
REFERENCE_STEPS = 1000  # of the analytic reference
SPREAD = 0.5
WINDOW, SPACING = 20.0, 0.5  # in t, which ranges over 1000
DEGREE = 3


def mixture(x: Float64, at: Point) -> Float64:
    """Returns the exact E[x_0 | x] for x_0 from two normals at ±1 with deviation `SPREAD`."""
    variance = (at.alpha * SPREAD) ** 2 + at.sigma**2
    mean = np.tanh(at.alpha * x / variance)
    correction: Float64 = SPREAD**2 * at.alpha / variance * (x - at.alpha * mean)
    return mean + correction


def analytic(bundle: Bundle, samplers: Sequence[str], steps: Sequence[int], sigmas: Any) -> Any:
    """Returns the samplers' errors and orders on `mixture`, in float64 on the bundle's schedule."""
    start = np.random.default_rng(0).standard_normal(256)
    tokens = token_count(bundle.latents, bundle.defaults.height, bundle.defaults.width)

    def end(name: str, count: int) -> Float64:
        schedule = SAMPLERS[name].schedule(bundle.schedule, count, tokens, sigmas)
        x: Float64 = SAMPLERS[name].algorithm(mixture, None, start, schedule)
        return x

    reference = end("flow_heun", REFERENCE_STEPS)
    size, orders = np.linalg.norm(reference), {}
    for name in samplers:
        errors = [float(np.linalg.norm(end(name, n) - reference) / size) for n in steps]
        slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
        rounded = [float(f"{error:.3g}") for error in errors]
        orders[name] = {"errors": rounded, "order": round(-float(slope), 2)}
    return {"steps": steps, "samplers": orders}


def ripple(pipe: eri.Pipeline, prompt: str, levels: Sequence[float]) -> list[dict[str, float]]:
    """Returns the relative RMS distance of the network's output from a cubic in t.

    The cubic is fitted over a short window of t around each level. A solver reaches its order only
    when its steps are short enough to resolve the network's changes between them.
    """
    bundle, rows = pipe.bundle, []
    size = bundle.defaults.height, bundle.defaults.width
    condition = pipe.encode_prompt(prompt)
    zero = np.zeros(1, np.float32)
    conditions = condition_inputs(bundle, condition, *size, zero)
    shared = shared_inputs(bundle, *size, condition.embeds.shape[1])
    words: Any = {"num_inference_steps": 64, "guidance_scale": 1.0, "seed": 0}
    steps = list(pipe.denoise(pipe.request(prompt, output_type="latent", **words)))
    for level in levels:
        step = min(steps[1:], key=lambda each: abs(each.sigma - level))
        sample, t = steps[step.index - 1].x, 1000 * step.sigma
        offsets = np.arange(-WINDOW, WINDOW + SPACING, SPACING)
        offsets = offsets[(t + offsets > 0) & (t + offsets < 1000)]
        outputs = []
        for offset in offsets:
            timestep = np.full(1, t + offset, np.float32)
            inputs = {"sample": sample, "timestep": timestep, **conditions, **shared}
            outputs.append(pipe.run("denoiser", inputs)["output"].ravel())
        values, powers = np.array(outputs, np.float64), np.vander(offsets / WINDOW, DEGREE + 1)
        rest = values - powers @ np.linalg.lstsq(powers, values, rcond=None)[0]
        share = float(np.sqrt(np.mean(rest**2) / np.mean(values**2)))
        rows.append({"sigma": round(step.sigma, 4), "ripple": float(f"{share:.3g}")})
    return rows
