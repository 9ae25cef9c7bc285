"""`load` and `Pipeline`: prompts to images, with text encoders, denoising loop and VAE.

This module only puts the parts together; the work is done in the rooms that it imports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

import numpy as np
from numpy.typing import NDArray

from eri_runtime import executors
from eri_runtime.bundle import DENOISER, Bundle, Verify, manifest, verify_on_load
from eri_runtime.checks import function, instance, integer, items, mapping, one_of, to_numpy
from eri_runtime.checks import text as check_text
from eri_runtime.errors import UsageError
from eri_runtime.executors import (
    Closeable,
    backend_name,
    engine_description,
    hashes_of,
    step_cache_refusal,
)
from eri_runtime.images import to_pil, to_tensor, to_unit
from eri_runtime.latents import check_size, enlarge, fit_rgb, to_rgb, vae
from eri_runtime.loop import Array, Loop, LoopChoice, Step
from eri_runtime.memory import (
    DEFAULT_MEMORY,
    MemoryEfficientSamplingConfig,
    MemoryManager,
    Mode,
    RequestSize,
    request_size,
)
from eri_runtime.pipeline.diffusers_methods import DiffusersMethods
from eri_runtime.pipeline.from_pretrained import load_words
from eri_runtime.pipeline.generation import Generation, joint_size
from eri_runtime.pipeline.memory_fallback import denoise_in_fitting_mode, run_in_fitting_mode
from eri_runtime.pipeline.prompt_stages import prompt_windows, weighted_texts
from eri_runtime.pipeline.request_runner import RequestRunner
from eri_runtime.pipeline.result import Result, parameters_texts
from eri_runtime.pipeline.step_callbacks import (
    CallInProgress,
    RunningCalls,
    run_with_callbacks,
)
from eri_runtime.pipeline.textual_inversions import TextualInversions
from eri_runtime.request import (
    Request,
    Words,
    make_request,
    name_positional,
    request_schedule,
    request_table,
    scheduler_scale,
)
from eri_runtime.sampling import SamplerTable, Schedule
from eri_runtime.text import (
    Condition,
    EmbeddingCache,
    EmbeddingFiles,
    PromptLike,
    Syntax,
    TextEncoders,
    embeddings_folder,
)
from eri_runtime.weights import (
    LiveWeights,
    OpenComponent,
    OpenParts,
    OpenStep,
    Scale,
    Source,
    StateDict,
    WeightOverlays,
    encoder_state,
    no_parts,
    to_stored_types,
)

TAG = "<lora:...> in a prompt"

if TYPE_CHECKING:
    from PIL.Image import Image


def load(
    bundle: str | Path,
    backend: str = "auto",
    *,
    threads: int | Literal["auto"] | None = None,
    low_memory: bool = False,
    verify: Verify = "first",
    loop: Loop = "auto",
    memory: MemoryEfficientSamplingConfig = DEFAULT_MEMORY,
    embeddings: str | Path | bool | None = None,
    cache: bool = True,
) -> Pipeline:
    """Opens a bundle for generating images.

    Use the pipeline as a context manager, or call `close` at the end. Components (text encoders,
    denoiser, VAE) are opened on first use. `load` checks the sizes of all files and the sha256 of
    all but weights and plans. Those are hashed while they are opened, and nothing that was computed
    from them is given out before.

    The pipeline belongs to the files as they are now. If one is replaced later, components that are
    open go on with the old file, and opening it raises `IntegrityError`; so does using a file that
    was rewritten in place. A picture is never made of two bundles.

    Args:
        bundle: Folder of the bundle, as `eri export` writes it. A relative path counts from the
            working folder of now. It and its files may be links.
        backend: Engine to run it: `"tensorrt"`, `"cuda"`, `"cuda:tf32"`, `"openvino"`,
            `"openvino:bf16"`, `"cpu"` (ONNX Runtime), or `"auto"` for the first of them that can
            run every component as exactly as it was exported. A backend that you name is used or
            refused, never replaced by another.
        threads: Number of CPU threads of the engine, 1 to 1024. `"auto"` runs the denoiser at its
            usual size with all cores, half of them and so on, and takes the fastest; the cores that
            count are those of the affinity mask and the control group. The number is kept beside
            the bundle (see `cache`). An engine may sum in another order with another number of
            threads, which changes a picture's last bits. Default: all cores.
        low_memory: Lets ONNX Runtime map the weights from their files instead of copying them.
            Processes share the mapped pages; inference is somewhat slower.
        verify: When to compare weights with the manifest's sha256. `"first"`: unless the same file,
            unchanged, was compared before; the user's cache folder remembers it. `"always"`: once
            per pipeline, which also finds what a failing disk changed. `"never"`: damaged weights
            may give wrong pictures.
        loop: `"step"` to run only the step graph (guidance and solver inside the engine),
            `"numpy"` to run only the NumPy loop, `"auto"` to run the step graph whenever it can
            run the request.
        memory: Memory modes such as offloading or VAE tiling. If memory runs out anyway, the
            pipeline tries smaller batches, tiling and offloading by itself.
        embeddings: Folder that keeps the embeddings of prompts, or True for the user's cache
            folder. For prompts found there no text encoder is opened. Default: memory only.
        cache: Keep what OpenVINO compiles in the bundle's folder `compiled`, without the weights,
            and open what an earlier process kept there. Where that folder cannot be written, the
            user's cache folder takes its place. Off with `verify="never"`, but for reading. It
            also stands for the kernels of TensorRT for RTX.

    Returns:
        An open pipeline.

    Raises:
        BundleError: If the folder is no bundle, or a file is missing or damaged.
        BackendError: If the backend is not installed or cannot run the bundle.
        UsageError: If an argument is invalid, or bundle or engine do not support a mode of
            `memory`.

    Example:
            with eri.load("engines/sdxl", "cpu", threads=4) as pipe:
                pipe("a red heart", seed=0).save("heart.png")
    """
    folder = embeddings_folder(embeddings)
    contents = manifest.read(bundle)
    verify_on_load(contents)
    words: dict[str, Any] = {"threads": threads, "low_memory": low_memory, "verify": verify}
    engine = executors.choose(contents, backend, **words, cache=cache)
    return Pipeline(contents, engine, engine.stepper, loop, memory, folder, engine.parted)


def _checked(request: object) -> Request:
    """Returns `request`; raises `UsageError` for anything that `Pipeline.request` did not make."""
    return instance("request", request, Request, "a request, from Pipeline.request")


class Pipeline(DiffusersMethods, Closeable):
    """Generates images from a bundle; `load` opens one.

    Call it with a prompt for a finished `Result`, or use `request`, `denoise` and `finish` to write
    the loop yourself. Each component is opened on first use and stays open until `close`, unless a
    memory mode closes it earlier.

    Threads may share a pipeline: every method may be called from any of them. New weights and
    `close` wait for the images that are being made, and images that are asked for later wait for
    them. So a callback must not wait for an image of another thread.

    Attributes:
        bundle: The bundle's manifest: family, components, schedule and defaults.

    Methods and attributes of diffusers' pipelines are there too (`DiffusersMethods`), or say what
    to do instead.

    Example:
        >>> result = pipe("a red heart", num_inference_steps=2, height=32, width=32, seed=0)
        >>> result.images[0].size
        (32, 32)

        The same as a loop, which can be watched, stopped and resumed:

        >>> settings = {"num_inference_steps": 2, "height": 32, "width": 32, "seed": 0}
        >>> request = pipe.request("a red heart", **settings)
        >>> for step in pipe.denoise(request):
        ...     preview = pipe.preview(request, step)[0]
        >>> same = pipe.finish(request, step.x)
        >>> bool((same.latents == result.latents).all())
        True
    """

    def __init__(
        self,
        bundle: Bundle,
        open_component: OpenComponent,
        open_step: OpenStep = lambda _: None,
        loop: Loop = "auto",
        memory: MemoryEfficientSamplingConfig = DEFAULT_MEMORY,
        embeddings: Path | None = None,
        open_parts: OpenParts = no_parts,
    ) -> None:
        """Composes a pipeline from a bundle and an engine; most callers use `load` instead.

        Args:
            bundle: Manifest, as `read_bundle` returns it.
            open_component: Opens a component by name, on one engine.
            open_step: Opens the denoiser's step graph, or returns None. Default: no step graph.
            loop: As in `load`.
            memory: As in `load`.
            embeddings: Folder that keeps the embeddings of prompts. Default: memory only.
            open_parts: Opens the denoiser in parts, for `step_cache`. Default: raises an error.

        Raises:
            UnknownNameError: If `loop` is unknown.
            UsageError: If bundle or engine do not support a mode of `memory`.
        """
        self.bundle, self._backend = bundle, backend_name(open_component)
        self._running = RunningCalls()
        one_of("loop", loop, get_args(Loop))
        step = open_step if loop != "numpy" else lambda _: None
        self._live = LiveWeights(bundle, open_component, step, open_parts)
        self._step_cache_refusal = step_cache_refusal(open_component)
        self._weights = WeightOverlays(bundle, self._live)
        loops = LoopChoice(self._live.stepper, loop)
        self._memory = MemoryManager(bundle, self._live, open_component, memory, loop)
        self._runner = RequestRunner(bundle, self._live, self._weights, loops, self._memory.guard)
        encoders = TextEncoders(bundle, self._runner.run)
        self._tokens = TextualInversions(bundle, self._live, self._weights, encoders)
        self._encode = EmbeddingCache(
            bundle,
            encoders,
            hashes=hashes_of(open_component),
            state=partial(encoder_state, bundle, self._live),
            read_lock=self._live.generating,
            engine=engine_description(open_component),
            files=None if embeddings is None else EmbeddingFiles(embeddings),
        )
        run = self._runner.run  # not a method of this object: a cycle would keep it alive
        self._rgb = lru_cache(1)(lambda _: fit_rgb(bundle, run))

    @classmethod
    def from_pretrained(cls, bundle: str | Path, **options: Any) -> Pipeline:
        """Opens a bundle as `load` does, under the name that diffusers' pipelines have.

        Args:
            bundle: Folder of the bundle.
            **options: Keywords of `load`. Those of diffusers that say what a bundle is anyway, such
                as `use_safetensors=True`, have no effect.

        Returns:
            An open pipeline.

        Raises:
            BundleError: If the folder is no bundle, such as a checkpoint that is not exported yet.
            BackendError: If the backend is not installed or cannot run the bundle.
            UsageError: If an option is invalid, or one of diffusers that has no effect here.

        Example:
                pipe = eri.Pipeline.from_pretrained("engines/sdxl", backend="cpu")
        """
        return load(bundle, **load_words(options, list(signature(load).parameters)[1:]))

    def __call__(
        self,
        prompt: PromptLike | Sequence[PromptLike] | None = None,
        *positional: Any,
        negative_prompt: str | Sequence[str] | None = None,
        on_step: Callable[[Step], object] | None = None,
        **words: Unpack[Words],
    ) -> Result:
        """Generates images.

        Args:
            prompt: A text; a mapping of texts to weights, which guide one image together; or a
                list of these, one per image. None with `prompt_embeds`.
            *positional: Further arguments in the order of diffusers' text-to-image pipeline of the
                family; the next is `prompt_2`.
            negative_prompt: A text for all images, or a list of one per prompt. CFG steers away
                from it. Default: zeros for SDXL, the empty text for SD3.5, no CFG for Flux.
            on_step: Function that is called with every `Step`, for example to show progress.
            **words: Keyword arguments with diffusers' names, such as `height`, `seed` or
                `guidance_scale`. `Words` explains every one of them.

        Returns:
            The images, their seeds and their settings. Image i belongs to prompt
            i // num_images_per_prompt.

        Raises:
            UsageError: If an argument is invalid.
            NonFiniteError: If the latents or images contain NaN or Inf.
            OutOfMemoryError: If the request does not fit in memory in any mode.

        Example:
            >>> pipe(
            ...     ["a red heart", {"a red heart": 0.7, "a pizza": 0.3}],
            ...     negative_prompt="blurry",
            ...     sampler="dpmpp_2m",
            ...     sigmas="karras",
            ...     num_inference_steps=2,
            ...     guidance_scale=[4.0, 6.0],
            ...     seed=[0, 7],
            ...     height=32,
            ...     width=48,
            ...     output_type="np",
            ... ).images.shape
            (2, 32, 48, 3)
        """
        if on_step is not None:
            function("on_step", on_step, "a function of a Step")
        request = self.request(prompt, *positional, negative_prompt=negative_prompt, **words)
        computed = 0
        with self._with_loras(request.merged_loras):
            self.prepare(request)
            for step in self.denoise(request):
                computed += step.computed
                if on_step is not None:
                    on_step(step)
            x = step.x
            if step.index + 1 < step.total:  # interrupted
                at = self.table(request).points[step.index + 1]
                x = x * np.float32(scheduler_scale(self.bundle, request, at))
            return replace(self.finish(request, x), computed_steps=computed)

    @contextmanager
    def _with_loras(self, scales: Mapping[str, float]) -> Iterator[None]:
        """Context manager within which no other thread changes weights and these LoRAs are merged.

        With LoRAs no other thread generates meanwhile. Raises `UnknownNameError` for one that is
        not loaded.
        """
        if not scales:
            with self._live.generating():
                yield
            return
        with self._weights.changing():
            before: dict[Any, Scale] = {**self.loras}
            self._weights.check_loaded(scales, TAG)
            self.set_loras(before | {**scales})
            try:
                yield
            finally:
                self.set_loras(before)

    def _check_merged(self, request: Request) -> None:
        """Raises `UsageError` if a LoRA of a request's tags is not merged as they say.

        Raises `UnknownNameError` if it is not loaded.
        """
        self._weights.check_loaded(request.merged_loras, TAG)
        for name, scale in request.merged_loras.items():
            if self.loras.get(name, 0.0) != scale:
                raise UsageError(
                    f"<lora:{name}:{scale:g}>",
                    got=f"{name!r} merged with {self.loras.get(name, 0)}",
                    expected=f"{scale:g}",
                    fix="call the pipeline, which merges it for one call, or merge it first: "
                    "pipe.set_loras({**pipe.loras, **request.merged_loras})",
                )

    def request(
        self,
        prompt: PromptLike | Sequence[PromptLike] | None = None,
        *positional: Any,
        negative_prompt: str | Sequence[str] | None = None,
        **words: Unpack[Words],
    ) -> Request:
        """Checks the arguments of a call and returns them as a request, for your own loop.

        Args:
            prompt: As in a call of the pipeline.
            *positional: As in a call of the pipeline.
            negative_prompt: As in a call of the pipeline.
            **words: As in a call of the pipeline; see `Words`.

        Returns:
            The request, completed with the bundle's defaults, for `denoise`, `finish` and so on.

        Raises:
            UsageError: If an argument is invalid.

        Example:
            >>> request = pipe.request("a red heart", seed=0)
            >>> request.steps, request.height, request.seeds
            (28, 64, (0,))
        """
        named: Any = {**words, "negative_prompt": negative_prompt}
        named = name_positional(self.bundle.family, positional, named)
        negative = named.pop("negative_prompt")
        request = make_request(self.bundle, prompt, negative, named)
        self._weights.check_loaded(request.merged_loras, TAG)
        if request.lora_scale != 1 and self.loras:
            got, fix = f"{request.lora_scale:g} with LoRAs that are merged", "use pipe.set_loras"
            raise UsageError('attention kwargs["scale"]', got=got, expected="1", fix=fix)
        if request.step_cache is not None and self._step_cache_refusal is not None:
            expected, fix = "an engine that opens its parts", "use `--backend cpu` or openvino"
            raise UsageError("step_cache", got=self._step_cache_refusal, expected=expected, fix=fix)
        return request

    def prepare(self, request: Request) -> None:
        """Starts to open the components that a request needs, and returns at once.

        Denoiser and VAE are opened and compiled for the request's size in background threads while
        the text encoders run. A call of the pipeline does this by itself; use it before your own
        loop, or in a server before the first request. Does nothing on a GPU, with offloading, or if
        memory may not suffice for all components at once.

        Args:
            request: A request like those to come.
        """
        self._memory.open_ahead(_checked(request))

    def denoise(self, request: Request, start: Step | None = None) -> Iterator[Step]:
        """Runs the denoising loop and yields every step; stop iterating to cancel it.

        Encodes the prompts and validates everything before the first step. If memory runs out, the
        loop resumes after the last step in the next memory mode. Calls the request's
        `callback_on_step_end` before it yields a step, which then has what the callback changed.

        Args:
            request: A request, from `request`.
            start: A `Step` of the same request to resume after, from this process or another.
                Default: run from the beginning.

        Returns:
            An iterator over the remaining steps.

        Raises:
            UsageError: If `start` is a step of another request.
            NonFiniteError: If the latents contain NaN or Inf; the message names the step.
            OutOfMemoryError: If the request does not fit in memory in any mode.

        Example:
            >>> request = pipe.request("a red heart", num_inference_steps=4, seed=0)
            >>> for step in pipe.denoise(request):
            ...     if step.index == 1:
            ...         break
            >>> [later.index for later in pipe.denoise(request, start=step)]
            [2, 3]
        """
        if start is not None:
            instance("start", start, Step)
        call = CallInProgress(self, _checked(request))
        self._running.add(call)
        return run_with_callbacks(call, self._encode, self._denoise, start)

    def _denoise(self, request: Request, start: Step | None) -> Iterator[Step]:
        """Runs the loop of a request, without its callback."""
        attempt = self._memory.attempt(request_size(request))
        self._check_merged(request)
        steps_after = partial(self._runner.steps, self._encode, request)
        return denoise_in_fitting_mode(attempt, steps_after, start)

    def begin(self, request: Request) -> Generation:
        """Begins a request whose steps are to be made together with those of others.

        Encodes the prompts and validates everything. The NumPy loop runs it.

        Args:
            request: A request, from `request`.

        Returns:
            The request in progress, for `step`; `finish` takes its `last.x` when it is `done`.

        Raises:
            UsageError: If the denoiser cannot run the request.
            OutOfMemoryError: If the request does not fit in memory in any mode.

        Example:
            >>> words = {"height": 32, "width": 32, "seed": 0}
            >>> begun = [
            ...     pipe.begin(pipe.request("a red heart", num_inference_steps=2, **words)),
            ...     pipe.begin(pipe.request("a pizza", sampler="flow_heun", **words)),
            ... ]
            >>> [step.total for step in pipe.step(begun)]
            [2, 55]
        """
        for name, value in (
            ("callback_on_step_end", _checked(request).step_end),
            ("step_cache", request.step_cache),
        ):
            if value is not None:
                got, fix = "a request whose steps are made with others'", "use pipe.denoise"
                raise UsageError(name, got=got, expected="none", fix=fix)
        attempt = self._memory.attempt(request_size(request))
        self._check_merged(request)
        begin = partial(self._runner.trajectory, self._encode, request)
        trajectory = run_in_fitting_mode(attempt, DENOISER, begin)
        tokens = self._tokens.tokens
        parameters = parameters_texts(self.bundle, request, self.loras, tokens)
        return Generation(request, parameters, trajectory)

    def step(self, generations: Sequence[Generation]) -> list[Step | Exception]:
        """Makes the next step of several requests with one call of the denoiser.

        They may be at different steps, and have different samplers, numbers of steps, prompts and
        guidance. On ONNX Runtime's CPU each keeps the bits that it has alone. If memory runs out,
        the rows are computed in parts.

        Args:
            generations: Requests in progress, from `begin`, none of them done, all of one `group`.

        Returns:
            For each request its step, or what went wrong with it alone.

        Raises:
            UsageError: If they are not of one group, or one of them is done.
            OutOfMemoryError: If the step does not fit in memory in any mode. No request has moved
                then, nor after any other error.
        """
        listed = items("generations", generations, "requests in progress")
        begun = [instance("generations", each, Generation) for each in listed]
        if any(each.done for each in begun) or len({each.group for each in begun}) > 1:
            expected = "requests in progress of one group"
            raise UsageError("generations", got="others", expected=expected)
        if not begun:
            return []
        attempt = self._memory.next_step(joint_size(begun))
        trajectories = [each.trajectory for each in begun]
        step = partial(self._runner.step_together, trajectories)
        return run_in_fitting_mode(attempt, DENOISER, step)

    def schedule(self, request: Request) -> Schedule:
        """Returns the noise levels of a request.

        Args:
            request: A request, from `request`.

        Returns:
            N + 1 points (t, alpha, sigma) from noise to image. For image to image, the last
            `strength` of the schedule.

        Raises:
            UsageError: If the number of steps, `sigmas` or `strength` do not fit the model.

        Example:
            >>> pipe.schedule(pipe.request("a red heart", num_inference_steps=3)).sigma.round(3)
            array([1.   , 0.751, 0.009, 0.   ])
        """
        return request_schedule(self.bundle, _checked(request))

    def table(self, request: Request) -> SamplerTable:
        """Returns the sampler's coefficients for a request, one row per evaluation of the network.

        Args:
            request: A request, from `request`.

        Returns:
            The table that `denoise` runs.

        Raises:
            UsageError: If the number of steps, `sigmas` or `strength` do not fit the model.

        Example:
            >>> request = pipe.request("a red heart", sampler="flow_heun", num_inference_steps=3)
            >>> len(pipe.table(request))  # Heun evaluates twice per step, once in the last
            5
        """
        return request_table(self.bundle, _checked(request))

    def finish(self, request: Request, x: Array) -> Result:
        """Decodes latents of a request into a `Result`, with the pixels that an overlay keeps.

        Args:
            request: A request, from `request`.
            x: The last step's `Step.x`, or any `Step.denoised` for an early image, float32.

        Returns:
            The images in the request's `output_type`, with seeds and settings. Latents of a request
            with `denoising_end` have the scale of diffusers' scheduler.

        Raises:
            NonFiniteError: If the latents or images contain NaN or Inf.
            OutOfMemoryError: If the images do not fit in memory in any mode.

        Example:
            >>> request = pipe.request("a red heart", num_inference_steps=2, output_type="np")
            >>> *_, last = pipe.denoise(request)
            >>> pipe.finish(request, last.x).images.shape
            (1, 64, 64, 3)
        """
        parameters = parameters_texts(
            self.bundle, _checked(request), self.loras, self._tokens.tokens
        )
        x = vae.check_latents(self.bundle, x, request.height, request.width)
        if request.output_type == "latent":
            if request.part.end is not None:
                levels = self.schedule(request)
                x = x * np.float32(scheduler_scale(self.bundle, request, levels[len(levels)]))
            return Result(images=x, latents=x, seeds=request.known_seeds, parameters=parameters)
        attempt = self._memory.attempt(request_size(request))

        def decode(mode: Mode) -> Any:
            unit = to_unit(self._decode(mode, x, request.height, request.width))
            if request.edit is not None and request.edit.overlay is not None:
                unit = request.edit.overlay.apply(unit)
            convert = {"pil": to_pil, "pt": to_tensor}.get(request.output_type)
            return unit if convert is None else convert(unit)

        images = run_in_fitting_mode(attempt, vae.DECODER, decode)
        self._memory.release(attempt.mode)
        return Result(images=images, latents=x, seeds=request.known_seeds, parameters=parameters)

    def preview(self, request: Request, step: Step) -> list[Image]:
        """Returns rough images of a step, much faster than the VAE's decoder.

        Each is a linear map of `step.denoised` to RGB, enlarged. The first call fits the map to the
        bundle's VAE.

        Args:
            request: The request that the step belongs to.
            step: A step of the loop.

        Returns:
            One blurred PIL image per image of the request, in its size.

        Raises:
            UsageError: If the bundle has no VAE encoder.
            SizeError: If the step's latents have another size than the request.

        Example:
            >>> request = pipe.request("a red heart", num_inference_steps=2, seed=0)
            >>> for step in pipe.denoise(request):
            ...     print(pipe.preview(request, step)[0].size)
            (64, 64)
            (64, 64)
        """
        size = _checked(request).height, request.width
        instance("step", step, Step)
        factors = self._rgb(self._live.swaps(vae.ENCODER))
        latents = vae.unpack(self.bundle, step.denoised, *size)
        return enlarge(to_rgb(factors, latents), self.bundle.latents.factor)

    def prompt_windows(self, request: Request) -> int:
        """Returns how many windows of CLIP's tokens the prompts of a request take.

        A call gives all of its prompts as many windows as the longest one takes, so a prompt of
        fewer windows makes another picture beside a longer one. That is 1 for plain prompts, which
        are cut, and for given embeddings.

        Args:
            request: A request, from `request`.

        Raises:
            SizeError: If the denoiser does not read so many.

        Example:
            >>> words = {"prompt_syntax": "a1111", "max_sequence_length": 8}
            >>> pipe.prompt_windows(pipe.request("a red heart BREAK on blue", **words))
            2
        """
        return prompt_windows(self.bundle, self._encode, _checked(request))

    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        max_sequence_length: int | None = None,
        prompt_syntax: str = "plain",
    ) -> Condition:
        """Encodes prompts with the bundle's text encoders.

        The pipeline caches embeddings until the weights of a text encoder change.

        Args:
            prompt: A text, or a list of B texts.
            max_sequence_length: Longest T5 prompt in tokens, for SD3.5 and Flux. Default: the
                bundle's.
            prompt_syntax: `"plain"`, or `"a1111"` for weights, `BREAK` and windows beyond 77
                tokens, as in a call; the texts then take equally many windows.

        Returns:
            `embeds` (B, T, D) and `pooled` (B, P) float32, to pass as `prompt_embeds` and
            `pooled_prompt_embeds`, or as their negative counterparts.

        Raises:
            UsageError: If the bundle has no text encoders, or a text has a part that no embedding
                can hold: `AND`, a schedule or a LoRA.

        Example:
            >>> pair = pipe.encode_prompt(["a red heart", "a pizza"])
            >>> pair.embeds.shape, pair.pooled.shape
            ((2, 40, 64), (2, 64))
            >>> pipe(
            ...     prompt_embeds=pair.embeds,
            ...     pooled_prompt_embeds=pair.pooled,
            ...     num_inference_steps=2,
            ...     output_type="np",
            ... ).images.shape
            (2, 64, 64, 3)
        """
        listed = [prompt] if isinstance(prompt, str) else prompt
        prompts = items("prompt", listed, "a string, or a list of strings")
        if not prompts:
            raise UsageError("prompt", got="none", expected="a string, or a list of strings")
        for each in prompts:
            check_text("prompt", each)
        length = self.bundle.defaults.max_sequence_length
        if max_sequence_length is not None:
            length = integer("max_sequence_length", max_sequence_length, 0)
        if one_of("prompt_syntax", prompt_syntax, get_args(Syntax)) == "a1111":
            return self._encode(weighted_texts(self.bundle, self._encode, prompts, length), length)
        return self._encode(tuple(prompts), length)

    def decode(self, latents: Array, height: int, width: int) -> Array:
        """Decodes latents with the VAE.

        Args:
            latents: Latents float32 in the denoiser's scale, (B, C, h, w), or packed
                (B, tokens, 4·C) for Flux.
            height: Height of the images in pixels.
            width: Width of the images in pixels.

        Returns:
            Images (B, 3, height, width) float32 in about [−1, 1].

        Raises:
            SizeError: If the latents do not have that size.
            NonFiniteError: If the images contain NaN or Inf.
            OutOfMemoryError: If the images do not fit in memory in any mode.

        Example:
            >>> pipe.decode(np.zeros((1, 16, 8, 8), np.float32), 32, 32).shape
            (1, 3, 32, 32)
        """
        height, width = integer("height", height, 1), integer("width", width, 1)
        check_size(self.bundle, height, width)
        latents = vae.check_latents(self.bundle, latents, height, width)
        load = RequestSize(images=len(latents), rows=len(latents), height=height, width=width)
        attempt = self._memory.attempt(load)
        return run_in_fitting_mode(
            attempt, vae.DECODER, lambda mode: self._decode(mode, latents, height, width)
        )

    def run(self, name: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Runs one component, and opens it on first use.

        Args:
            name: Name of the component, one of `bundle.components`, such as `"denoiser"`.
            inputs: Arrays by name, in the shapes and dtypes of `bundle.components[name].inputs`.

        Returns:
            Arrays by name, as in `bundle.components[name].outputs`.

        Raises:
            SizeError: If an input is missing, unknown, or has a wrong shape or dtype.
            OutOfMemoryError: If memory runs out.

        Example:
            >>> latents = np.zeros((1, 16, 8, 8), np.float32)
            >>> pipe.run("vae_decoder", {"latents": latents})["image"].shape
            (1, 3, 32, 32)
        """
        one_of("component", name, self.bundle.components)
        arrays = mapping("inputs", inputs, "arrays by name")
        checked = {key: to_numpy(key, arrays[key]) for key in arrays}
        executors.check_inputs(name, self.bundle.components[name], checked)
        return self._runner.run(name, checked)

    def update_weights(self, tensors: StateDict | str | Path, component: str = DENOISER) -> None:
        """Replaces weights of a component, for example by those of a training run.

        Weights that are not named keep the values of earlier updates; `reset_weights` restores the
        file's. Either all tensors are replaced or, after an error, none. A call that runs in
        another thread first finishes with the old weights; a loop of your own uses the new ones
        from its next step on. LoRAs stay merged.

        Args:
            tensors: Any part of the component's state dict, as NumPy arrays or torch tensors, or a
                safetensors file of it. Names and shapes are those of the bundle's weights file,
                which are the checkpoint's. Floats are rounded to the stored dtype; arrays are
                copied.
            component: Name of the component. Default: the denoiser.

        Raises:
            UnknownNameError: If the bundle has no such component or weight.
            SizeError: If a tensor has another shape.
            UsageError: If a tensor has another kind of dtype.
            NonFiniteError: If a tensor contains NaN or Inf.
            CheckpointError: If the file is damaged.
            BackendError: If the engine cannot replace weights.

        Example:
                pipe.update_weights(ema.state_dict())
                pipe.update_weights("text_encoder.safetensors", "text_encoder")
        """
        arrays = to_stored_types(component, tensors, self._live.stored(component))
        self._weights.update(component, arrays)

    def reset_weights(self, component: str | None = None) -> None:
        """Undoes `update_weights`; LoRAs stay merged.

        Args:
            component: Name of the component. Default: all components.

        Raises:
            BackendError: If the engine cannot replace weights.

        Example:
            >>> pipe.reset_weights()  # without updates this does nothing
        """
        self._weights.reset(self.bundle.components if component is None else (component,))

    def load_lora(
        self,
        source: Source,
        scale: Scale = 1.0,
        *,
        name: str | None = None,
        partial: bool = False,
    ) -> str:
        """Reads a LoRA and merges it into the weights, in addition to those merged already.

        No new export is needed. `unload_loras` restores the weights to the bit. After an error
        everything is as it was before.

        Args:
            source: A safetensors file of kohya, peft, diffusers, LyCORIS (LoHa, LoKr, DoRA), xlabs
                or BFL, a folder that peft or diffusers saved, OWNER/NAME or OWNER/NAME:FILE of the
                Hugging Face Hub, which is downloaded to its cache, or the tensors by name.
            scale: Strength of the LoRA, any finite number. 0 only loads it, for `set_loras` or a
                call's `loras`. A mapping of components to numbers gives each its own; 1 for those
                it does not name.
            name: Name for `set_loras` and `unload_loras`. Default: the file's stem, or the folder's
                or repository's name. Required with tensors.
            partial: Skips keys that match no weight, with a warning, instead of raising an error.

        Returns:
            The name of the LoRA.

        Raises:
            LoraError: If the LoRA is damaged, or made for another model.
            HubError: If the LoRA cannot be downloaded, or its repository has several files.
            NonFiniteError: If the merged weights contain NaN or Inf.
            UsageError: If an argument is invalid, or the name belongs to another LoRA.
            BackendError: If the engine cannot replace weights.

        Example:
                pipe.load_lora("style.safetensors", 0.8)  # its name is "style"
                pipe.load_lora("style.safetensors", {"denoiser": 1.0, "text_encoder": 0.3})
        """
        return self._weights.load(source, scale, name, partial=partial)

    def set_loras(self, scales: Mapping[str | Path, Scale], *, partial: bool = False) -> None:
        """Merges exactly these LoRAs and takes all others out; those stay loaded.

        Args:
            scales: Scales by the name of a loaded LoRA, or by a file, folder or Hub id to load;
                each a number, or a mapping as in `load_lora`.
            partial: For files to load: skips keys that match no weight, with a warning, instead
                of raising an error.

        Raises:
            UnknownNameError: If a name is neither a loaded LoRA nor a file.
            LoraError: If a file is damaged, or made for another model.
            HubError: If a LoRA cannot be downloaded, or its repository has several files.
            NonFiniteError: If the merged weights contain NaN or Inf.
            UsageError: If a scale is not a finite number, or a LoRA is named twice.
            BackendError: If the engine cannot replace weights.

        Example:
                pipe.set_loras({"style": 0.5, "detail.safetensors": {"denoiser": 1.0}})
        """
        self._weights.set(scales, partial=partial)

    def unload_loras(self, *names: str) -> None:
        """Takes LoRAs out of the weights and forgets them.

        Args:
            *names: Names of loaded LoRAs. Default: all.

        Raises:
            UnknownNameError: If a LoRA is not loaded.
            BackendError: If the engine cannot replace weights.

        Example:
            >>> pipe.unload_loras()
            >>> dict(pipe.loras)
            {}
        """
        self._weights.unload(names)

    @property
    def loras(self) -> Mapping[str, Scale]:
        """Scales of the merged LoRAs by name, in the order of merging."""
        return self._weights.scales

    def load_textual_inversion(
        self, source: str | Path | Mapping[str, Any], token: str | None = None
    ) -> tuple[str, ...]:
        """Adds tokens with embeddings of their own to the CLIPs, for prompts to name.

        A token's embeddings are put into rows of the table that belong to the rarest pieces of
        words. A prompt with such a piece is refused; all other prompts keep their bits.

        Args:
            source: A safetensors file of kohya (`emb_params`), for two CLIPs (`clip_l` and
                `clip_g`) or of diffusers, a LoRA of OneTrainer with `bundle_emb`, or the tensors by
                key, (n, width) or (width,) of any float type.
            token: The token. Default: the one in the file, or the file's stem.

        Returns:
            The tokens that were added.

        Raises:
            LoraError: If the file has no embeddings, or not for a CLIP of this model.
            NonFiniteError: If an embedding contains NaN or Inf.
            UsageError: If the token exists already.
            BackendError: If the engine cannot replace weights.

        Example:
                pipe.load_textual_inversion("cat.safetensors", "<cat>")
                pipe("a red heart beside <cat>")
        """
        return self._tokens.load(source, token)

    def unload_textual_inversions(self, *tokens: str) -> None:
        """Takes tokens out again; the text encoders' own bits are restored.

        Args:
            *tokens: Added tokens. Default: all.

        Raises:
            UnknownNameError: If a token is not loaded.
            BackendError: If the engine cannot replace weights.

        Example:
            >>> pipe.unload_textual_inversions()
        """
        self._tokens.unload(tokens)

    def swaps(self, component: str) -> int:
        """Returns how often the weights of a component have changed.

        Compare it with an earlier value to find out whether cached outputs are stale.

        Args:
            component: Name of the component.

        Raises:
            UnknownNameError: If the bundle has no such component.
        """
        one_of("component", component, self.bundle.components)
        return self._live.swaps(component)

    def close(self) -> None:
        """Closes every open component; a context manager calls this at its end.

        Waits until other threads have finished their images. The pipeline stays usable: a later
        call opens components again, with updated weights and LoRAs as they were.

        Raises:
            UsageError: If this thread is within an image while another one is, too.
        """
        self._live.close()

    def _decode(self, mode: Mode, latents: Array, height: int, width: int) -> Array:
        """Decodes latents to images (B, 3, height, width) in one memory mode."""
        return vae.decode(self.bundle, self.run, latents, height, width, mode.vae)
