"""A request in a worker, and how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from time import perf_counter

from PIL import Image

from eri_runtime.bundle import DENOISER
from eri_runtime.latents import ENCODER
from eri_runtime.loop import Step
from eri_runtime.pipeline import Generation
from eri_runtime.request import takes_lora_inputs
from eri_runtime.serve.messages import Pictures
from eri_runtime.serve.open_bundles import Merged, OpenBundle
from eri_runtime.serve.protocol import Run
from eri_runtime.serve.step_costs import Group


@dataclass(eq=False)
class Job:
    """A request in a worker.

    Attributes:
        run: The request.
        opened: Its bundle.
        merged: The LoRAs that must be in the weights; none if they are inputs.
        beginning: Encodes the prompts, in another thread; None before that.
        generation: The request in progress, once its prompts are encoded.
        finishing: Decodes the pictures, in another thread; None before that.
        turn: Number of the step call that it was in last, for fairness between merged LoRAs.
        since: When it was admitted, by `perf_counter`.
    """

    run: Run
    opened: OpenBundle
    merged: Merged
    beginning: Future[Generation] | None = None
    generation: Generation | None = None
    finishing: Future[Pictures] | None = None
    turn: int = -1
    since: float = field(default_factory=perf_counter)

    @property
    def steps(self) -> bool:
        """Whether its next work is a step."""
        return self.generation is not None and self.finishing is None

    @property
    def group(self) -> Group:
        """What it must have in common with others to share an engine call."""
        return id(self.opened), self.merged, self.stepping.group

    @property
    def stepping(self) -> Generation:
        """The request in progress, of a request that steps."""
        assert self.generation is not None  # noqa: S101 `steps` says so
        return self.generation

    @property
    def rows(self) -> int:
        """Rows of the denoiser's batch that it takes."""
        return self.stepping.rows

    @property
    def most_rows(self) -> int:
        """Most rows that the denoiser takes."""
        return self.opened.pipe.bundle.components[DENOISER].ranges["batch"].max

    @property
    def total_steps(self) -> int:
        """Steps from its first to its last."""
        return self.stepping.last.total

    def begin(self) -> Generation:
        """Encodes the prompts and draws the first latents."""
        request, pipe = self.run.request, self.opened.pipe
        words = {**request.words, "output_type": "pil"}
        if request.loras and takes_lora_inputs(pipe.bundle):
            self.opened.read(request.loras)
            words["loras"] = dict(request.loras)
        negative = request.negative_prompt
        return pipe.begin(pipe.request(request.prompt, negative_prompt=negative, **words))

    def finish(self) -> Pictures:
        """Decodes the pictures."""
        assert self.generation is not None  # noqa: S101 it is done
        generation = self.generation
        result = self.opened.pipe.finish(generation.request, generation.last.x)
        result = replace(result, parameters=generation.parameters)
        return Pictures(images=result.images, seeds=result.seeds, parameters=result.parameters)

    def preview(self, step: Step) -> Sequence[Image.Image]:
        """Returns rough pictures of a step; none if the bundle cannot make any."""
        assert self.generation is not None  # noqa: S101 it has made a step
        pipe = self.opened.pipe
        if ENCODER not in pipe.bundle.components:
            return ()
        return tuple(pipe.preview(self.generation.request, step))

    def shows(self, step: Step) -> bool:
        """Returns whether a preview of this step is due."""
        count, last = self.run.request.previews, step.total - 1
        due = {round(step.total * (i + 1) / (count + 1)) - 1 for i in range(count)}
        return step.index in due and step.index < last
