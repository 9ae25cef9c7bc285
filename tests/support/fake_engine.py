"""An engine that draws flat pictures at once, and fails or waits as a test tells it to."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

from PIL import Image

from eri_runtime.bundle import Bundle, Defaults, FileRecord, LatentSpec, ScheduleSpec
from eri_runtime.bundle.component_spec import ComponentSpec, ShapeRange
from eri_runtime.errors import (
    CancelledError,
    DeadlineError,
    OverloadedError,
    StoppingError,
    UnknownNameError,
    UsageError,
)
from eri_runtime.images import parameters_text
from eri_runtime.latents import check_size
from eri_runtime.serve import (
    Ended,
    Engine,
    EngineOptions,
    Event,
    Model,
    Observer,
    PictureRequest,
    Pictures,
    Progress,
    Status,
    StepTime,
    Submission,
)

CREATED = 1_700_000_000
SIDES = ShapeRange(min=2, opt=8, max=64)  # latents of eight pixels


def tiny_bundle(name: str = "tiny") -> Bundle:
    """A manifest of a model that makes pictures of 16 to 512 pixels a side; its files are not."""
    decoder = ComponentSpec(
        graph="vae_decoder.onnx",
        weights="weights.bin",
        precision="fp32",
        inputs=(),
        outputs=(),
        ranges={"batch": ShapeRange(min=1, opt=1, max=10), "height": SIDES, "width": SIDES},
        parameters=0,
        parity=0.0,
    )
    return Bundle(
        root=Path("/nowhere") / name,
        family="sd35",
        components={"denoiser": decoder, "vae_decoder": decoder},
        tokenizers={},
        schedule=ScheduleSpec(kind="flow", prediction="flow"),
        latents=LatentSpec(channels=16, factor=8, scale=1.0, shift=0.0, patch=2),
        defaults=Defaults(
            sampler="flow_euler",
            num_inference_steps=4,
            guidance_scale=4.0,
            height=64,
            width=64,
            max_sequence_length=16,
        ),
        files={decoder.weights: FileRecord(size=1, sha256="0123456789abcdef" * 4)},
    )


class FakeSubmission(Submission):
    """A request of `FakeEngine`."""

    def __init__(self, engine: FakeEngine, name: str, request: PictureRequest) -> None:
        self.id = name
        self.request = request
        self.cancelled = asyncio.Event()
        self.is_stopped = False
        self.started = asyncio.get_running_loop().time()
        self._engine = engine

    def cancel(self) -> None:
        self.cancelled.set()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._engine.run(self)


class FakeEngine(Engine):
    """Draws pictures of one colour, which depends on the seed, without any network.

    Attributes:
        delay: Seconds that each step takes.
        start_seconds: Seconds that `start` takes.
        fault: Raised by the first step, if set.
        refusals: Raised by `submit`, one each time, first to last.
        seen: Every request that was accepted.
        ended: The outcome of every request that ended.
        closed: Whether `close` was called.
    """

    def __init__(
        self,
        models: tuple[str, ...] = ("tiny",),
        options: EngineOptions | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.models = {
            name: Model(name=name, bundle=tiny_bundle(name), created=CREATED) for name in models
        }
        self.options = options or EngineOptions()
        self.observer = observer or Observer()
        self.delay = self.start_seconds = 0.0
        self.fault: Exception | None = None
        self.refusals: list[Exception] = []
        self.seen: list[PictureRequest] = []
        self.outcomes: list[str] = []
        self.closed = False
        self.started = False
        self.stopping = False
        self.ready = True
        self._live: dict[str, FakeSubmission] = {}
        self._names = map("request-{}".format, itertools.count())

    async def start(self) -> None:
        await asyncio.sleep(self.start_seconds)
        self.started = True

    def submit(self, request: PictureRequest) -> FakeSubmission:
        try:
            checked = self._checked(request)
        except Exception as error:
            self.observer.refused(type(error).__name__)
            raise
        submission = FakeSubmission(self, next(self._names), checked)
        self._live[submission.id] = submission
        self.seen.append(checked)
        return submission

    async def submit_async(self, request: PictureRequest) -> FakeSubmission:
        return self.submit(request)

    def _checked(self, request: PictureRequest) -> PictureRequest:
        if self.stopping:
            raise StoppingError("engine", got="a request", expected="none, as it is stopping")
        if self.refusals:
            raise self.refusals.pop(0)
        name = request.model or next(iter(self.models))
        if name not in self.models:
            raise UnknownNameError("model", got=name, expected=f"one of {', '.join(self.models)}")
        for lora in request.loras:
            if lora not in self.options.loras:
                raise UnknownNameError("loras", got=lora, expected="one of the server's")
        if len(self._live) >= self.options.queue:
            raise OverloadedError("queue", got="a request", expected="room in the queue")
        self._check_limits(name, request)
        return PictureRequest(**{**vars(request), "model": name})

    def _check_limits(self, name: str, request: PictureRequest) -> None:
        limits, words = self.options.limits, request.words
        for key, most in (("num_inference_steps", limits.steps), ("num_images_per_prompt", 10)):
            if (words.get(key) or 1) > most:
                raise UsageError(key, got=words[key], expected=f"{most} at most")
        defaults = self.models[name].bundle.defaults
        height, width = words.get("height", defaults.height), words.get("width", defaults.width)
        check_size(self.models[name].bundle, height, width)
        if height * width > limits.pixels:
            raise UsageError("size", got=f"{width}x{height}", expected=f"{limits.pixels} pixels")
        if len(request.prompt or "") > limits.prompt:
            raise UsageError("prompt", got="too much", expected=f"{limits.prompt} at most")

    async def run(self, submission: FakeSubmission) -> AsyncIterator[Event]:
        """Yields the events, and tells the observer."""
        outcome, first_preview, count = "failed", None, 0
        try:
            async for event in self._events(submission):
                if isinstance(event, Progress) and event.images and first_preview is None:
                    first_preview = 0.25
                if isinstance(event, Pictures):
                    outcome, count = "finished", len(event.images)
                    self._live.pop(submission.id, None)
                yield event
        except CancelledError:
            outcome = "cancelled"
            raise
        except DeadlineError:
            outcome = "late"
            raise
        finally:
            self._live.pop(submission.id, None)
            self.outcomes.append(outcome)
            self.observer.ended(
                Ended(
                    model=submission.request.model,
                    outcome=outcome,
                    waited=0.5,
                    seconds=1.0,
                    first_preview=first_preview,
                    pictures=count,
                )
            )

    async def _events(self, submission: FakeSubmission) -> AsyncIterator[Event]:
        request, bundle = submission.request, self.models[submission.request.model].bundle
        words = request.words
        width = words.get("width") or bundle.defaults.width
        height = words.get("height") or bundle.defaults.height
        steps = words.get("num_inference_steps") or bundle.defaults.num_inference_steps
        count, seed = words.get("num_images_per_prompt") or 1, words.get("seed") or 0
        seeds = [seed + i for i in range(count)]
        if self.fault is not None:
            raise self.fault
        for step in range(1, steps + 1):
            await self._step(submission)
            self.observer.stepped(
                StepTime(
                    model=request.model,
                    width=width,
                    height=height,
                    requests=1,
                    rows=2 * count,
                    seconds=0.03,
                )
            )
            due = step * request.previews // steps > (step - 1) * request.previews // steps
            images = [draw(seed, width, height) for seed in seeds] if due else []
            yield Progress(step=step, total=steps, images=images)
        settings = {"Steps": steps, "Size": f"{width}x{height}"}
        texts = [
            parameters_text(
                str(request.prompt), request.negative_prompt or "", {**settings, "Seed": seed}
            )
            for seed in seeds
        ]
        images = [draw(seed, width, height) for seed in seeds]
        yield Pictures(images=images, seeds=seeds, parameters=texts)

    async def _step(self, submission: FakeSubmission) -> None:
        limit = submission.request.timeout or self.options.timeout
        loop = asyncio.get_running_loop()
        left = submission.started + limit - loop.time()
        try:
            async with asyncio.timeout(min(self.delay, left)):
                await submission.cancelled.wait()
        except TimeoutError:
            if left <= self.delay:
                raise DeadlineError("request", got="more", expected=f"{limit} s") from None
        if submission.is_stopped:
            raise StoppingError("engine", got="no time left", expected="an end before")
        if submission.cancelled.is_set():
            raise CancelledError("request", got="a cancellation", expected="none")

    @property
    def submissions(self) -> dict[str, Submission]:
        return dict(self._live)

    @property
    def status(self) -> Status:
        return Status(
            ready=self.ready and self.started and not self.closed,
            stopping=self.stopping,
            waiting=0,
            running=len(self._live),
            workers=1,
            restarts=0,
        )

    async def drain(self, grace: float) -> None:
        self.stopping = True
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while self._live:
                    await asyncio.sleep(0.01)
        self._stop_all()

    async def close(self) -> None:
        self.closed = True
        self._stop_all()

    def _stop_all(self) -> None:
        self.stopping = True
        for submission in self._live.values():
            submission.is_stopped = True
            submission.cancelled.set()


def draw(seed: int, width: int, height: int) -> Image.Image:
    """A picture whose colour tells its seed."""
    return Image.new("RGB", (width, height), (seed % 256, seed // 256 % 256, 128))


def failing(make: Callable[[], Exception]) -> FakeEngine:
    """An engine whose requests all fail with the error that `make` returns."""
    engine = FakeEngine()
    engine.fault = make()
    return engine
