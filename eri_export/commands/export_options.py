"""The options of `eri export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eri_export.choices import ALIASES, COMPONENTS, GATES, USUAL_MEMORY

# options that are arguments of `eri_export.make_plan`
CHOSEN = (
    "precision",
    "lora_rank",
    "lora_partial",
    "attention_slice",
    "vae",
    "text_encoders",
    "config",
    "variant",
    "revision",
    "scheduler",
)

# names of an option -> its settings for argparse
OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (
        ("checkpoint",),
        {
            "metavar": "CHECKPOINT",
            "help": "diffusers folder, .safetensors file, or OWNER/NAME[:FILE] of the "
            "Hugging Face Hub, which is downloaded to its cache",
        },
    ),
    (
        ("-o", "--output"),
        {"metavar": "FOLDER", "type": Path, "help": "folder of the bundle (default: engines/NAME)"},
    ),
    (
        ("--precision",),
        {
            "metavar": "P[,COMPONENT=P]...",
            "default": "fp32",
            "help": "fp32, fp16 or bf16, with exceptions such as fp16,vae=fp32 (default: "
            "%(default)s); the components are " + ", ".join((*COMPONENTS, *ALIASES)),
        },
    ),
    (
        ("--size",),
        {
            "metavar": "WxH|MIN:OPT:MAX",
            "help": "image sizes to serve in pixels, such as 1024x1024 or 512:1024:2048 (default: "
            "up to twice the model's own size)",
        },
    ),
    (
        ("--batch",),
        {
            "metavar": "N|MIN:OPT:MAX",
            "help": "images per call, such as 1:1:4 (default: the family's usual ones)",
        },
    ),
    (
        ("--tokens",),
        {
            "metavar": "N|MIN:OPT:MAX",
            "help": "text tokens of T5 (SDXL: of its UNet), such as 77:256:512 (default: the "
            "family's usual ones)",
        },
    ),
    (
        ("--static",),
        {"action": "store_true", "help": "fix every size at its OPT, for the fastest engine"},
    ),
    (
        ("--lora",),
        {
            "action": "append",
            "default": [],
            "metavar": "LORA[:SCALE]",
            "help": "merge a LoRA into the weights permanently: a file, a folder, or "
            "OWNER/NAME[:FILE] of the Hub; may be repeated",
        },
    ),
    (
        ("--lora-partial",),
        {
            "action": "store_true",
            "help": "leave out the keys of a LoRA that match no weight, with a warning that names "
            "them",
        },
    ),
    (
        ("--lora-rank",),
        {
            "type": int,
            "metavar": "N",
            "help": "let the denoiser take LoRAs up to rank N as inputs, a different one per image "
            "if needed (default: none)",
        },
    ),
    (
        ("--attention-slice",),
        {
            "type": lambda text: int(text) if text.lstrip("-").isdigit() else text,
            "metavar": "N|auto|max",
            "help": "compute attention N heads at a time to save memory; auto: half of them, "
            "max: one (default: all)",
        },
    ),
    (
        ("--vae",),
        {
            "metavar": "PATH",
            "help": "file or folder of a VAE to add, or to use instead of the checkpoint's",
        },
    ),
    (
        ("--text-encoders",),
        {
            "metavar": "PATH",
            "nargs": "+",
            "default": [],
            "help": "files or folders of text encoders to add, or to use instead of the "
            "checkpoint's",
        },
    ),
    (
        ("--config",),
        {
            "metavar": "FOLDER",
            "type": Path,
            "help": "folder with configs and tokenizers for a single file (default: those of the "
            "published model nearest to it)",
        },
    ),
    (
        ("--scheduler",),
        {
            "metavar": "NAME|FILE",
            "help": "scheduler of a distilled model: turbo, lightning, hyper, lcm, tcd, or a "
            "scheduler_config.json or a folder with one (default: the checkpoint's)",
        },
    ),
    (
        ("--variant",),
        {
            "metavar": "NAME",
            "help": "variant of a folder's weights to read, such as fp16 (default: the plain ones)",
        },
    ),
    (
        ("--revision",),
        {"metavar": "REV", "help": "branch, tag or commit of the Hub's repository (default: main)"},
    ),
    (
        ("--gate",),
        {
            "metavar": "|".join(GATES),
            "default": GATES[0],
            "help": "compare every case of each component with PyTorch, or one of each, which "
            "`eri inspect` shows (default: %(default)s)",
        },
    ),
    (
        ("--gate-memory",),
        {
            "metavar": "SIZE",
            "default": USUAL_MEMORY,
            "help": "memory of the process while it compares, such as 8GB; networks that need more "
            "run a part at a time, at least one layer (default: %(default)s)",
        },
    ),
    (
        ("--force",),
        {"action": "store_true", "help": "replace a bundle that is there (default: refuse)"},
    ),
    (
        ("--dry-run",),
        {
            "action": "store_true",
            "help": "print what was found, what would be written and how long it would take; "
            "write nothing",
        },
    ),
)
