"""Compares each family with PyTorch at more than 100 million parameters, and checks the goals.

    python -m benchmarks.vs_pytorch build/vs [--families sdxl sd35 flux] [--rounds 8]

Makes a checkpoint with random weights in the family's layout, with text encoders and a VAE of
moderate size, exports it and runs `eri bench` on it. Existing checkpoints and bundles are reused.
Writes benchmarks/results/vs_pytorch-FAMILY.json and .html, each with the command that repeats it.
Latencies are those of a real model of that size; pictures come from random weights and only show
how much two engines differ.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.checkpoints import Config, make_checkpoint
from benchmarks.layouts import unet, vae
from eri_runtime.bench.record import Record, read
from eri_runtime.bench.statistics import STEP, WHOLE
from eri_runtime.bench.summary import COLD, QUIET, Best, best_comparisons
from eri_runtime.bench.table import ratio_text

RESULTS = Path("benchmarks/results")  # relative, so the recorded command works in any clone
CLIP = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
}
T5 = {"d_model": 1024, "d_kv": 64, "d_ff": 2048, "num_layers": 8, "num_heads": 16}
VAE = vae(64)
UNET = unet(128, (1, 1, 2)) | {
    "cross_attention_dim": 1024,
    "projection_class_embeddings_input_dim": 6 * 8 + 512,
}
MMDIT = {
    "num_layers": 10,
    "num_attention_heads": 10,
    "attention_head_dim": 64,
    "caption_projection_dim": 640,
    "joint_attention_dim": 1024,
    "pooled_projection_dim": 1024,
    "dual_attention_layers": (0, 1, 2),
    "pos_embed_max_size": 64,
}
FLUX = {
    "num_layers": 4,
    "num_single_layers": 8,
    "num_attention_heads": 10,
    "attention_head_dim": 64,
    "joint_attention_dim": 1024,
    "pooled_projection_dim": 512,
    "axes_dims_rope": (16, 24, 24),
}
TEXTS = {"text_encoder": CLIP, "text_encoder_2": CLIP}
PARTS: Mapping[str, Mapping[str, Config]] = {
    "sdxl": {**TEXTS, "unet": UNET, "vae": VAE},
    "sd35": {**TEXTS, "text_encoder_3": T5, "transformer": MMDIT, "vae": VAE},
    "flux": {"text_encoder": CLIP, "text_encoder_2": T5, "transformer": FLUX, "vae": VAE},
}
PICTURES = 64  # pixels of recorded pictures, which are noise that PNG cannot compress
SIZES = {"sdxl": 512, "sd35": 256, "flux": 512}  # pixels per side; PyTorch takes about 1 s per step
WAYS = {  # only a UNet has convolutions whose layout matters
    "sdxl": ("eager", "channels-last", "bf16", "compile", "compile+bf16"),
    "sd35": ("eager", "bf16", "compile", "compile+bf16"),
    "flux": ("eager", "bf16", "compile", "compile+bf16"),
}
PROMPT = "a photograph of a small green house under a yellow sun"
MIXED = "mixed precision: bf16 against fp32"
GOALS: Mapping[tuple[str, str, str], float] = {
    (STEP, "PyTorch eager", MIXED): 0.5,
    (WHOLE, "PyTorch eager", MIXED): 0.5,
    (STEP, "the best PyTorch", "both fp32"): 0.9,
    (WHOLE, "the best PyTorch", "both fp32"): 0.9,
    (STEP, "the best PyTorch", "both bf16"): 0.9,
    (WHOLE, "the best PyTorch", "both bf16"): 0.9,
    (COLD, "PyTorch eager", MIXED): 0.25,
}


def main() -> None:
    """Makes, exports and benchmarks each family, and compares it with the goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path)
    add("--families", nargs="+", choices=list(PARTS), default=list(PARTS))
    add("--torch", nargs="*", metavar="WAY", help="default: those that matter for the family")
    add("--backends", nargs="*", metavar="NAME", help="default: all that can run here")
    add("--steps", type=int, default=3)
    add("--rounds", type=int, default=8)
    add("--cold", type=int, default=2)
    add("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args()
    for family in options.families:
        started = time.perf_counter()
        record = measured(family, options)
        for line in verdicts(record):
            sys.stdout.write(f"{family}: {line}\n")
        sys.stdout.write(f"{family}: {time.perf_counter() - started:.0f} s in all\n")
        sys.stdout.flush()


def measured(family: str, options: argparse.Namespace) -> Record:
    """Runs `eri bench` on one family and returns its record."""
    words = ["--torch", *(WAYS[family] if options.torch is None else options.torch)]
    if options.backends is not None:
        words += ["--backends", *options.backends]
    return bench(family, options, f"vs_pytorch-{family}", words)


def bench(family: str, options: argparse.Namespace, name: str, words: Sequence[str]) -> Record:
    """Runs `eri bench` with some more words on one family, on a machine that has become quiet."""
    checkpoint, bundle = make(family, options.folder)
    settle()
    file = options.results / f"{name}.json"
    values = {
        "against": checkpoint,
        "steps": options.steps,
        "rounds": options.rounds,
        "cold": options.cold,
        "pictures": PICTURES,
        "output": file,
        "report": file.with_suffix(".html"),
        "sizes": f"{SIZES[family]}x{SIZES[family]}",
        "prompt": PROMPT,
    }
    flags = [str(word) for name, value in values.items() for word in (f"--{name}", value)]
    command = ["-m", "eri_runtime", "bench", str(bundle), *flags, *words]
    subprocess.run([sys.executable, *command], check=True)  # noqa: S603 -- our own module
    return read(file)


def make(family: str, folder: Path) -> tuple[Path, Path]:
    """Makes the checkpoint and its bundle, unless they exist; returns their folders."""
    checkpoint, bundle = folder / f"{family}-checkpoint", folder / family
    if not (bundle / "manifest.json").is_file():
        from eri_export import export
        from eri_export.choices.ranges import make_ranges

        make_checkpoint(family, checkpoint, PARTS[family])
        size = SIZES[family]
        export(checkpoint, bundle, ranges=make_ranges(size=f"{size // 2}:{size}:{size}"))
    return checkpoint, bundle


def settle(seconds: float = 300) -> None:
    """Waits until the load average has dropped after earlier work, at most so many seconds."""
    end = time.monotonic() + seconds
    while os.getloadavg()[0] > QUIET / 2 * (os.cpu_count() or 1) and time.monotonic() < end:
        time.sleep(5)


def verdicts(record: Record) -> Iterator[str]:
    """Yields a line for each goal, and for each row that does not count."""
    found = {(each.figure, each.claim, each.label): each for each in best_comparisons(record)}
    for named, goal in GOALS.items():
        best = found.get(named)
        result = "no pair to compare" if best is None else verdict(best, goal)
        yield f"{', '.join(named)}: {result}"
    for row in record.rows:
        if not row.counts:
            yield f"{row.subject} does not count: {row.reason}"


def verdict(best: Best, goal: float) -> str:
    """Returns a ratio and whether it meets its goal."""
    met = "met" if best.ratio.median <= goal else "MISSED"
    return f"{best.ours} {ratio_text(best.ratio)} of {best.theirs}, goal {goal}: {met}"


if __name__ == "__main__":
    main()
