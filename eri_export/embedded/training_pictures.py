"""Draws images with an exported bundle during training, for TensorBoard."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter

import eri_runtime as eri
from eri_export.embedded import models, write_checkpoint
from eri_export.embedded.denoiser import weights_by_component
from eri_export.publishing.export_bundle import export
from eri_runtime.executors import Closeable

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

    from eri_export.embedded.training_loop import Run

PROMPTS = ("a red heart", "a pizza", "an octopus", "a rocket")
STEPS, GUIDANCE, SEED = 20, 4.0, 0


def export_once(pipeline: StableDiffusion3Pipeline, folder: pathlib.Path) -> pathlib.Path:
    """Returns the bundle in `folder`, exported on the first call; later weights replace its own."""
    bundle = folder / "bundle"
    if not bundle.exists():
        checkpoint = folder / "checkpoint"
        write_checkpoint.write(pipeline, checkpoint)
        export(checkpoint, bundle)
        shutil.rmtree(checkpoint)
    return bundle


class Watch(Closeable):
    """An open pipeline and an event file, to be passed as `after` to `training_loop.train`.

    Before the first step and every `every` steps, the pipeline draws `prompts` with the raw weights
    and with their moving average, to FOLDER/raw and FOLDER/ema.
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
        """Draws if the run's step is a multiple of `every`."""
        if run.step % self.every == 0:
            self.draw(run)

    def draw(self, run: Run) -> dict[str, list[pathlib.Path]]:
        """Draws, saves and logs images with both kinds of weights; returns the files."""
        return {
            name: self._draw(name, model, run.step)
            for name, model in (("raw", run.model), ("ema", run.ema))
        }

    def close(self) -> None:
        """Flushes the event file and closes the pipeline."""
        self._writer.close()
        self._pipe.close()

    def _draw(self, name: str, model: Any, step: int) -> list[pathlib.Path]:
        """Draws with a model's weights and returns the files."""
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
