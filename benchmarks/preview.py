"""Compares live previews with the VAE's decoder: their time and their accuracy.

    eri demo && python -m benchmarks.preview engines/demo

`correlation` and `psnr` compare the preview of the last x, one pixel per latent, with the decoded
picture averaged over the square that each latent covers. Times are the minimum of many runs on a
machine that may be loaded, so only their ratio is meaningful. Writes preview.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import timeit
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import eri_runtime as eri
from eri_runtime.images import to_unit
from eri_runtime.latents import block_means, fit_rgb, to_rgb, vae
from eri_runtime.loop.numpy_loop import HostLatents
from eri_runtime.version import eri_version

RESULTS = Path(__file__).parent / "results"
PROMPTS = ("a red heart", "a pizza", "an octopus", "a rocket")
REPEAT = 50


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--threads", type=int, help="ONNX Runtime's threads")
    options = parser.parse_args()
    with eri.load(options.bundle, threads=options.threads) as pipe:
        report = {
            "command": "python -m benchmarks.preview engines/demo",
            "device": f"{platform.machine()}, ONNX Runtime CPU",
            "cores": len(os.sched_getaffinity(0)),
            "precision": pipe.bundle.components["vae_decoder"].precision,
            "source_digest": pipe.bundle.source_digest,
            "eri": eri_version(),
            **measured(pipe),
        }
    text = json.dumps(report, indent=1) + "\n"
    (options.output / "preview.json").write_text(text)
    sys.stdout.write(text)


def measured(pipe: eri.Pipeline) -> dict[str, Any]:
    """Returns the accuracy for every prompt and the times for one picture."""
    bundle, factor = pipe.bundle, pipe.bundle.latents.factor
    words: Any = {"num_inference_steps": 20, "guidance_scale": 4.0, "seed": 0}
    request = pipe.request(list(PROMPTS), **words)
    *_, last = pipe.denoise(request)
    size = request.height, request.width
    factors = fit_rgb(bundle, pipe.run)
    previews = to_rgb(factors, vae.unpack(bundle, last.x, *size))
    decoded = to_unit(block_means(pipe.decode(last.x, *size), factor))
    pairs = list(zip(previews, decoded, strict=True))
    correlation = [float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in pairs]
    psnr = [float(-10 * np.log10(np.mean((a - b) ** 2))) for a, b in pairs]
    one = pipe.request(PROMPTS[0], **words)
    latents = HostLatents(x=last.x[:1], denoised=last.denoised[:1])
    step = replace(last, latents=latents)
    preview = _seconds(lambda: pipe.preview(one, step))
    decode = _seconds(lambda: pipe.finish(one, step.denoised))
    return {
        "prompts": PROMPTS,
        "size": f"{request.width}x{request.height}",
        "correlation": [round(each, 3) for each in correlation],
        "psnr": [round(each, 1) for each in psnr],
        "preview_ms": round(1e3 * preview, 3),
        "decode_ms": round(1e3 * decode, 3),
        "ratio": round(decode / preview),
        "fit_ms": round(1e3 * _seconds(lambda: fit_rgb(bundle, pipe.run), 3), 1),
    }


def _seconds(call: Any, repeat: int = REPEAT) -> float:
    """Returns the minimum time of many calls, after one that opens components."""
    call()
    return min(timeit.repeat(call, number=1, repeat=repeat))


if __name__ == "__main__":
    main()
