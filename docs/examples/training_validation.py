"""Validation while training: teaches the denoiser another rocket, and draws it every ten steps.

Needs torch and diffusers: `make demo` has installed both.
"""

import torch
from diffusers import SD3Transformer2DModel

import eri_runtime as eri

CHECKPOINT = "eri_export/embedded/emoji-sd35"
STEPS, EVERY, BATCH = 20, 10, 4

torch.manual_seed(0)
model = SD3Transformer2DModel.from_pretrained(f"{CHECKPOINT}/transformer", dtype=torch.float32)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)

with eri.load("engines/demo") as pipe:
    side = {"height": pipe.bundle.defaults.height, "width": pipe.bundle.defaults.width}
    config = eri.SamplingConfig(20, 4.0, seed=0, output_dir="out/examples/training", **side)

    # the lesson: "a rocket" looks like this heart
    heart = pipe("a red heart", guidance_scale=4.0, seed=0, output_type="latent").latents
    target = torch.from_numpy(heart).expand(BATCH, -1, -1, -1)
    text = pipe.encode_prompt("a rocket")
    embeds = torch.from_numpy(text.embeds).expand(BATCH, -1, -1)
    pooled = torch.from_numpy(text.pooled).expand(BATCH, -1)

    for step in range(STEPS + 1):
        if step % EVERY == 0:
            pipe.update_weights(model.state_dict())
            (path,) = eri.generate_validation_samples(pipe, ["a rocket"], config, step)
            print(f"step {step}: {path}")

        # flow matching: x = (1 - s) data + s noise, and the network predicts noise - data
        noise, level = torch.randn_like(target), torch.rand(BATCH, 1, 1, 1)
        predicted = model(
            hidden_states=(1 - level) * target + level * noise,
            timestep=1000 * level.flatten(),
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
        ).sample
        loss = (predicted - (noise - target)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
