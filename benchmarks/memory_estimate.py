"""Compares the estimated memory of a request with the measured memory.

    python -m benchmarks.memory_estimate engines/demo engines/mid

Every case, a combination of size, images, mode and engine, runs in its own process. Measured is the
peak (VmHWM) beyond what the process held after its imports, file pages included. The estimate is
for the `first` request, which opens the components. `--again` makes a second one, which finds
everything open and, in ONNX Runtime, memory planned for its shapes. The constants of
`eri_runtime.memory.estimate` were tuned on the cases of `TUNED` with only the largest component of
these bundles, not on the other cases.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import eri_runtime as eri
from eri_runtime.bundle import Bundle
from eri_runtime.commands.subcommand import say
from eri_runtime.executors import Settings, refusals
from eri_runtime.memory import MemoryEfficientSamplingConfig, estimate_peak

RESULTS = Path(__file__).parent / "results"
ENGINES = ("cpu", "openvino")
LOW = "low memory"
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    LOW: {},
    "offloaded": {"enable_cpu_offload": True},
    "offloaded, sliced VAE": {"enable_cpu_offload": True, "enable_vae_slicing": True},
    "offloaded, tiled VAE": {
        "enable_cpu_offload": True,
        "enable_vae_tiling": True,
        "tile_size": 256,
    },
    "streamed": {"enable_sequential_cpu_offload": True, "enable_vae_slicing": True},
}
# fraction of the bundle's default size, images per call
SIZES = ((0.5, 1), (0.75, 2), (1.0, 1))
TUNED = ((0.5, 1), (0.75, 2))
STEPS = 2
CHILD = """
import json, sys
import eri_runtime as eri
from eri_runtime.memory import MemoryEfficientSamplingConfig
root, engine, low, config, requests, words = json.loads(sys.argv[1])
__import__("onnxruntime" if engine == "cpu" else "openvino")
import PIL.Image, tokenizers

def field(name):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(each.split()[1]) for each in lines if each.startswith(name))

before, peaks = field("VmRSS:"), []
memory = MemoryEfficientSamplingConfig(**config)
with eri.load(root, engine, low_memory=low, memory=memory) as pipe:
    for seed in range(requests):
        pipe("a red heart", seed=seed, **words)
        peaks.append(field("VmHWM:") - before)
print(json.dumps(peaks))
"""


def main() -> None:
    """Measures the bundles, prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--only", choices=CONFIGS, action="append", help="only these modes")
    parser.add_argument("--engine", choices=ENGINES, action="append", help="only these engines")
    parser.add_argument("--again", action="store_true", help="a second request in every process")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "memory_estimate.json")
    options = parser.parse_args()
    requests = 1 + options.again
    results: dict[str, Any] = {"machine": machine()}
    for path in options.bundles:
        bundle = eri.read_bundle(path)
        rows: list[dict[str, Any]] = []
        results[bundle.root.resolve().name] = rows
        for case in cases(bundle, options.engine or ENGINES, options.only or list(CONFIGS)):
            rows.append(compared(bundle, requests, **case))
            options.output.write_text(json.dumps(results) + "\n", encoding="utf-8")
            say(line(rows[-1]))


def machine() -> dict[str, str]:
    """Returns the system and versions of the measurement."""
    packages = {name: version(name) for name in ("numpy", "onnxruntime", "openvino")}
    return {"python": platform.python_version(), "system": platform.system(), **packages}


def cases(bundle: Bundle, engines: Iterable[str], modes: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yields the cases that can run with this bundle on this machine."""
    step = bundle.latents.factor * bundle.latents.patch
    for engine in engines:
        for mode in modes:
            absent = mode == "streamed" and not bundle.components["denoiser"].segments
            if refusals(bundle, engine) or absent or (mode == LOW and engine != "cpu"):
                continue
            for share, images in SIZES:
                side = int(bundle.defaults.height * share) // step * step
                tuned = (share, images) in TUNED
                yield {
                    "engine": engine,
                    "mode": mode,
                    "side": side,
                    "images": images,
                    "tuned": tuned,
                }


def compared(
    bundle: Bundle, requests: int, engine: str, mode: str, side: int, images: int, *, tuned: bool
) -> dict[str, Any]:
    """Returns a case with its estimated and measured bytes."""
    config, low = CONFIGS[mode], mode == LOW
    estimated = estimate_peak(
        bundle,
        engine,
        Settings(low_memory=low),
        MemoryEfficientSamplingConfig(**config).mode,
        side,
        side,
        images,
    )
    first, *rest = measured(bundle, engine, config, side, images, requests=requests, low=low)
    return {
        "engine": engine,
        "mode": mode,
        "side": side,
        "images": images,
        "tuned": tuned,
        "at": estimated.at,
        "stages": {need.component: [need.weights, need.run] for need in estimated.needs},
        "estimated": estimated.peak,
        "first": first,
        "second": rest[0] if rest else None,
        "ratio": round((estimated.peak or 0) / first, 3),
    }


def measured(
    bundle: Bundle,
    engine: str,
    config: Mapping[str, Any],
    side: int,
    images: int,
    *,
    requests: int,
    low: bool,
) -> list[int]:
    """Returns the peak bytes of a process after each request."""
    words = {
        "height": side,
        "width": side,
        "num_images_per_prompt": images,
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
    }
    case = json.dumps([str(bundle.root), engine, low, config, requests, words])
    output = subprocess.check_output([sys.executable, "-c", CHILD, case], text=True)  # noqa: S603
    peaks: list[int] = json.loads(output.splitlines()[-1])
    return peaks


def line(row: Mapping[str, Any]) -> str:
    """Formats a case as a line of text."""
    again = f", second {row['second'] / 1e6:8,.0f}" if row["second"] else ""
    return (
        f"{row['engine']:9} {row['mode']:22} {row['side']:5} x{row['images']} "
        f"estimated {(row['estimated'] or 0) / 1e6:8,.0f} MB, first {row['first'] / 1e6:8,.0f}, "
        f"ratio {row['ratio']:.2f}{again}"
    )


if __name__ == "__main__":
    main()
