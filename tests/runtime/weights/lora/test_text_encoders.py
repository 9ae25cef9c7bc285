"""Every text encoder by every name trainers have for it; diffusers itself knows no LoRA of T5."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.loras import base_weights, dotted, kohya, low_rank, modules, ours, touched

COMFY = "text_encoders.{}.transformer."
PLACES = {
    "sdxl": {
        "text_encoder": (
            "lora_te_",
            "lora_te1_",
            "text_encoder.",
            COMFY.format("clip_l"),
            "clip_l.",
        ),
        "text_encoder_2": ("lora_te2_", "text_encoder_2.", COMFY.format("clip_g"), "clip_g."),
    },
    "sd35": {
        "text_encoder": ("lora_te1_", "text_encoder.", COMFY.format("clip_l"), "clip_l."),
        "text_encoder_2": ("lora_te2_", "text_encoder_2.", COMFY.format("clip_g"), "clip_g."),
        "text_encoder_3": ("lora_te3_", "text_encoder_3.", COMFY.format("t5xxl"), "t5."),
    },
    "flux": {
        "text_encoder": ("lora_te1_", "text_encoder.", COMFY.format("clip_l"), "clip_l."),
        "text_encoder_2": (
            "lora_te2_",
            "lora_te3_",
            "text_encoder_2.",
            COMFY.format("t5xxl"),
            "t5.",
        ),
    },
}
EVERY = [
    (family, component, prefix)
    for family, components in PLACES.items()
    for component, prefixes in components.items()
    for prefix in prefixes
]


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize(("family", "component", "prefix"), EVERY)
def test_a_text_encoder_by_name(request, family, component, prefix, wrapped):
    """With and without the `text_model.` that CLIP's names begin with or do not."""
    checkpoint = request.getfixturevalue(f"{family}_checkpoint")
    base = base_weights(checkpoint)[component]
    is_clip = any("self_attn" in name for name in base)
    naming = kohya(prefix) if prefix.startswith("lora_") else dotted(prefix)

    def name(module):
        bare = module.removeprefix("text_model.")
        wrap = wrapped and is_clip and not bare.startswith("text_projection")
        return naming(f"text_model.{bare}" if wrap else bare)

    # all but the tables of embeddings
    shapes = modules(base, "_proj", "fc1", "fc2", ".q", ".k", ".v", ".o", "wi_0", "wi_1", "wo")
    lora = low_rank(shapes, name)
    merged = ours(checkpoint, family, lora, 0.5)
    changed = {part: names for part, names in touched(merged, checkpoint).items() if names}
    assert changed == {component: {f"{module}.weight" for module in shapes}}
    for module in shapes:
        down, up = (lora[f"{name(module)}.lora_{half}.weight"] for half in "AB")
        expected = base[f"{module}.weight"] + 0.5 * up @ down
        found = merged[component][f"{module}.weight"]
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max(), module
    assert len(shapes) >= 14
