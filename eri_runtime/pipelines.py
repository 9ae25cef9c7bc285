"""Prompt to image: text encoders, denoising loop, VAE decoder. Composition only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, Unpack

from numpy.typing import NDArray

from eri_runtime import executors, manifest, vae
from eri_runtime.ahead import load_of
from eri_runtime.conditioning import Condition, TextEncoders
from eri_runtime.course import Course
from eri_runtime.denoise import Array, Step
from eri_runtime.embedding_files import EmbeddingFiles, folder_of
from eri_runtime.embeddings import Embeddings, encoder_state
from eri_runtime.executors import words_of
from eri_runtime.executors.base import Closeable
from eri_runtime.images import to_pil, to_unit
from eri_runtime.integrity import verify_on_load
from eri_runtime.live import DENOISER, LiveWeights, OpenComponent, OpenStep
from eri_runtime.loops import Loop, Loops
from eri_runtime.loras import Scale, Source, WeightLayers
from eri_runtime.memory.backoff import Attempt, Load
from eri_runtime.memory.mode import USUAL, MemoryEfficientSamplingConfig, Mode
from eri_runtime.memory.thrift import Thrift
from eri_runtime.preview import enlarged, fit_rgb, to_rgb
from eri_runtime.prompts import PromptLike
from eri_runtime.request import Request, make_request
from eri_runtime.result import Result, describe
from eri_runtime.schedule import Schedule
from eri_runtime.spec import Bundle
from eri_runtime.state_dict import StateDict, as_stored
from eri_runtime.table import SamplerTable
from eri_runtime.words import Words

if TYPE_CHECKING:
    from PIL.Image import Image

Made = TypeVar("Made")


def load(
    bundle: str | Path,
    backend: str = "auto",
    *,
    threads: int | None = None,
    low_memory: bool = False,
    loop: Loop = "auto",
    memory: MemoryEfficientSamplingConfig = USUAL,
    embeddings: str | Path | bool | None = None,
) -> Pipeline:
    """Open a bundle for generating images; use it as a context manager, or call `close`.

    `backend` is `tensorrt`, `cuda`, `openvino`, `openvino:bf16` or `cpu`, and no other is taken in
    its place; `auto` is the first that runs every component. `threads` is the engine's number of
    threads. `low_memory` leaves ONNX Runtime's weights in their files' pages, which processes
    share, at some cost in speed. `loop` is `step` for the step graph only, `numpy` for none, and
    `auto` for it where it serves. `memory` says what is given up to run in less of it; where memory
    ends all the same, the pipeline backs off by itself, as `memory.backoff` says. `embeddings` is a
    folder, True for the user's own, where those of prompts are kept: of known prompts no text
    encoder is opened. Sizes of all files and hashes of all but the weights are checked.
    Raises `BundleError`, `BackendError`, or `UsageError` for a bad argument and for a `memory` that
    bundle or engine have not.
    """
    folder = folder_of(embeddings)
    contents = manifest.read(bundle)
    verify_on_load(contents)
    engine = executors.choose(contents, backend, threads=threads, low_memory=low_memory)
    return Pipeline(contents, engine, engine.stepper, loop, memory, folder)


class Pipeline(Closeable):
    """A bundle and its open components; each is opened when first needed and kept."""

    def __init__(
        self,
        bundle: Bundle,
        open_component: OpenComponent,
        open_step: OpenStep = lambda _: None,
        loop: Loop = "auto",
        memory: MemoryEfficientSamplingConfig = USUAL,
        embeddings: Path | None = None,
    ) -> None:
        self.bundle = bundle
        step = open_step if loop != "numpy" else lambda _: None
        self._live = LiveWeights(bundle, open_component, step)
        self._weights = WeightLayers(bundle, self._live)
        loops = Loops(self._live.stepper, loop)
        self._thrift = Thrift(bundle, self._live, open_component, memory, loop)
        self._course = Course(bundle, self._live, self._weights, loops, self._thrift.guard)
        self._encode = Embeddings(
            bundle,
            TextEncoders(bundle, self.run),
            state=partial(encoder_state, bundle, self._live),
            turn=self._live.generating,
            words=words_of(open_component),
            files=None if embeddings is None else EmbeddingFiles(embeddings),
        )
        self._rgb = lru_cache(1)(lambda _: fit_rgb(bundle, self.run))

    def __call__(
        self,
        prompt: PromptLike | Sequence[PromptLike] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        on_step: Callable[[Step], object] | None = None,
        **words: Unpack[Words],
    ) -> Result:
        """Generate images; `words` are diffusers' keywords, explained at `Words`.

        A prompt may be a mapping of texts to weights, which guide one image together. `on_step`
        hears of every `Step`. Raises `UsageError` for a bad argument, `NonFiniteError` for NaN or
        Inf in latents or image.
        """
        request = make_request(self.bundle, prompt, negative_prompt, words)
        with self._live.generating():
            self.prepare(request)
            for step in self.denoise(request):
                if on_step is not None:
                    on_step(step)
            return self.finish(request, step.x)

    def request(
        self,
        prompt: PromptLike | Sequence[PromptLike] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        **words: Unpack[Words],
    ) -> Request:
        """A checked call, for `denoise` and `finish`: a loop of your own."""
        return make_request(self.bundle, prompt, negative_prompt, words)

    def prepare(self, request: Request) -> None:
        """Begin to open what a request will need, and return at once.

        A call begins with it: while text encoders are at work on one core, the denoiser and the VAE
        are opened on others, and compiled for the request's sizes. In front of a loop of your own
        it does the same, and in a server long before the first request. Nothing happens where
        components are opened one at a time, on a GPU, and where memory may be too little for all.
        """
        self._thrift.open_ahead(request)

    def denoise(self, request: Request, start: Step | None = None) -> Iterator[Step]:
        """The steps of a request, one at a time; stop asking and it stops.

        Prompts are encoded, and all that can be refused is, before the first is asked for. `start`
        is a step of the same request to go on from, of this run or another. Where memory ends, the
        steps go on from the last one in the next mode of `memory.backoff`. Raises `UsageError` for
        a step that cannot be of this request, `OutOfMemoryError` where it fits in no mode.
        """
        attempt = self._thrift.attempt(load_of(request))
        return self._going_on(attempt, request, self._begun(attempt, request, start), start)

    def schedule(self, request: Request) -> Schedule:
        """The points a request passes; of an edit, those that its strength leaves."""
        return self._course.schedule(request)

    def table(self, request: Request) -> SamplerTable:
        """The sampler's coefficients for a request."""
        return self._course.table(request)

    def finish(self, request: Request, x: Array) -> Result:
        """Decode the last `Step.x` of a request, or any `Step.denoised`."""
        parameters = describe(self.bundle, request, self.loras)
        if request.output_type == "latent":
            return Result(images=x, latents=x, seeds=request.seeds, parameters=parameters)
        attempt = self._thrift.attempt(load_of(request))

        def pictures(mode: Mode) -> Array | list[Image]:
            unit = to_unit(self._decoded(mode, x, request.height, request.width))
            return to_pil(unit) if request.output_type == "pil" else unit

        images = _retried(attempt, vae.DECODER, pictures)
        self._thrift.finished(attempt.mode)
        return Result(images=images, latents=x, seeds=request.seeds, parameters=parameters)

    def preview(self, request: Request, step: Step) -> list[Image]:
        """`step.denoised` as PIL images of the request's size, blurred: no decoder is run.

        Colours are fitted to the VAE at the first call. Raises `UsageError` for a bundle without
        its encoder, `SizeError` for a step of another size.
        """
        factors = self._rgb(self._live.swaps(vae.ENCODER))
        size = request.height, request.width
        latents = vae.unpack(self.bundle, step.denoised, *size)
        return enlarged(to_rgb(factors, latents), self.bundle.latents.factor)

    def encode_prompt(
        self, prompt: str | Sequence[str], max_sequence_length: int | None = None
    ) -> Condition:
        """`embeds` (B, T, D) and `pooled` (B, P), to pass as `prompt_embeds` and so on."""
        prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
        length = self.bundle.defaults.max_sequence_length
        return self._encode(prompts, length if max_sequence_length is None else max_sequence_length)

    def decode(self, latents: Array, height: int, width: int) -> Array:
        """Denoiser latents to images (B, 3, height, width), about [−1, 1]."""
        load = Load(images=len(latents), rows=len(latents), height=height, width=width)
        attempt = self._thrift.attempt(load)
        return _retried(
            attempt, vae.DECODER, lambda mode: self._decoded(mode, latents, height, width)
        )

    def run(self, name: str, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Run one component on NumPy arrays, opening it if this is its first use."""
        return self._course.run(name, inputs)

    def update_weights(self, tensors: StateDict | str | Path, component: str = DENOISER) -> None:
        """Put weights in the place of a component's, by the names of its weights file.

        `tensors` is any part of a component's state dict, of NumPy arrays or torch tensors, or a
        safetensors file, in the shapes of the weights file. A float of another width is rounded to
        the stored type. Weights that are not named stay what earlier calls made of them, so none
        named changes nothing; `reset_weights` returns to the file's. Arrays are copied.

        All is put in, or nothing. A call under way in another thread ends with the old weights
        first; within a loop, the next step has the new ones. Raises `UnknownNameError` for a
        component or weights that the bundle has not, `SizeError`, `UsageError` for another type,
        `NonFiniteError`, and `BackendError` where the engine takes no other weights.
        """
        given = as_stored(component, tensors, self._live.stored(component))
        self._weights.update(component, given)

    def reset_weights(self, component: str | None = None) -> None:
        """Take back updates of one component or all; LoRAs go on working."""
        self._weights.reset(self.bundle.components if component is None else (component,))

    def load_lora(
        self,
        source: Source,
        scale: Scale = 1.0,
        *,
        name: str | None = None,
        partial: bool = False,
    ) -> str:
        """Read a LoRA, merge `scale` times of it beside the others at work, and return its name.

        `source` is a safetensors file of kohya, peft, diffusers, LyCORIS (LoHa, LoKr, DoRA), xlabs
        or BFL, or its tensors with a `name`; a file's is its stem. `scale` is a number, or one for
        each component named. `partial` passes over keys that match nothing. Nothing is exported
        anew, and taking it out gives the old bits back. Raises `LoraError` for one that does not
        fit, `NonFiniteError`, `UsageError`, `BackendError`; all is then as it was.
        """
        return self._weights.load(source, scale, name, partial=partial)

    def set_loras(self, scales: Mapping[str | Path, Scale]) -> None:
        """Let these LoRAs, by name or by a file to load, work and no others; errors as above."""
        self._weights.set(scales)

    def unload_loras(self, *names: str) -> None:
        """Take out and forget these LoRAs, all if none is named."""
        self._weights.unload(names)

    @property
    def loras(self) -> Mapping[str, Scale]:
        """The LoRAs at work and their scales."""
        return self._weights.scales

    def swaps(self, component: str) -> int:
        """How often weights of a component changed: what was made with it may be stale after."""
        return self._live.swaps(component)

    def close(self) -> None:
        """Close every open component; a later call opens them anew, with the weights they had."""
        self._live.close()

    def _begun(self, attempt: Attempt, request: Request, start: Step | None) -> Iterator[Step]:
        """The steps after `start` in the first mode in which the request can begin."""
        begun = partial(self._course.steps, self._encode, request, start)
        return _retried(attempt, DENOISER, begun)

    def _going_on(
        self, attempt: Attempt, request: Request, steps: Iterator[Step], last: Step | None
    ) -> Iterator[Step]:
        """`steps`, and where memory ends those of the next mode after the `last`."""
        while True:
            try:
                for step in steps:
                    last = step
                    yield step
                return
            except Exception as error:
                last = None if last is None else last.on_host()
                attempt.turn(DENOISER, error)
            steps = self._begun(attempt, request, last)

    def _decoded(self, mode: Mode, latents: Array, height: int, width: int) -> Array:
        return vae.decode(self.bundle, self.run, latents, height, width, mode.vae)


def _retried(attempt: Attempt, component: str, make: Callable[[Mode], Made]) -> Made:
    """What `make` makes in the first mode of an attempt in which there is memory for it."""
    while True:
        try:
            return make(attempt.mode)
        except Exception as error:
            attempt.turn(component, error)
