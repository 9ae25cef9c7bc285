"""The result of a call, and the `parameters` text that its PNGs carry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import inf
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import Bundle
from eri_runtime.checks import boolean
from eri_runtime.checks import path as check_path
from eri_runtime.errors import UsageError, cut
from eri_runtime.images import check_output, contact_sheet, parameters_text, save_png
from eri_runtime.partial_files import remove_stale
from eri_runtime.request import Request
from eri_runtime.sampling import Guidance
from eri_runtime.version import eri_version
from eri_runtime.weights import Scale, describe_loras

NO_LORAS: Mapping[str, Scale] = MappingProxyType({})
SHOWN = 4  # seeds in a result's text
WIDTH = 160  # characters of the settings in it
COLUMNS = 4  # of the sheet that a notebook shows
OPTION_LABELS = {
    "eta": "Eta",
    "s_churn": "Sigma churn",
    "s_tmin": "Sigma tmin",
    "s_tmax": "Sigma tmax",
    "s_noise": "Sigma noise",
}


@dataclass(frozen=True, repr=False)
class Result:
    """The images of one call, and how each was made.

    Its text is two lines; a notebook shows the image, or a sheet of several.

    Attributes:
        images: The images, as `output_type` says: a list of PIL images (`"pil"`), an array
            (B, H, W, 3) float32 in [0, 1] (`"np"`), a torch tensor (B, 3, H, W) (`"pt"`), or the
            latents (`"latent"`).
        latents: Final latents, float32 in the denoiser's scale and layout: (B, C, h, w), or packed
            (B, tokens, 4·C) for Flux.
        seeds: The seed of each image; empty if a generator made their noise that was drawn from
            before, or that several images share.
        parameters: AUTOMATIC1111's `parameters` text of each image: prompt, negative prompt and
            settings.
        computed_steps: How many steps ran the whole denoiser, fewer than all with `step_cache`.
            None for the `finish` of a loop of your own, which counts `Step.computed` itself.

    Example:
        >>> result = pipe("a red heart", num_inference_steps=2, height=32, width=32, seed=7)
        >>> result.images[0].size
        (32, 32)
        >>> result.seeds
        (7,)
        >>> result  # doctest: +ELLIPSIS
        Result: 1 image of 32x32, seed 7
        Steps: 2, Sampler: Euler, CFG scale: 7, Seed: 7, Size: 32x32, Model hash: ...
        >>> print(result.parameters[0])  # doctest: +ELLIPSIS
        a red heart
        Steps: 2, Sampler: Euler, CFG scale: 7, Seed: 7, Size: 32x32, Model hash: ...

        It is diffusers' tuple too, so that `pipe(…, return_dict=False)[0]` runs as there:

        >>> result[0] is result.images
        True
    """

    images: Any
    latents: NDArray[np.float32]
    seeds: tuple[int, ...]
    parameters: tuple[str, ...]
    computed_steps: int | None = None

    def __len__(self) -> int:
        """Returns 1: as a tuple it holds the images alone."""
        return 1

    def __iter__(self) -> Iterator[Any]:
        """Yields `images`, as diffusers' tuple does."""
        return iter((self.images,))

    def __getitem__(self, key: Any) -> Any:
        """Returns `images` for 0 and for `"images"`, or what a slice takes of the tuple.

        Raises `IndexError` for another index and `KeyError` for another name.
        """
        return {"images": self.images}[key] if isinstance(key, str) else (self.images,)[key]

    def __repr__(self) -> str:
        """Returns two lines: what the images are, and the settings of the first."""
        count = len(self.seeds)
        seeds = ", ".join(map(str, self.seeds[:SHOWN])) + (", ..." if count > SHOWN else "")
        kind = "images" if count != 1 else "image"
        shape = " x ".join(map(str, np.shape(self.images)[1:]))
        made = shape if not isinstance(self.images, list) else _size(self.images)
        first = f"Result: {count} {kind} of {made}, seed{'s' * (count != 1)} {seeds}"
        settings = self.parameters[0].splitlines()[-1] if self.parameters else "no images"
        return f"{first}\n{cut(settings, WIDTH)}"

    def _repr_png_(self) -> bytes | None:
        """Returns the image, or a sheet of several, as PNG, which notebooks show."""
        if not isinstance(self.images, list) or not self.images:
            return None
        image = self.images[0]
        if len(self.images) > 1:
            image = contact_sheet(self.images, columns=min(COLUMNS, len(self.images)))
        stream = BytesIO()
        image.save(stream, format="PNG")
        return stream.getvalue()

    def save(self, path: str | Path, *, overwrite: bool = True) -> list[Path]:
        """Writes the images as PNG files that carry their `parameters`.

        Each file appears complete or not at all. Missing folders are created. Threads and processes
        may save at the same time. Unfinished files that a killed process left are removed.

        Args:
            path: File of a single image. For several images, `-0`, `-1`, … is added to its stem.
            overwrite: Whether files of the same names are replaced.

        Returns:
            The paths of the files, one per image.

        Raises:
            UsageError: If the call's `output_type` was not `"pil"`, or a file cannot be written;
                nothing is written then.
            FileExistsError: Without `overwrite`, if a name is taken; no image stays written then.

        Example:
            pipe(["a fox", "a cat"]).save("out/animal.png")  # out/animal-0.png, out/animal-1.png
        """
        if not isinstance(self.images, list):
            raise UsageError("output_type", got="arrays", expected="pil, to save images")
        boolean("overwrite", overwrite)
        paths = numbered_paths(check_path("path", path), len(self.images))
        for each in paths:
            check_output("path", each)
        remove_stale(paths[0].parent)
        saved: list[Path] = []
        try:
            for image, target, text in zip(self.images, paths, self.parameters, strict=True):
                saved.append(save_png(image, target, text, overwrite=overwrite))
        except FileExistsError:
            for each in saved:
                each.unlink(missing_ok=True)
            raise
        return saved


def _size(images: Sequence[Any]) -> str:
    """Returns the size of images, as WxH."""
    return "{}x{}".format(*images[0].size) if images else "no size"


def numbered_paths(path: Path, count: int) -> list[Path]:
    """Returns the paths of `count` images: `path` itself, or `-0`, `-1`, … added to its stem."""
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(count)]


def parameters_texts(
    bundle: Bundle,
    request: Request,
    loras: Mapping[str, Scale] = NO_LORAS,
    tokens: Sequence[str] = (),
) -> tuple[str, ...]:
    """Returns AUTOMATIC1111's `parameters` text for each image of a request.

    `loras` are the scales of the LoRAs that are merged into the weights, `tokens` those of textual
    inversions.
    """
    negatives = request.negative_prompts or ("",) * len(request.prompts)
    texts = []
    for image in range(request.batch):
        prompt = image // request.images_per_prompt
        settings = dict(_settings(bundle, request, image))
        if active := [*describe_loras(loras), *describe_loras(request.loras[image])]:
            settings["Loras"] = "; ".join(active)
        if request.syntax != "plain":
            settings["Prompt syntax"] = request.syntax
        if tokens:
            settings["Textual inversions"] = "; ".join(tokens)
        texts.append(parameters_text(str(request.prompts[prompt]), negatives[prompt], settings))
    return tuple(texts)


def _settings(bundle: Bundle, request: Request, image: int) -> Iterator[tuple[str, object]]:
    """Yields the settings of one image under AUTOMATIC1111's and Forge's names.

    Leaves out those that have the default value.
    """
    yield "Steps", request.steps
    yield "Sampler", request.sampler.label
    if request.sigmas != "default":
        is_name = isinstance(request.sigmas, str)
        yield "Schedule type", str(request.sigmas).title() if is_name else list(request.sigmas)
    if request.spacing is not None:
        yield "Timestep spacing", request.spacing
    for name, value in request.options.items():
        if value != request.sampler.options[name].default:
            yield OPTION_LABELS.get(name, name), f"{value:g}"
    yield from _guidance_settings(bundle, request.guidance, image)
    if request.seeded:
        yield "Seed", request.seeds[image]
    else:
        yield "Noise", "a generator that no seed repeats"
    yield "Size", f"{request.width}x{request.height}"
    yield from _words_of_diffusers(request, image // request.images_per_prompt)
    yield from _edit_settings(request)
    yield "Model hash", bundle.files[bundle.components["denoiser"].weights].sha256[:10]
    yield "Model", bundle.root.resolve().name
    yield "Version", f"eri {eri_version()}"


def _guidance_settings(
    bundle: Bundle, guidance: Guidance, image: int
) -> Iterator[tuple[str, object]]:
    """Yields the settings of one image's guidance."""
    yield "CFG scale", f"{guidance.scale[image]:g}"
    if bundle.guidance_embedding and guidance.embedded[image] >= 0:
        yield "Distilled CFG Scale", f"{guidance.embedded[image]:g}"
    if guidance.rescale:
        yield "CFG Rescale", f"{guidance.rescale:g}"
    if guidance.interval != (0.0, inf):
        yield "CFG Interval", "{:g} to {:g}".format(*guidance.interval)


def _edit_settings(request: Request) -> Iterator[tuple[str, object]]:
    """Yields the settings of image to image."""
    edit = request.edit
    if edit is None:
        return
    if request.part.start is None:
        yield "Denoising strength", f"{edit.strength:g}"
    if edit.padding is not None:
        yield "Inpaint area", "Only masked"
        yield "Masked area padding", edit.padding


def _words_of_diffusers(request: Request, prompt: int) -> Iterator[tuple[str, object]]:
    """Yields settings under diffusers' words, which AUTOMATIC1111 has no name for."""
    part = request.part
    for number, text in enumerate(request.prompts[prompt].others, 2):
        yield f"Prompt {number}", text
    if request.negative_others is not None:
        for number, text in enumerate(request.negative_others[prompt], 2):
            yield f"Negative prompt {number}", text
    shares = {"Denoising start": part.start, "Denoising end": part.end, "Shift mu": part.mu}
    yield from ((name, f"{share:g}") for name, share in shares.items() if share is not None)
    if request.step_cache is not None:
        yield "Step cache", f"first_block {request.step_cache.threshold:g}"
    if part.timesteps is not None:
        yield "Timesteps", list(part.timesteps)
    if request.micro is not None:
        yield "Size conditions", list(request.micro.positive)
        yield "Negative size conditions", list(request.micro.negative)
