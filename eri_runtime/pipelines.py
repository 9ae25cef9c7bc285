"""Prompt to image: text encoders, denoising loop, VAE decoder. Composition only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from eri_runtime import executors, manifest
from eri_runtime.conditioning import Condition, TextEncoders, check_encoders, denoiser_inputs
from eri_runtime.denoise import Array, Network, Step, denoise
from eri_runtime.errors import UsageError
from eri_runtime.executors.base import Closeable, Executor, check_finite
from eri_runtime.guidance import cfg_mix, mix_predictions, no_mix
from eri_runtime.images import to_pil, to_unit
from eri_runtime.integrity import verify_on_load
from eri_runtime.latents import (
    latent_shape,
    patchify,
    to_vae,
    token_count,
    unpatchify,
)
from eri_runtime.noise import TorchNoise, checked
from eri_runtime.request import Request, Words, make_request
from eri_runtime.result import Result, describe
from eri_runtime.schedule import Point
from eri_runtime.spec import Bundle
from eri_runtime.table import SamplerTable, make_table


def load(bundle: str | Path, backend: str = "auto", *, threads: int | None = None) -> Pipeline:
    """Open a bundle for generating images; use it as a context manager, or call `close`.

    `backend` is `auto` or `cpu`; `threads` is the engine's number of threads. Sizes of all files
    and hashes of all but the weights are checked. Raises `BundleError` or `BackendError`.
    """
    contents = manifest.read(bundle)
    verify_on_load(contents)
    return Pipeline(contents, executors.choose(contents, backend, threads=threads))


class Pipeline(Closeable):
    """A bundle and its open components; each is opened when first needed and kept."""

    def __init__(self, bundle: Bundle, open_component: executors.OpenComponent) -> None:
        self.bundle = bundle
        self._open = open_component
        self._components: dict[str, Executor] = {}
        self._resources = ExitStack()
        self._encode = TextEncoders(bundle, self.run)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        on_step: Callable[[Step], object] | None = None,
        **words: Unpack[Words],
    ) -> Result:
        """Generate images; `words` are diffusers' keywords, explained at `Words`.

        `on_step` hears of every `Step`. Raises `UsageError` for a bad argument, `NonFiniteError`
        for NaN or Inf in latents or image.
        """
        request = make_request(self.bundle, prompt, negative_prompt, words)
        for step in self.denoise(request):
            if on_step is not None:
                on_step(step)
        return self.finish(request, step.x)

    def request(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        **words: Unpack[Words],
    ) -> Request:
        """A checked call, for `denoise` and `finish`: a loop of your own."""
        return make_request(self.bundle, prompt, negative_prompt, words)

    def denoise(self, request: Request) -> Iterator[Step]:
        """The steps of a request, one at a time; stop asking and it stops."""
        table = self.table(request)
        x, source = request.latents, request.noise
        if source is None:
            source = TorchNoise(request.seeds, first=0 if x is None else 1)
        noise = checked(source, request.batch)
        network = self._network(request)
        if x is None:
            x = noise(0, latent_shape(self.bundle.latents, request.height, request.width))
            if self.bundle.family == "flux":
                x = patchify(x, self.bundle.latents.patch)
        return denoise(network, table, table.scale * x, noise)

    def encode_prompt(
        self, prompt: str | Sequence[str], max_sequence_length: int | None = None
    ) -> Condition:
        """`embeds` (B, T, D) and `pooled` (B, P), to pass as `prompt_embeds` and so on."""
        prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
        length = self.bundle.defaults.max_sequence_length
        return self._encode(prompts, length if max_sequence_length is None else max_sequence_length)

    def table(self, request: Request) -> SamplerTable:
        """The sampler's coefficients for a request."""
        tokens = token_count(self.bundle.latents, request.height, request.width)
        spec, sampler = self.bundle.schedule, request.sampler
        schedule = sampler.schedule(spec, request.steps, tokens)
        return make_table(
            sampler, schedule, spec, options={"eta": request.eta} if request.eta else {}
        )

    def finish(self, request: Request, x: Array) -> Result:
        """Decode the last `Step.x` of a request."""
        parameters = describe(self.bundle, request)
        if request.output_type == "latent":
            return Result(images=x, latents=x, seeds=request.seeds, parameters=parameters)
        unit = to_unit(self.decode(x, request.height, request.width))
        images = to_pil(unit) if request.output_type == "pil" else unit
        return Result(images=images, latents=x, seeds=request.seeds, parameters=parameters)

    def decode(self, latents: Array, height: int, width: int) -> Array:
        """Denoiser latents to images (B, 3, height, width), about [−1, 1]."""
        spec = self.bundle.latents
        if self.bundle.family == "flux":
            _, h, w = latent_shape(spec, height, width)
            latents = unpatchify(latents, h, w, spec.patch)
        image = self.run("vae_decoder", {"latents": to_vae(spec, latents)})["image"]
        return check_finite("decoded image", image)

    def run(self, name: str, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Run one component on NumPy arrays, opening it if this is its first use."""
        if name not in self._components:
            executor = self._resources.enter_context(self._open(name))
            self._components[name] = executor
        return self._components[name].run(inputs)

    def close(self) -> None:
        """Close every open component; a later call opens them anew."""
        self._components.clear()
        self._resources.close()

    def _network(self, request: Request) -> Network:
        """The guided denoiser x, t -> F of a request, conditions bound."""
        conditions, mix = self._conditions(request)
        size = (request.height, request.width)
        inputs = denoiser_inputs(self.bundle, conditions, *size, request.guidance_scale)
        count = len(mix)

        def network(x: Array, at: Point) -> Array:
            sample = np.concatenate([x] * count)
            timestep = np.full(len(sample), at.t, dtype=np.float32)
            outputs = self.run("denoiser", {"sample": sample, "timestep": timestep, **inputs})
            return mix_predictions(mix, outputs["output"])

        return network

    def _conditions(self, request: Request) -> tuple[Condition, Array]:
        """The stacked conditions, negative first, and the matrix that mixes their predictions."""
        positive = request.positive or self._encode(request.prompts, request.max_sequence_length)
        positive = positive.repeat(request.images_per_prompt)
        scale = self._cfg_scale(request)
        if scale <= 1:
            if request.batch in self.bundle.components["denoiser"].ranges["batch"]:
                return positive, no_mix(request.batch)
            scale = 1.0  # a graph of one size always takes both conditions
        negative = self._negative(request, positive)
        if negative.embeds.shape != positive.embeds.shape:
            expected = f"{positive.embeds.shape}, the positive prompt's"
            raise UsageError("negative_prompt_embeds", got=negative.embeds.shape, expected=expected)
        return Condition.stack([negative, positive]), cfg_mix(scale, request.batch)

    def _negative(self, request: Request, positive: Condition) -> Condition:
        if request.negative is not None:
            return request.negative.repeat(request.images_per_prompt)
        if request.negative_prompts is None and self.bundle.zero_empty_negative:
            return positive.zeros()
        check_encoders(self.bundle, "negative_prompt")
        prompts = request.negative_prompts or ("",) * len(request.prompts)
        encoded = self._encode(prompts, request.max_sequence_length)
        return encoded.repeat(request.images_per_prompt)

    def _cfg_scale(self, request: Request) -> float:
        """The scale of classifier-free guidance, which Flux has only with a negative prompt."""
        if self.bundle.family != "flux":
            return request.guidance_scale
        has_negative = request.negative_prompts is not None or request.negative is not None
        return request.true_cfg_scale if has_negative else 1.0
