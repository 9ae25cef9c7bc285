"""Which backend `--backend auto` stands for when a command makes one picture."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, cast

from eri_runtime.commands.threads_option import AUTO
from eri_runtime.errors import EriError

if TYPE_CHECKING:
    from eri_runtime.bundle import Bundle
    from eri_runtime.request import Words

# what changes the sizes of a request; the rest of a call does not matter to the choice
SIZES = {
    "num_inference_steps": "steps",
    "num_images_per_prompt": "batch",
    "guidance_scale": "guidance",
    "true_cfg_scale": "true_cfg",
}


def backend_of(options: argparse.Namespace) -> str:
    """Returns the backend for the one picture of these options.

    With options that change how weights lie in memory, `auto` stands for what it does elsewhere.
    """
    in_parts = options.low_memory or options.offload or options.sequential_offload
    if options.backend != "auto" or in_parts:
        return str(options.backend)
    from eri_runtime.bundle import manifest
    from eri_runtime.executors import Settings
    from eri_runtime.executors.one_picture import backend_for_one_picture

    bundle = manifest.read(options.bundle)
    try:
        components, steps = _work(bundle, options)
    except EriError:  # raised again, in the words of the call, once the bundle is open
        return "auto"
    changed = bool(options.lora or options.textual_inversion)
    threads = None if options.threads == AUTO else options.threads
    settings = Settings(threads=threads, cache=options.keep_compiled and not changed)
    return backend_for_one_picture(bundle, components, steps, settings)


def _work(bundle: Bundle, options: argparse.Namespace) -> tuple[dict[str, dict[str, int]], int]:
    """Returns the sizes of the components that the picture takes, and its steps."""
    from eri_runtime.memory import Mode
    from eri_runtime.memory.request_stages import request_stages
    from eri_runtime.request import make_request

    width, height = options.size or (None, None)
    given = {name: getattr(options, option) for name, option in SIZES.items()}
    words = cast("Words", given | {"width": width, "height": height, "seed": 0})
    request = make_request(bundle, options.prompt, options.negative, words)
    stages = request_stages(bundle, request, Mode())
    return {stage.component: dict(stage.sizes) for stage in stages}, request.steps
