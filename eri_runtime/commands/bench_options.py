"""The options of `eri bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eri_runtime.commands.subcommand import parsed_by

PROMPTS = ("a red heart", "a rocket")
THRESHOLD = 1.10
TORCH_PARTS = ("eager", "channels-last", "bf16", "bf16-weights", "compile")
TORCH = ("eager", "channels-last", "bf16", "bf16-weights", "compile", "compile+bf16")

# each option and its arguments for argparse
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--against",
        {
            "type": Path,
            "metavar": "CHECKPOINT",
            "help": "the bundle's checkpoint, a diffusers folder, for PyTorch",
        },
    ),
    (
        "--backends",
        {
            "nargs": "*",
            "metavar": "NAME",
            "help": "engines to measure (default: all that can run here)",
        },
    ),
    (
        "--torch",
        {
            "nargs": "*",
            "metavar": "WAY",
            "help": f"ways to run PyTorch (default: {' '.join(TORCH)}); join others with +",
        },
    ),
    (
        "--peers",
        {
            "nargs": "*",
            "default": [],
            "metavar": "NAME",
            "help": "openvino-genai, optimum-intel (both also with +bf16), optimum-onnx "
            "(default: none)",
        },
    ),
    (
        "--peers-python",
        {
            "type": Path,
            "metavar": "FILE",
            "help": "python of the environment that has the peers; default: that of `make peers` "
            "in this folder, else the one that runs this",
        },
    ),
    (
        "--step-cache",
        {
            "nargs": "*",
            "type": float,
            "metavar": "T",
            "help": "measure each engine with step caching too, at these thresholds (without one: "
            "0.1), and how far its pictures are from the uncached ones",
        },
    ),
    (
        "--sizes",
        {
            "nargs": "+",
            "type": parsed_by("parse_size"),
            "metavar": "WxH",
            "help": "sizes of the pictures (default: the bundle's)",
        },
    ),
    ("--steps", {"type": int, "metavar": "N", "help": "denoising steps (default: the bundle's)"}),
    (
        "--prompt",
        {
            "nargs": "+",
            "default": list(PROMPTS),
            "metavar": "TEXT",
            "help": "prompts of the compared pictures; the first is timed (default: "
            f"{' and '.join(PROMPTS)})",
        },
    ),
    (
        "--seed",
        {
            "nargs": "+",
            "type": int,
            "default": [0],
            "metavar": "S",
            "help": "seeds of each prompt's pictures (default: 0)",
        },
    ),
    ("--guidance", {"type": float, "metavar": "G", "help": "CFG scale (default: the bundle's)"}),
    (
        "--batch",
        {
            "type": int,
            "default": 1,
            "metavar": "N",
            "help": "images per call (default: %(default)s)",
        },
    ),
    (
        "--rounds",
        {
            "type": int,
            "default": 10,
            "metavar": "R",
            "help": "timed calls of each subject (default: %(default)s)",
        },
    ),
    (
        "--warm",
        {
            "type": int,
            "default": 1,
            "metavar": "N",
            "help": "warm-up steps before each timed call (default: %(default)s)",
        },
    ),
    (
        "--cold",
        {
            "type": int,
            "default": 3,
            "metavar": "N",
            "help": "cold starts of each subject (default: %(default)s)",
        },
    ),
    (
        "--cold-steps",
        {
            "type": int,
            "default": 1,
            "metavar": "N",
            "help": "steps of a cold start's picture (default: %(default)s)",
        },
    ),
    (
        "--threads",
        {"type": int, "metavar": "N", "help": "CPU threads of every subject (default: all cores)"},
    ),
    (
        "--device",
        {
            "choices": ["auto", "cpu", "cuda"],
            "default": "auto",
            "help": "PyTorch's device (default: %(default)s)",
        },
    ),
    (
        "--timeout",
        {
            "type": float,
            "default": 900.0,
            "metavar": "S",
            "help": "seconds that a subject may take for one answer (default: %(default)s)",
        },
    ),
    (
        "--pictures",
        {
            "type": int,
            "default": 128,
            "metavar": "PIXELS",
            "help": "longer side of the pictures in the results; 0: none (default: %(default)s)",
        },
    ),
    ("--time-export", {"action": "store_true", "help": "export the checkpoint again, and time it"}),
    ("--output", {"type": Path, "metavar": "FILE.json", "help": "write the results"}),
    ("--force", {"action": "store_true", "help": "replace files that exist (default: refuse)"}),
    ("--report", {"type": Path, "metavar": "FILE.html", "help": "write a report"}),
    (
        "--render",
        {"type": Path, "metavar": "FILE.json", "help": "only write the report of these results"},
    ),
    (
        "--compare",
        {
            "nargs": 2,
            "type": Path,
            "metavar": ("A.json", "B.json"),
            "help": "only show what became slower; exit status 1 if anything did",
        },
    ),
    (
        "--threshold",
        {
            "type": float,
            "metavar": "R",
            "help": "with --compare, ratio of medians above which it reports a regression "
            f"(default: {THRESHOLD:.2f})",
        },
    ),
)
