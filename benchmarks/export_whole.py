"""Measures `eri export` of a whole checkpoint at full size: CPU time, peak memory, by gate.

    python -m benchmarks.export_whole --gates full quick

The checkpoints are sparse files of the published names and shapes: every weight is zero. Each
figure is of one process: `cpu_seconds` of all its threads, `peak_mb` of resident memory, mapped
pages included. `--source` runs the packages of another checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.export_cost import MEGABYTE, RESULTS, about
from benchmarks.finished_process import finish
from tests.support import single_files as made
from tests.support.published_models import PUBLISHED, shapes
from tests.support.single_file_keys import bfl_flux

ROOT = Path(__file__).parent.parent
BEFORE = "before"  # the gate of a checkout that has no `--gate`


def sdxl(folder: Path) -> list[str]:
    """Makes SDXL base as one file; returns the arguments of its export."""
    file = folder / "sdxl.safetensors"
    made.sparse(file, PUBLISHED["sdxl-base"][0]("sdxl-base"))
    return [str(file), "--precision", "fp16"]


def flux(folder: Path) -> list[str]:
    """Makes Flux-dev as four files; returns the arguments of its export."""
    parts = {
        "flux": bfl_flux(made.full_size("flux-dev", "transformer")),
        "ae": made.full_size("flux-dev", "vae"),
        "clip_l": made.full_size("flux-dev", "text_encoder"),
        "t5xxl": made.full_size("flux-dev", "text_encoder_2"),
    }
    del parts["t5xxl"]["encoder.embed_tokens.weight"]  # tied to `shared`: files have one of them
    files = {name: folder / f"{name}.safetensors" for name in parts}
    for name, state in parts.items():
        made.sparse(files[name], shapes(state), "BF16")
    encoders = ["--text-encoders", str(files["clip_l"]), str(files["t5xxl"])]
    precision = ["--precision", "bf16,text_encoder_2=bf16"]
    return [str(files["flux"]), "--vae", str(files["ae"]), *encoders, *precision]


CHECKPOINTS: dict[str, Callable[[Path], list[str]]] = {
    "SDXL base, fp16": sdxl,
    "Flux-dev, bf16": flux,
}


def main() -> None:
    """Makes the files, runs each export and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=list(CHECKPOINTS), choices=list(CHECKPOINTS))
    parser.add_argument("--gates", nargs="*", default=["full", "quick"])
    parser.add_argument("--source", type=Path, default=ROOT, help="checkout to run")
    parser.add_argument("--folder", type=Path, help="folder for temporary files; needs 40 GB")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "export_whole.json")
    options = parser.parse_args()
    old = json.loads(options.output.read_text()) if options.output.is_file() else {}
    same = old.get("about") == about()
    results: dict[str, dict[str, Any]] = old["results"] if same else {}
    for name in options.cases:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            arguments = CHECKPOINTS[name](Path(folder))
            for gate in options.gates:
                output = Path(folder) / "bundle"
                figures = measured(options.source, [*arguments, "-o", str(output)], gate)
                results.setdefault(name, {})[gate] = figures
                text = json.dumps({"about": about(), "results": results}, indent=1)
                options.output.write_text(text + "\n")
                print(name, gate, figures, file=sys.stderr)  # noqa: T201


def measured(source: Path, arguments: list[str], gate: str) -> dict[str, Any]:
    """Returns the figures of one export by the packages in `source`."""
    chosen = [] if gate == BEFORE else ["--gate", gate]
    command = [sys.executable, "-m", "eri_runtime", "export", "--json", "--force"]
    environment = {**os.environ, "PYTHONPATH": str(source.resolve())}
    ended = finish([*command, *arguments, *chosen], env=environment, cwd=source)
    if ended.status:
        return {"failed": ended.status}
    return {
        "cpu_seconds": round(ended.cpu_seconds, 1),
        "seconds": round(ended.seconds, 1),
        "peak_mb": round(ended.peak_bytes / MEGABYTE),
        "stages": json.loads(ended.output)["seconds"],
    }


if __name__ == "__main__":
    main()
