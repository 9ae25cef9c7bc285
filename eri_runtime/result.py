"""What a call gives back, and the text that says how it was made."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import UsageError
from eri_runtime.images import parameters_text, save_png
from eri_runtime.request import Request
from eri_runtime.spec import Bundle


@dataclass(frozen=True)
class Result:
    """`images` as asked for (PIL list, (B, H, W, 3) or latents), with what belongs to each image.

    `latents` is the last x, `seeds` has one entry an image, `parameters` the text saved in a PNG.
    """

    images: Any
    latents: NDArray[np.float32]
    seeds: tuple[int, ...]
    parameters: tuple[str, ...]

    def save(self, path: str | Path) -> list[Path]:
        """Write PNGs with their parameters: `NAME.png`, or `NAME-0.png`, `NAME-1.png`, …."""
        if not isinstance(self.images, list):
            raise UsageError("output_type", got="arrays", expected="pil, to save images")
        path = Path(path)
        paths = [path]
        if len(self.images) > 1:
            paths = [path.with_stem(f"{path.stem}-{i}") for i in range(len(self.images))]
        return [
            save_png(image, target, text)
            for image, target, text in zip(self.images, paths, self.parameters, strict=True)
        ]


def describe(bundle: Bundle, request: Request) -> tuple[str, ...]:
    """AUTOMATIC1111's `parameters` text of each image of a request."""
    negatives = request.negative_prompts or ("",) * len(request.prompts)
    weights = bundle.files[bundle.components["denoiser"].weights]
    version_text = f"eri {eri_version()}"
    texts = []
    for i, seed in enumerate(request.seeds):
        settings = {
            "Steps": request.steps,
            "Sampler": request.sampler.label,
            "CFG scale": f"{request.guidance_scale:g}",
            "Seed": seed,
            "Size": f"{request.width}x{request.height}",
            "Model hash": weights.sha256[:10],
            "Model": bundle.root.resolve().name,
            "Version": version_text,
        }
        which = i // request.images_per_prompt
        texts.append(parameters_text(request.prompts[which], negatives[which], settings))
    return tuple(texts)


def eri_version() -> str:
    """The installed version of this distribution."""
    try:
        return version("eri-diffusion")
    except PackageNotFoundError:
        return "unknown"
