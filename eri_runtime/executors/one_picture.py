"""Chooses an engine for a process that makes one picture: opening is weighed against running.

A command that draws one picture opens an engine for it. OpenVINO runs faster than ONNX Runtime, but
what it has to compile takes longer to open. The costs below were fitted to five bundles, of 3 to
156 million parameters, on two cores with AVX-512. They are seconds of CPU time there, of which only
the ratios matter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from eri_runtime.bundle import DENOISER, Bundle
from eri_runtime.executors.base import Settings
from eri_runtime.executors.choice import first_usable, refusals
from eri_runtime.executors.openvino.backend import OPENVINO

log = logging.getLogger(__name__)

DECODER = "vae_decoder"
FLOPS = 150e9  # a second
STEP_SAVED = 0.08  # of a step on ONNX Runtime
VAE_SAVED = 0.15  # of a decoding there
VAE_FLOPS = 0.3  # per parameter and pixel
MEGABYTE, GIGABYTE = 1e6, 1e9

Sizes = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Opening:
    """What OpenVINO's opening takes more than ONNX Runtime's, in seconds.

    Attributes:
        once: For the library.
        graph: For each megabyte of graphs.
        weights: For each gigabyte of weights.
    """

    once: float
    graph: float
    weights: float

    def seconds(self, bundle: Bundle, components: Sizes) -> float:
        """Returns what it takes more for these components of a bundle."""
        specs = [bundle.components[name] for name in components]
        graphs = sum(bundle.files[spec.graph].size for spec in specs)
        weights = sum(bundle.files[spec.weights].size for spec in specs)
        return self.once + self.graph * graphs / MEGABYTE + self.weights * weights / GIGABYTE


COMPILED = Opening(0.25, 3.8, -0.3)
KEPT = Opening(0.25, 0.4, -0.5)


def backend_for_one_picture(
    bundle: Bundle, components: Sizes, steps: int, settings: Settings
) -> str:
    """Returns the backend that `auto` stands for in a process that makes one picture.

    That is ONNX Runtime's instead of OpenVINO's if it should finish first, and else the one that
    `choose` takes. Logs which, and why.

    Args:
        bundle: The bundle to run.
        components: The components that the picture takes, with the sizes of their dimensions.
        steps: Number of denoising steps.
        settings: The engine's options.

    Raises:
        BackendError: If no backend can run the bundle on this machine.
    """
    name = first_usable(bundle)
    if name != "openvino" or refusals(bundle, "cpu"):
        log.info("backend %s is used", name)
        return name
    name, why = weigh(bundle, components, steps, lambda: _is_kept(bundle, components, settings))
    log.info("backend %s is used: %s", name, why)
    return name


def _is_kept(bundle: Bundle, components: Sizes, settings: Settings) -> bool:
    """Returns whether an earlier process kept what OpenVINO compiled of these components."""
    backend = OPENVINO.of(bundle)
    return all(
        backend.is_kept(bundle.path(bundle.components[name].graph), spec, settings, sizes)
        for name, sizes in components.items()
        if (spec := bundle.components[name]) and not name.startswith("text_encoder")
    )


def weigh(
    bundle: Bundle, components: Sizes, steps: int, is_kept: Callable[[], bool]
) -> tuple[str, str]:
    """Returns "openvino" or "cpu", whichever should finish first, and why in a few words.

    Args:
        bundle: A bundle that both engines run.
        components: The components that the picture takes, with the sizes of their dimensions.
        steps: Number of denoising steps.
        is_kept: Returns whether an earlier process kept what OpenVINO compiles. Called only if that
            decides.
    """
    saved = running_saved(bundle, components, steps)
    opening, words = COMPILED.seconds(bundle, components), "compiling"
    if KEPT.seconds(bundle, components) < saved <= opening and is_kept():
        opening, words = KEPT.seconds(bundle, components), "opening what is compiled"
    name, sign = ("openvino", "less") if opening < saved else ("cpu", "more")
    return name, (
        f"{words} for OpenVINO takes about {opening:.1f} s {sign}"
        f" than its {steps} steps and decoding save, {saved:.1f} s"
    )


def running_saved(bundle: Bundle, components: Sizes, steps: int) -> float:
    """Returns what OpenVINO saves while it runs the steps and the VAE, in seconds."""
    saved = STEP_SAVED * steps * _step_flops(bundle, components[DENOISER])
    if DECODER in components:
        sizes, spec = components[DECODER], bundle.components[DECODER]
        pixels = sizes["batch"] * sizes["height"] * sizes["width"] * bundle.latents.factor**2
        saved += VAE_SAVED * VAE_FLOPS * spec.parameters * pixels
    return saved / FLOPS


def _step_flops(bundle: Bundle, sizes: Mapping[str, int]) -> float:
    """Returns the operations of a step: two per parameter and position.

    A transformer has a position for 2x2 latents. A UNet computes in several resolutions, which is
    like a position for 8 latents.
    """
    latents = sizes.get("height", 0) * sizes.get("width", 0)
    positions = sizes.get("patches") or latents / (8 if bundle.family == "sdxl" else 4)
    return 2 * bundle.components[DENOISER].parameters * positions * sizes["batch"]
