"""What a call gives back, and the text that says how it was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import UsageError
from eri_runtime.images import parameters_text, save_png
from eri_runtime.loras import Scale, described
from eri_runtime.request import Request
from eri_runtime.spec import Bundle

NO_LORAS: Mapping[str, Scale] = MappingProxyType({})
OPTION_LABELS = {
    "eta": "Eta",
    "s_churn": "Sigma churn",
    "s_tmin": "Sigma tmin",
    "s_tmax": "Sigma tmax",
    "s_noise": "Sigma noise",
}


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


def describe(
    bundle: Bundle, request: Request, loras: Mapping[str, Scale] = NO_LORAS
) -> tuple[str, ...]:
    """AUTOMATIC1111's `parameters` text of each image of a request, made with these LoRAs."""
    negatives = request.negative_prompts or ("",) * len(request.prompts)
    texts = []
    for image in range(request.batch):
        which = image // request.images_per_prompt
        settings = dict(_settings(bundle, request, image))
        if working := [*described(loras), *described(request.loras[image])]:
            settings["Loras"] = "; ".join(working)
        texts.append(parameters_text(str(request.prompts[which]), negatives[which], settings))
    return tuple(texts)


def _settings(bundle: Bundle, request: Request, image: int) -> Iterator[tuple[str, object]]:
    """What differs from the checkpoint's own way is named as AUTOMATIC1111 and Forge name it."""
    guidance = request.guidance
    yield "Steps", request.steps
    yield "Sampler", request.sampler.label
    if request.sigmas != "default":
        named = isinstance(request.sigmas, str)
        yield "Schedule type", str(request.sigmas).title() if named else list(request.sigmas)
    for name, value in request.options.items():
        if value != request.sampler.options[name].default:
            yield OPTION_LABELS.get(name, name), f"{value:g}"
    yield "CFG scale", f"{guidance.scale[image]:g}"
    if bundle.guidance_embedding and guidance.embedded[image] >= 0:
        yield "Distilled CFG Scale", f"{guidance.embedded[image]:g}"
    if guidance.rescale:
        yield "CFG Rescale", f"{guidance.rescale:g}"
    if guidance.interval != (0.0, inf):
        yield "CFG Interval", "{:g} to {:g}".format(*guidance.interval)
    yield "Seed", request.seeds[image]
    yield "Size", f"{request.width}x{request.height}"
    if request.edit is not None:
        yield "Denoising strength", f"{request.edit.strength:g}"
    yield "Model hash", bundle.files[bundle.components["denoiser"].weights].sha256[:10]
    yield "Model", bundle.root.resolve().name
    yield "Version", f"eri {eri_version()}"


def eri_version() -> str:
    """The installed version of this distribution."""
    try:
        return version("eri-diffusion")
    except PackageNotFoundError:
        return "unknown"
