"""One LoRA after another on one pipeline: the bits of a pipeline that never had another."""

from __future__ import annotations

import numpy as np
import pytest

import eri_runtime as eri
from tests.support.loras import base_weights, dotted, low_rank, modules

WORDS = {"height": 32, "width": 32, "num_inference_steps": 1, "seed": 3, "output_type": "latent"}
PREFIXES = {"sdxl": "unet.", "sd35": "transformer.", "flux": "transformer."}
SCALES = (("first", 1.0), ("second", 1.0), ("first", 1.0), ("first", 0.5))


def lora(checkpoint, family, seed):
    base = modules(base_weights(checkpoint)["denoiser"], "to_q", "to_k", "to_v", "to_out.0")
    factors = low_rank(base, dotted(PREFIXES[family]), seed=seed)
    return {name: np.float32(0.1) * values for name, values in factors.items()}


def drawn(pipe):
    return pipe("a red heart", **WORDS).latents.tobytes()


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
@pytest.mark.parametrize("family", PREFIXES)
def test_a_swap_is_as_if_the_pipeline_were_new(request, family, backend):
    bundle = request.getfixturevalue(f"{family}_bundle")
    checkpoint = request.getfixturevalue(f"{family}_checkpoint")
    loras = {name: lora(checkpoint, family, i) for i, name in enumerate(("first", "second"))}
    swapped = []
    with eri.load(bundle, backend, threads=1) as pipe:
        plain = drawn(pipe)
        for name, each in loras.items():
            pipe.load_lora(each, 0, name=name)
        for name, scale in SCALES:
            pipe.set_loras({name: scale})
            swapped.append(drawn(pipe))
        pipe.unload_loras()
        assert drawn(pipe) == plain
    assert swapped[0] == swapped[2]
    assert len({plain, *swapped}) == 4
    for found, (name, scale) in zip(swapped[1:], SCALES[1:], strict=True):
        with eri.load(bundle, backend, threads=1) as fresh:
            fresh.load_lora(loras[name], scale, name=name)
            assert drawn(fresh) == found
