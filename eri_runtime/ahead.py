"""What a request will run, known before its prompts are encoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from eri_runtime.denoise import unchanged
from eri_runtime.live import DENOISER
from eri_runtime.memory.backoff import Load
from eri_runtime.memory.mode import Mode
from eri_runtime.memory.sizes import Stage, stages
from eri_runtime.request import Request
from eri_runtime.spec import Bundle
from eri_runtime.vae import DECODER


def load_of(request: Request) -> Load:
    """How large a request is."""
    texts = max(len(prompt.parts) for prompt in request.prompts)
    conditions = texts + bool((request.guidance.scale > 1).any())
    return Load(
        images=request.batch,
        rows=request.batch * conditions,
        height=request.height,
        width=request.width,
    )


def planned(bundle: Bundle, request: Request, mode: Mode) -> tuple[Stage, ...]:
    """The stages of a request, and the sizes of their inputs, in their order."""
    load = load_of(request)
    return stages(
        bundle,
        mode,
        request.height,
        request.width,
        request.batch,
        load.rows // load.images,
        request.max_sequence_length,
        edited=request.edit is not None,
    )


def after_texts(stages: Iterable[Stage], request: Request) -> Iterator[Stage]:
    """Those of a request's that wait for the text encoders, and so can be opened beside them."""
    decoded = request.output_type != "latent"
    for stage in stages:
        if stage.component == DENOISER:
            yield replace(stage, sizes=_with_given_texts(stage, request))
        elif stage.component == DECODER and decoded:
            yield stage


def may_step(bundle: Bundle, request: Request) -> bool:
    """Whether a step graph, if there is one, can be what runs a request; `Loops` has the word."""
    plain = request.hook is unchanged and request.guidance.rescale == 0
    unmasked = request.edit is None or request.edit.mask is None
    rows = bundle.components[DENOISER].ranges["batch"]
    return plain and unmasked and load_of(request).rows <= rows.max


def _with_given_texts(stage: Stage, request: Request) -> dict[str, int]:
    """Embeddings that the caller brought have as many tokens as they have."""
    if request.positive is None or "tokens" not in stage.sizes:
        return dict(stage.sizes)
    return {**stage.sizes, "tokens": request.positive.embeds.shape[1]}
