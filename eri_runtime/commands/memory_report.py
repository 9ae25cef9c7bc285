"""The peak memory of requests, for each engine and memory mode, for `eri inspect --memory`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from eri_runtime.bundle import DENOISER, Bundle
from eri_runtime.executors import BACKENDS, Settings, refusals
from eri_runtime.latents import VaeMode, check_count, check_size
from eri_runtime.memory import (
    TILE,
    AvailableMemory,
    Estimate,
    Mode,
    available_memory,
    estimate_peak,
)
from eri_runtime.units import megabytes

UNKNOWN = "the bundle does not say; export it again to know"


def modes(bundle: Bundle, backend: str, height: int, width: int) -> Mapping[str, Mode]:
    """Returns the memory modes of a backend for images of this size, smallest memory last."""
    offloaded = Mode(offloaded=True, rows=1)
    choices = {"plain": Mode()}
    if backend == "cpu":
        choices["low memory"] = Mode(low_memory=True)
    choices |= {"offloaded": Mode(offloaded=True), "offloaded, a row at a time": offloaded}
    smallest = offloaded.with_changes(vae=VaeMode(images=1))
    if max(height, width) > TILE:
        smallest = offloaded.with_changes(vae=VaeMode(images=1, tile=TILE))
        choices["offloaded, VAE in tiles"] = smallest
    if bundle.components[DENOISER].segments and backend in ("cpu", "openvino", "openvino:bf16"):
        choices["streamed"] = smallest.with_changes(streamed=True)
    return choices


def describe_memory(
    bundle: Bundle, height: int, width: int, images: int, left: AvailableMemory | None = None
) -> Iterator[str]:
    """Yields lines: the estimated peak memory of a request for each backend, and the memory left.

    Lists only backends that can run here. `left` is the memory that this process may still use;
    default: measured.

    Raises `SizeError` for a size or number of images that the bundle does not support.
    """
    check_size(bundle, height, width)
    check_count(bundle, images)
    left = left or available_memory()
    count = f"{images} image{'s' * (images > 1)}"
    yield f"memory at peak for {count} of {width}x{height}, with CFG, without the process itself"
    if not all(spec.activations for spec in bundle.components.values()):
        yield f"  {UNKNOWN}"
        yield _describe_left(left)
        return
    larger = []
    for backend in BACKENDS:
        if refusals(bundle, backend):
            continue
        for name, mode in modes(bundle, backend, height, width).items():
            estimate = estimate_peak(bundle, backend, Settings(), mode, height, width, images)
            yield f"  {backend:13} {name:26} {_describe_estimate(estimate)}"
            if left is not None and (estimate.peak or 0) > left.bytes:
                larger.append(f"{backend} {name}")
    verdict = f"; {_describe_fit(larger)}" if left is not None else ""
    yield f"{_describe_left(left)}{verdict}"


def _describe_estimate(estimate: Estimate) -> str:
    """Returns the peak in MB and the component that reaches it."""
    note = "" if estimate.measured else ", not measured"
    return f"{megabytes(estimate.peak or 0):>12}, in {estimate.at}{note}"


def _describe_left(left: AvailableMemory | None) -> str:
    """Returns the memory left, and what limits it."""
    if left is None:
        return "how much memory is left cannot be read here"
    return f"left now: {megabytes(left.bytes)} ({left.limit})"


def _describe_fit(larger: list[str]) -> str:
    """Returns which backends and modes need more memory than is left."""
    return f"too little for {'; '.join(larger)}" if larger else "enough for all of them"
