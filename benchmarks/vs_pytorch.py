"""Each family at more than 100 million parameters beside PyTorch, and how far the goals are met.

    python -m benchmarks.vs_pytorch build/vs [--families sdxl sd35 flux] [--rounds 8]

Makes a checkpoint of random weights in the family's layout, with text encoders and a VAE of a
middling size, exports it, and runs `eri bench` on it; what is there already is not made again. The
results go to benchmarks/results/vs_pytorch-FAMILY.json and .html, each with the command that
repeats it. Latencies are a real model's of that size; pictures are of random weights, and only say
how far apart two engines are.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.checkpoints import Config, make_checkpoint
from benchmarks.layouts import unet, vae
from eri_runtime.bench.record import Record, read
from eri_runtime.bench.statistics import STEP, WHOLE
from eri_runtime.bench.summary import COLD, QUIET, Best, bests
from eri_runtime.bench.table import ratio_text

RESULTS = Path("benchmarks/results")  # from the root, so that the command kept in it is anybody's
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
PICTURES = 64  # pixels of those that are kept: noise, which no PNG makes smaller
SIZES = {"sdxl": 512, "sd35": 256, "flux": 512}  # pixels a side; a step of PyTorch takes about 1 s
WAYS = {  # only a UNet has convolutions whose layout matters
    "sdxl": ("eager", "channels-last", "bf16", "compile", "compile+bf16"),
    "sd35": ("eager", "bf16", "compile", "compile+bf16"),
    "flux": ("eager", "bf16", "compile", "compile+bf16"),
}
GOALS: Mapping[tuple[str, str], float] = {
    (STEP, "PyTorch eager, fp32"): 0.5,
    (WHOLE, "PyTorch eager, fp32"): 0.5,
    (STEP, "the best PyTorch, fp32"): 0.9,
    (WHOLE, "the best PyTorch, fp32"): 0.9,
    (STEP, "the best PyTorch, bf16"): 0.9,
    (WHOLE, "the best PyTorch, bf16"): 0.9,
    (COLD, "diffusers, eager fp32"): 0.25,
}


def main() -> None:
    """Make, export, bench and judge each family."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path)
    add("--families", nargs="+", choices=list(PARTS), default=list(PARTS))
    add("--torch", nargs="*", metavar="WAY", help="those of the family that matter, if left")
    add("--backends", nargs="*", metavar="NAME", help="all that can run here, if left")
    add("--steps", type=int, default=3)
    add("--rounds", type=int, default=8)
    add("--cold", type=int, default=2)
    add("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args()
    for family in options.families:
        begun = time.perf_counter()
        record = measured(family, options)
        for line in verdicts(record):
            sys.stdout.write(f"{family}: {line}\n")
        sys.stdout.write(f"{family}: {time.perf_counter() - begun:.0f} s in all\n")
        sys.stdout.flush()


def measured(family: str, options: argparse.Namespace) -> Record:
    """The results of one family."""
    checkpoint, bundle = made(family, options.folder)
    settle()
    file = options.results / f"vs_pytorch-{family}.json"
    backends = [] if options.backends is None else ["--backends", *options.backends]
    words = {
        "against": checkpoint,
        "steps": options.steps,
        "rounds": options.rounds,
        "cold": options.cold,
        "pictures": PICTURES,
        "output": file,
        "report": file.with_suffix(".html"),
        "sizes": f"{SIZES[family]}x{SIZES[family]}",
        "prompt": "a photograph of a small green house under a yellow sun",
    }
    named = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
    command = ["-m", "eri_runtime.cli", "bench", str(bundle), *named, *backends]
    command += ["--torch", *(WAYS[family] if options.torch is None else options.torch)]
    subprocess.run([sys.executable, *command], check=True)  # noqa: S603 -- our own module
    return read(file)


def made(family: str, folder: Path) -> tuple[Path, Path]:
    """The checkpoint and its bundle."""
    checkpoint, bundle = folder / f"{family}-checkpoint", folder / family
    if not (bundle / "manifest.json").is_file():
        from eri_export import export
        from eri_export.ranges import make_ranges

        make_checkpoint(family, checkpoint, PARTS[family])
        size = SIZES[family]
        export(checkpoint, bundle, ranges=make_ranges(size=f"{size // 2}:{size}:{size}"))
    return checkpoint, bundle


def settle(seconds: float = 300) -> None:
    """Wait until what was run before has left the load average, or for so long."""
    end = time.monotonic() + seconds
    while os.getloadavg()[0] > QUIET / 2 * (os.cpu_count() or 1) and time.monotonic() < end:
        time.sleep(5)


def verdicts(record: Record) -> Iterator[str]:
    """A line for each goal, and for each row that does not count."""
    found = {(each.figure, each.claim): each for each in bests(record)}
    for (figure, claim), goal in GOALS.items():
        best = found.get((figure, claim))
        if best is None:
            yield f"{figure}, {claim}: no pair to compare"
        else:
            yield f"{figure}, {claim}: {judged(best, goal)}"
    for row in record.rows:
        if not row.counts:
            yield f"{row.subject} does not count: {row.reason}"


def judged(best: Best, goal: float) -> str:
    """A ratio beside its goal."""
    met = "met" if best.ratio.median <= goal else "MISSED"
    return f"{best.ours} {ratio_text(best.ratio)} of {best.theirs}, goal {goal}: {met}"


if __name__ == "__main__":
    main()
