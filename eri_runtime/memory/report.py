"""What requests of a bundle take here, engine by engine and mode by mode, for `eri inspect`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from eri_runtime.executors import BACKENDS, refusals
from eri_runtime.executors.base import Settings
from eri_runtime.inspection import megabytes
from eri_runtime.limits import check_count, check_size
from eri_runtime.memory.estimate import Estimate, peak
from eri_runtime.memory.left import Left, memory_left
from eri_runtime.memory.mode import TILE, Mode
from eri_runtime.memory.sizes import DENOISER
from eri_runtime.spec import Bundle
from eri_runtime.vae import VaeMode

UNKNOWN = "the bundle does not say; export it again to know"


def modes(bundle: Bundle, backend: str, height: int, width: int) -> Mapping[str, Mode]:
    """The modes in which a backend can run a bundle for pictures of this size, thriftiest last."""
    offloaded = Mode(offloaded=True, rows=1)
    made = {"plain": Mode()}
    if backend == "cpu":
        made["low memory"] = Mode(low_memory=True)
    made |= {"offloaded": Mode(offloaded=True), "offloaded, a row at a time": offloaded}
    thrifty = offloaded.but(vae=VaeMode(images=1))
    if max(height, width) > TILE:
        thrifty = offloaded.but(vae=VaeMode(images=1, tile=TILE))
        made["offloaded, VAE in tiles"] = thrifty
    if bundle.components[DENOISER].segments and backend in ("cpu", "openvino", "openvino:bf16"):
        made["streamed"] = thrifty.but(streamed=True)
    return made


def describe_memory(
    bundle: Bundle, height: int, width: int, images: int, left: Left | None = None
) -> Iterator[str]:
    """Lines: what a request takes at peak, of every backend that can run here, and what is left.

    `left` is what this process may still take, found out if None. Raises `SizeError` for what the
    bundle was not exported for.
    """
    check_size(bundle, height, width)
    check_count(bundle, images)
    left = left or memory_left()
    many = f"{images} image{'s' * (images > 1)}"
    yield f"memory at peak for {many} of {width}x{height}, guided, beside the process itself"
    if not all(spec.activations for spec in bundle.components.values()):
        yield f"  {UNKNOWN}"
        yield _left(left)
        return
    larger = []
    for backend in BACKENDS:
        if refusals(bundle, backend):
            continue
        for name, mode in modes(bundle, backend, height, width).items():
            found = peak(bundle, backend, Settings(), mode, height, width, images)
            yield f"  {backend:13} {name:26} {_words(found)}"
            if left is not None and (found.peak or 0) > left.bytes:
                larger.append(f"{backend} {name}")
    yield f"{_left(left)}; {_fitting(larger)}" if left is not None else _left(left)


def _words(found: Estimate) -> str:
    sure = "" if found.measured else ", not measured"
    return f"{megabytes(found.peak or 0):>12}, in {found.at}{sure}"


def _left(left: Left | None) -> str:
    if left is None:
        return "how much memory is left cannot be read here"
    return f"left now: {megabytes(left.bytes)} ({left.limit})"


def _fitting(larger: list[str]) -> str:
    return f"too little for {'; '.join(larger)}" if larger else "enough for all of them"
