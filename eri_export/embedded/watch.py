"""Pictures of a denoiser while it learns, drawn by an exported bundle and shown in TensorBoard."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter

import eri_runtime as eri
from eri_export.bundle import export
from eri_export.embedded import models, pack
from eri_export.embedded.denoiser import weights_by_component
from eri_runtime.executors.base import Closeable

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

    from eri_export.embedded.loop import Run

PROMPTS = ("a red heart", "a pizza", "an octopus", "a rocket")
STEPS, GUIDANCE, SEED = 20, 4.0, 0


def export_once(pipeline: StableDiffusion3Pipeline, folder: pathlib.Path) -> pathlib.Path:
    """The bundle in `folder`, exported if it is not there: new weights need no other."""
    bundle = folder / "bundle"
    if not bundle.exists():
        checkpoint = folder / "checkpoint"
        pack.write(pipeline, checkpoint)
        export(checkpoint, bundle)
        shutil.rmtree(checkpoint)
    return bundle


class Watch(Closeable):
    """An open pipeline and an event file, for `loop.train`'s `after`.

    Before the first step and every `every` after it, the pipeline is given the raw weights and then
    their moving average, and draws `prompts` with each, into FOLDER/raw and FOLDER/ema.
    """

    def __init__(
        self,
        bundle: pathlib.Path,
        folder: pathlib.Path,
        *,
        every: int,
        prompts: Sequence[str] = PROMPTS,
    ) -> None:
        self.folder, self.every, self.prompts = folder, every, tuple(prompts)
        self._pipe = eri.load(bundle)
        self._writer = SummaryWriter(folder / "events")

    def __call__(self, run: Run) -> None:
        """Draw, if it is time to."""
        if run.step % self.every == 0:
            self.draw(run)

    def draw(self, run: Run) -> dict[str, list[pathlib.Path]]:
        """The pictures of both kinds of weights, saved and logged."""
        return {
            name: self._drawn(name, model, run.step)
            for name, model in (("raw", run.model), ("ema", run.ema))
        }

    def close(self) -> None:
        """Flush the event file and close the pipeline."""
        self._writer.close()
        self._pipe.close()

    def _drawn(self, name: str, model: Any, step: int) -> list[pathlib.Path]:
        for component, weights in weights_by_component(model).items():
            self._pipe.update_weights(weights, component=component)
        config = eri.SamplingConfig(
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            height=models.IMAGE_SIZE,
            width=models.IMAGE_SIZE,
            seed=SEED,
            output_dir=self.folder / name,
        )
        return eri.generate_validation_samples(
            self._pipe,
            self.prompts,
            config,
            step,
            name=name,
            max_sequence_length=models.MAX_TOKENS,
            loggers=(self._writer,),
        )
