"""The size and the stages of a request, known before its prompts are encoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from eri_runtime.bundle import DENOISER, Bundle
from eri_runtime.latents import DECODER
from eri_runtime.loop import identity
from eri_runtime.memory.fallbacks import RequestSize
from eri_runtime.memory.modes import Mode
from eri_runtime.memory.stages import Stage, stages
from eri_runtime.request import Request


def request_size(request: Request) -> RequestSize:
    """Returns the size of a request.

    Args:
        request: A checked request.

    Returns:
        Its images, the rows its denoiser computes (images times conditions) and its sides.
    """
    texts = max(len(prompt.parts) for prompt in request.prompts)
    conditions = texts + bool((request.guidance.scale > 1).any())
    return RequestSize(
        images=request.batch,
        rows=request.batch * conditions,
        height=request.height,
        width=request.width,
    )


def request_stages(bundle: Bundle, request: Request, mode: Mode) -> tuple[Stage, ...]:
    """Returns the stages of a request in order, with the sizes of their inputs."""
    size = request_size(request)
    return stages(
        bundle,
        mode,
        request.height,
        request.width,
        request.batch,
        size.rows // size.images,
        request.max_sequence_length,
        edited=request.edit is not None and request.edit.encodes,
    )


def stages_after_text(stages: Iterable[Stage], request: Request) -> Iterator[Stage]:
    """Yields the stages that run after the text encoders, and can be opened while those run."""
    decodes = request.output_type != "latent"
    for stage in stages:
        if stage.component == DENOISER:
            yield replace(stage, sizes=_with_embedding_length(stage, request))
        elif stage.component == DECODER and decodes:
            yield stage


def may_use_step_graph(bundle: Bundle, request: Request) -> bool:
    """Returns whether a step graph could run a request; `loop.LoopChoice` decides."""
    plain = request.hook is identity and request.guidance.rescale == 0
    unmasked = request.edit is None or request.edit.mask is None
    rows = bundle.components[DENOISER].ranges["batch"]
    return plain and unmasked and request_size(request).rows <= rows.max


def _with_embedding_length(stage: Stage, request: Request) -> dict[str, int]:
    """Returns a stage's sizes, with the token count of the caller's embeddings if there are any."""
    if request.positive is None or "tokens" not in stage.sizes:
        return dict(stage.sizes)
    return {**stage.sizes, "tokens": request.positive.embeds.shape[1]}
