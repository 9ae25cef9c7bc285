"""Our own worker: a bundle on one backend, through `eri_runtime` and nothing else.

python -m eri_runtime.bench.worker      lines of JSON in, lines of JSON out
"""

from __future__ import annotations

import numpy as np

from eri_runtime.bench.serve import Drawer, Job, Opened, Setup, Stopwatch, serve
from eri_runtime.conditioning import TextEncoders
from eri_runtime.executors import BACKENDS
from eri_runtime.executors.base import Settings
from eri_runtime.pipelines import Pipeline, load
from eri_runtime.spec import Bundle
from eri_runtime.words import Words


class Engine(Drawer):
    """An open pipeline; prompts are encoded at each call, as if none had been seen before."""

    def __init__(self, pipe: Pipeline) -> None:
        self._pipe = pipe
        self._encode = TextEncoders(pipe.bundle, pipe.run)

    def draw(self, job: Job, watch: Stopwatch) -> None:
        """Encode, denoise, decode, write; a mark after each."""
        latents = np.load(job.latents)
        words: Words = {
            "width": job.width,
            "height": job.height,
            "num_inference_steps": job.steps,
            "num_images_per_prompt": job.images,
            "guidance_scale": job.guidance,
            "max_sequence_length": job.tokens,
            "latents": latents,
            "seed": job.seed,
        }
        self._pipe.prepare(self._pipe.request(job.prompt, **words))  # as a call of it would
        words |= self._embeddings(job)
        watch.mark("encode")
        request = self._pipe.request(**words)
        x = latents
        for step in self._pipe.denoise(request):
            x = step.x
            watch.mark("step")
        if job.output is None:
            return
        result = self._pipe.finish(request, x)
        watch.mark("decode")
        result.save(job.output)
        watch.mark("png")

    def _embeddings(self, job: Job) -> Words:
        """The prompt's, and the empty one's where the family guides with it."""
        positive = self._encode([job.prompt], job.tokens)
        words: Words = {
            "prompt_embeds": positive.embeds,
            "pooled_prompt_embeds": positive.pooled,
        }
        if guided_by_text(self._pipe.bundle) and job.guidance > 1:
            negative = self._encode([""], job.tokens)
            words["negative_prompt_embeds"] = negative.embeds
            words["negative_pooled_prompt_embeds"] = negative.pooled
        return words


def guided_by_text(bundle: Bundle) -> bool:
    """Whether CFG without a negative prompt takes an encoded empty text, as diffusers does it."""
    return bundle.family != "flux" and not bundle.zero_empty_negative


def make(setup: Setup) -> tuple[Drawer, Opened]:
    """Load a bundle; its components are opened when first needed."""
    pipe = load(setup.bundle, setup.variant, threads=setup.threads)
    words = BACKENDS[setup.variant].of(pipe.bundle).words(Settings(threads=setup.threads))
    return Engine(pipe), Opened(
        words=words, precision=precision_of(pipe.bundle, setup.variant), versions={}
    )


def precision_of(bundle: Bundle, backend: str) -> str:
    """What the denoiser computes in: the bundle's, unless the backend rounds more."""
    return "bf16" if backend.endswith(":bf16") else bundle.components["denoiser"].precision


if __name__ == "__main__":
    serve(make)
