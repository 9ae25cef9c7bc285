"""Measures the errors of a tiled VAE decode, and the memory that tiling saves.

    eri demo && python -m benchmarks.vae_tiling engines/demo

`seams`: the embedded checkpoint's VAE, which is trained, encodes emoji on canvases of 480 x 480 and
decodes them whole and in tiles; errors of the tiled picture are in levels of 255. `diffusers` is
`AutoencoderKL.enable_tiling` with the same weights, latents and tile, compared with the same whole.
The other parts decode 2048 x 2048, each in a process limited to `limit` GB of address space.
`trained` is the same VAE; its error is against PyTorch's whole decode, which never holds the full
attention matrix. `sdxl` and `sdxl_1024` use SDXL's VAE at its real size with random weights: only
`computed` of the tiles are computed and stand for the others, which take the same memory; seconds
are extrapolated to all tiles, on a machine that may be loaded. `peak` is VmHWM in GB. Writes
vae_tiling.json and vae_tiling.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image

import eri_runtime as eri
from benchmarks.vae_networks import make_sdxl, only_sdxl, opened
from eri_export.machine import peak_memory
from eri_runtime.bundle import Bundle
from eri_runtime.images import contact_sheet, to_pil, to_unit, write_png
from eri_runtime.latents import VaeMode, tiling, vae
from eri_runtime.latents.geometry import to_vae
from eri_runtime.version import eri_version

Array = NDArray[np.float32]
RESULTS = Path(__file__).parent / "results"
CHECKPOINT = Path(__file__).parents[1] / "eri_export" / "embedded" / "emoji-sd35"
EMOJI = Path(__file__).parents[1] / "tests" / "data" / "emoji-24px.webp"
CANVAS = 480
CANVASES = {"25 emoji": (5, 0), "4 emoji": (2, 1), "1 emoji": (1, 5)}  # emoji per side, seed
TILES = (192, 256)
SIDE = 2048
LIMIT = 8  # GB of address space
IMAGE = "trained.npy"


def main() -> None:
    """Measures the parts and writes the results; with --job, runs one measured process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--folder", type=Path, default=Path("build/vae_tiling"))
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        sys.stdout.write(json.dumps(measured(options.bundle, options.folder, **options.job)))
        return
    file = options.output / "vae_tiling.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    report = {**known, **machine()}
    for part in options.parts:
        report[part] = PARTS[part](options)
        file.write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(file.read_text())


def machine() -> dict[str, Any]:
    """Returns the machine and versions of the measurement."""
    names = ("onnxruntime", "torch", "diffusers", "numpy")
    return {
        "command": "python -m benchmarks.vae_tiling engines/demo",
        "device": f"{platform.machine()}, ONNX Runtime CPU",
        "cores": len(os.sched_getaffinity(0)),
        "precision": "fp32",
        "eri": eri_version(),
        "versions": {name: version(name) for name in names},
    }


# seams


def seams(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each tile, overlap and blend, with the errors over the canvases."""
    bundle, run = opened(eri.read_bundle(options.bundle))
    latents = [vae.encode(bundle, run, canvas(*each)) for each in CANVASES.values()]
    whole = [vae.decode(bundle, run, each, CANVAS, CANVAS) for each in latents]
    network = AutoencoderKL.from_pretrained(CHECKPOINT / "vae").eval()
    rows = []
    for tile in TILES:
        images = [diffusers_tiled(network, bundle, each, tile) for each in latents]
        side, length = CANVAS // bundle.latents.factor, tile // bundle.latents.factor
        count = len(range(0, side, int(0.75 * length))) ** 2
        row = {"tile": tile, "blend": "diffusers", "overlap": 0.25, "tiles": count}
        rows.append({**row, **errors(images, whole)})
        for overlap in (1 / 8, 1 / 4, 1 / 2):
            for blend, rise in (("linear", tiling._rise), ("cosine", cosine)):
                with mock.patch.multiple(tiling, OVERLAP=overlap, _rise=rise):
                    images = [tiled(bundle, run, each, tile) for each in latents]
                    count = len(tiling.tile_side(side, length).starts) ** 2
                row = {"tile": tile, "blend": blend, "overlap": overlap, "tiles": count}
                rows.append({**row, **errors(images, whole)})
    ours = [tiled(bundle, run, each, TILES[0]) for each in latents]
    write_png(sheet(whole, ours), options.output / "vae_tiling.png", optimize=True)
    return rows


def canvas(count: int, seed: int) -> Array:
    """Returns count² training images, enlarged, in a square: (1, 3, 480, 480) in [−1, 1]."""
    strip, side = Image.open(EMOJI), CANVAS // count
    whole = Image.new("RGB", (CANVAS, CANVAS), "white")
    chosen = np.random.default_rng(seed).permutation(strip.height // strip.width)[: count**2]
    for place, index in enumerate(chosen.tolist()):
        part = strip.crop((0, 24 * index, 24, 24 * index + 24))
        part = part.resize((side, side), Image.Resampling.BICUBIC)
        whole.paste(part, (place % count * side, place // count * side))
    return (np.asarray(whole, np.float32) / 127.5 - 1).transpose(2, 0, 1)[None].copy()


def tiled(bundle: Bundle, run: vae.Run, latents: Array, tile: int) -> Array:
    """Decodes in tiles with eri."""
    return vae.decode(bundle, run, latents, CANVAS, CANVAS, VaeMode(tile=tile))


def diffusers_tiled(network: Any, bundle: Bundle, latents: Array, tile: int) -> Array:
    """Decodes in tiles with diffusers, which overlap by a quarter."""
    network.enable_tiling()
    network.tile_sample_min_size = tile
    network.tile_latent_min_size = tile // bundle.latents.factor
    return decoded(network, bundle, latents)


def decoded(network: Any, bundle: Bundle, latents: Array) -> Array:
    """Decodes with PyTorch, (B, 3, H, W)."""
    z = to_vae(bundle.latents, latents)
    with torch.inference_mode():
        image: Array = network.decode(torch.from_numpy(z)).sample.numpy()
    return image


def cosine(length: int) -> NDArray[np.float64]:
    """Returns a rising half cosine instead of the linear blend, (length,) float64."""
    weights: NDArray[np.float64] = 0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / length)
    return weights


def errors(images: list[Array], whole: list[Array]) -> dict[str, float]:
    """Returns the largest and mean difference in levels of 255, and the mean PSNR in dB."""
    each = [
        to_unit(one).astype(np.float64) - to_unit(other)
        for one, other in zip(images, whole, strict=True)
    ]
    psnr = [-10 * np.log10(np.mean(one**2)) for one in each]
    return {
        "max": round(255 * max(float(np.abs(one).max()) for one in each), 1),
        "mean": round(255 * float(np.mean([np.abs(one).mean() for one in each])), 3),
        "psnr": round(float(np.mean(psnr)), 2),
    }


def sheet(whole: list[Array], tiled: list[Array]) -> Image.Image:
    """Draws a row per canvas: whole, tiled, and twenty times the difference around grey."""
    images = []
    for plain, ours in zip(whole, tiled, strict=True):
        difference = np.clip(0.5 + 20 * (to_unit(ours) - to_unit(plain)), 0, 1)
        images += [*to_pil(to_unit(plain)), *to_pil(to_unit(ours)), *to_pil(difference)]
    small = [each.resize((160, 160), Image.Resampling.BOX) for each in images]
    return contact_sheet(small, 3)


# memory


def trained(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Decodes with the embedded checkpoint's VAE whole and in tiles, under the limit."""
    options.folder.mkdir(parents=True, exist_ok=True)
    jobs = [job(options, network="trained", tile=tile) for tile in (None, 512)]
    file = options.folder / IMAGE
    jobs[-1] |= against_torch(options.bundle, np.load(file))
    file.unlink()
    return jobs


def sdxl(options: argparse.Namespace, tile: int, limit: int) -> list[dict[str, Any]]:
    """Decodes with SDXL's VAE whole and in tiles, of which one is computed."""
    make_sdxl(options.folder)
    jobs = ({"tile": None}, {"tile": tile, "computed": 1})
    return [job(options, network="sdxl", limit=limit, **each) for each in jobs]


def job(options: argparse.Namespace, **arguments: Any) -> dict[str, Any]:
    """Runs one decode in its own process."""
    flags = ("--folder", str(options.folder), "--job", json.dumps(arguments))
    command = [sys.executable, "-m", "benchmarks.vae_tiling", str(options.bundle), *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)  # noqa: S603
    return {**arguments, **json.loads(done.stdout)}


def measured(
    path: Path,
    folder: Path,
    network: str,
    tile: int | None,
    computed: int | None = None,
    limit: int = LIMIT,
) -> dict[str, Any]:
    """Returns the peak and seconds of a decode within `limit` GB, or why it failed."""
    demo = eri.read_bundle(path)
    bundle, run = opened(demo if network == "trained" else only_sdxl(demo, folder))
    done: list[float] = []
    latents = large(bundle, run)
    resource.setrlimit(resource.RLIMIT_AS, (limit << 30, limit << 30))
    started = time.perf_counter()
    try:
        timed = run if computed is None else repeated(run, computed, done)
        image = vae.decode(bundle, timed, latents, SIDE, SIDE, VaeMode(tile=tile))
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        return {"limit": limit, "failed": str(error).splitlines()[0].split(") ")[-1]}
    seconds, peak = time.perf_counter() - started, peak_memory()
    if network == "trained":
        np.save(folder / IMAGE, image)
    row = {"limit": limit, "peak": round(peak / 2**30, 2), "seconds": round(seconds, 1)}
    if computed is None:
        return row
    every = sum(done[:computed]) / computed * len(done)
    return {**row, "seconds": round(every, 1), "tiles": len(done)}


def repeated(run: vae.Run, computed: int, done: list[float]) -> vae.Run:
    """Returns a `run` that computes so many calls and then repeats the last outputs."""
    last: dict[str, NDArray[Any]] = {}

    def stand_in(name: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        started = time.perf_counter()
        if len(done) < computed:
            last.update(run(name, inputs))
        done.append(time.perf_counter() - started)
        return last

    return stand_in


def large(bundle: Bundle, run: vae.Run) -> Array:
    """Returns latents of a large picture: repeated emoji, or noise if there is no encoder."""
    side = SIDE // bundle.latents.factor
    if vae.ENCODER not in bundle.components:
        shape = (1, bundle.latents.channels, side, side)
        return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    part = vae.encode(bundle, run, canvas(*CANVASES["25 emoji"]))
    turns = -(-side // part.shape[-1])
    return np.tile(part, (1, 1, turns, turns))[..., :side, :side].copy()


def against_torch(path: Path, image: Array) -> dict[str, float]:
    """Returns the errors of a tiled decode against PyTorch's whole decode, without a limit."""
    bundle, run = opened(eri.read_bundle(path))
    network = AutoencoderKL.from_pretrained(CHECKPOINT / "vae").eval()
    return errors([image], [decoded(network, bundle, large(bundle, run))])


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "seams": seams,
    "trained": trained,
    "sdxl": lambda options: sdxl(options, 512, LIMIT),
    "sdxl_1024": lambda options: sdxl(options, 1024, 12),
}

if __name__ == "__main__":
    main()
