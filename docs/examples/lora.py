"""A LoRA in an open pipeline: without it, at half its strength, at its full strength."""

import eri_runtime as eri

LORA = "eri_export/embedded/loras/emoji-sd35-blue-ink.safetensors"
call = {"num_inference_steps": 20, "guidance_scale": 4.0, "seed": 0}

with eri.load("engines/demo") as pipe:
    pipe("a red heart", **call).save("out/examples/lora-off.png")

    pipe.load_lora(LORA, 0.5)
    pipe("a red heart", **call).save("out/examples/lora-half.png")

    pipe.set_loras({LORA: 1.0})  # the same file at another scale
    pipe("a red heart", **call).save("out/examples/lora-on.png")

    pipe.unload_loras()  # the bundle's own weights again, to the bit
    pipe("a red heart", **call).save("out/examples/lora-off-again.png")
