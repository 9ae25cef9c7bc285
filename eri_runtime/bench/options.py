"""The options of `eri bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eri_runtime.parsing import parse_size

PROMPTS = ("a red heart", "a rocket")
THRESHOLD = 1.10
TORCH = ("eager", "channels-last", "bf16", "bf16-weights", "compile", "compile+bf16")

# option, and what argparse is told of it
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--against",
        {"type": Path, "metavar": "CHECKPOINT", "help": "a diffusers folder: the bundle's"},
    ),
    ("--backends", {"nargs": "*", "metavar": "NAME", "help": "all that can run here, if left"}),
    (
        "--torch",
        {
            "nargs": "*",
            "metavar": "WAY",
            "help": f"{' '.join(TORCH)}, if left; also others, with + between",
        },
    ),
    (
        "--peers",
        {"nargs": "*", "default": [], "metavar": "NAME", "help": "optimum-onnx, optimum-openvino"},
    ),
    (
        "--sizes",
        {"nargs": "+", "type": parse_size, "metavar": "WxH", "help": "the bundle's, if left"},
    ),
    ("--steps", {"type": int, "metavar": "N", "help": "denoising steps"}),
    (
        "--prompt",
        {
            "nargs": "+",
            "default": list(PROMPTS),
            "metavar": "TEXT",
            "help": "whose pictures are compared; the first is timed",
        },
    ),
    (
        "--seed",
        {
            "nargs": "+",
            "type": int,
            "default": [0],
            "metavar": "S",
            "help": "of each prompt's pictures",
        },
    ),
    ("--guidance", {"type": float, "metavar": "G"}),
    ("--batch", {"type": int, "default": 1, "metavar": "N", "help": "images of a call"}),
    (
        "--rounds",
        {"type": int, "default": 10, "metavar": "R", "help": "timed calls of each subject"},
    ),
    ("--warm", {"type": int, "default": 1, "metavar": "N", "help": "steps before each timed call"}),
    ("--cold", {"type": int, "default": 3, "metavar": "N", "help": "cold starts of each subject"}),
    (
        "--cold-steps",
        {"type": int, "default": 1, "metavar": "N", "help": "steps of a cold start's picture"},
    ),
    ("--threads", {"type": int, "metavar": "N", "help": "of every subject; all cores, if left"}),
    ("--device", {"choices": ["auto", "cpu", "cuda"], "default": "auto", "help": "PyTorch's"}),
    (
        "--timeout",
        {
            "type": float,
            "default": 900.0,
            "metavar": "S",
            "help": "seconds for one answer of a subject",
        },
    ),
    (
        "--pictures",
        {
            "type": int,
            "default": 128,
            "metavar": "PIXELS",
            "help": "side of kept pictures; 0 for none",
        },
    ),
    ("--time-export", {"action": "store_true", "help": "export the checkpoint anew, to time it"}),
    ("--output", {"type": Path, "metavar": "FILE.json"}),
    ("--report", {"type": Path, "metavar": "FILE.html"}),
    (
        "--render",
        {"type": Path, "metavar": "FILE.json", "help": "no run: the report of these results"},
    ),
    (
        "--compare",
        {
            "nargs": 2,
            "type": Path,
            "metavar": ("A.json", "B.json"),
            "help": "no run: what became slower; exit status 1 if anything did",
        },
    ),
    (
        "--threshold",
        {
            "type": float,
            "default": THRESHOLD,
            "metavar": "R",
            "help": "the ratio above which it did",
        },
    ),
)
