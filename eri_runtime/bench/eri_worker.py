"""Our own worker: runs a bundle on one backend with `eri_runtime` alone.

`python -m eri_runtime.bench.eri_worker` reads and writes lines of JSON.
"""

from __future__ import annotations

import numpy as np

from eri_runtime.bench.worker_server import Drawer, Job, Opened, Setup, Stopwatch, serve
from eri_runtime.bundle import Bundle
from eri_runtime.executors import BACKENDS, Settings
from eri_runtime.pipeline import Pipeline, load
from eri_runtime.request import FIRST_BLOCK, Words
from eri_runtime.text import TextEncoders

STEP_CACHE = "+cache="  # in a variant: between the backend and the threshold


class Engine(Drawer):
    """An open pipeline that encodes the prompt in each call, without its embedding cache."""

    def __init__(self, pipe: Pipeline, words: Words) -> None:
        self._pipe, self._words = pipe, words
        self._encode = TextEncoders(pipe.bundle, pipe.run)

    def draw(self, job: Job, watch: Stopwatch) -> None:
        """Encodes, denoises, decodes and writes, with a mark after each."""
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
            **self._words,
        }
        self._pipe.prepare(self._pipe.request(job.prompt, **words))  # as a call does
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
        """Returns the embeddings of the prompt, and of the empty one if guidance needs it."""
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
    """Returns whether CFG without a negative prompt encodes the empty text, as in diffusers."""
    return bundle.family != "flux" and not bundle.zero_empty_negative


def make(setup: Setup) -> tuple[Drawer, Opened]:
    """Loads a bundle; its components are opened on first use."""
    backend, cached, threshold = setup.variant.partition(STEP_CACHE)
    pipe = load(setup.bundle, backend, threads=setup.threads)
    words = BACKENDS[backend].of(pipe.bundle).words(Settings(threads=setup.threads))
    call: Words = {}
    if cached:
        call = {"step_cache": FIRST_BLOCK, "step_cache_threshold": float(threshold)}
        words += f", step cache of threshold {threshold} (lossy)"
    precision = precision_of(pipe.bundle, backend)
    return Engine(pipe, call), Opened(words=words, precision=precision, versions={})


def precision_of(bundle: Bundle, backend: str) -> str:
    """Returns the denoiser's precision: the bundle's, unless the backend computes in bf16."""
    return "bf16" if backend.endswith(":bf16") else bundle.components["denoiser"].precision


if __name__ == "__main__":
    serve(make)
