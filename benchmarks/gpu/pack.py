"""Makes the parts of a run on a rented GPU; needs the exporter, no GPU and no network but PyPI.

    python -m benchmarks.gpu.pack .gpu [--runtime ONNXRUNTIME_GPU.tar.xz]

Full-size models are exported from headers alone: graphs, manifest and the header of each weights
file, which the GPU's machine fills with random numbers. Tiny ones are real bundles. The folder gets
`bundles.tar.xz`, the runtime's archive, and wheels of what the machine lacks; their sizes are
printed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

from benchmarks.gpu.checkpoints import ENCODER, hollow_checkpoint
from benchmarks.gpu.weights import WORD, weight_files
from eri_export import export
from eri_export.checkpoints import read_headers
from eri_export.checkpoints.checkpoint import DENOISERS, PARTS
from eri_export.checkpoints.shipped_configs import Model as Published
from eri_export.choices.ranges import make_ranges
from eri_export.gate.parity import Compared
from eri_export.gate.report import Report
from eri_export.publishing import export_bundle
from eri_export.weights.weights_file import Conversion, Written, header_of, in_file_order
from eri_runtime.bundle import (
    Bundle,
    Family,
    FileRecord,
    Listener,
    Precision,
    no_progress,
    read_bundle,
)
from tests.support import checkpoints as tiny

LIMIT = 64 << 20  # bytes that can be taken to the machine
SIZE, TINY_SIZE = 1024, 64  # pixels per side
UNKNOWN = "0" * 64  # sha256 of weights that are not written yet


@dataclass(frozen=True)
class Full:
    """A published model at full size, with the parts that the run needs."""

    family: Family
    published: Published
    precision: str
    parts: tuple[str, ...]


FULL: Mapping[str, Full] = {
    "sdxl": Full("sdxl", "sdxl-base", "fp16", tuple(PARTS["sdxl"])),
    "sd35": Full("sd35", "sd3.5-medium", "fp16", ("transformer",)),
    "flux": Full("flux", "flux-dev", "bf16", ("transformer",)),
}
# tiny pipeline, precision, and whether its sizes are fixed
TINY: Mapping[str, tuple[str, Precision, bool]] = {
    "tiny-sdxl": ("tiny_sdxl", "fp32", True),
    "tiny-sd35": ("tiny_sd35", "fp32", True),
    "tiny-flux": ("tiny_flux", "fp32", True),
    "tiny-sdxl-fp16": ("tiny_sdxl", "fp16", True),
    "tiny-sdxl-dynamic": ("tiny_sdxl", "fp32", False),
}


ARCHIVE = "bundles.tar.xz"
PARTIAL = f"{ARCHIVE}.partial"  # until all parts are there


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the parts and prints their sizes; returns 1 if they are too large."""
    options = _parser().parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output) as folder:
        work = Path(folder)
        for name in options.models:
            print(f"{name} ...", flush=True)  # noqa: T201
            make = make_tiny if name in TINY else make_full
            (make_rehearsal if options.rehearsal and name in FULL else make)(name, work)
        archive(work, options.output / PARTIAL)
    if options.runtime is not None:
        shutil.copy(options.runtime, options.output)
    if not options.no_wheels:
        wheels(options.output)
    if report(options.output) > LIMIT:
        return 1
    (options.output / PARTIAL).replace(options.output / ARCHIVE)
    return 0


def make_tiny(name: str, work: Path) -> None:
    """Exports a tiny pipeline; its comparison with PyTorch is the export's own."""
    make, precision, static = TINY[name]
    checkpoint = _tiny_checkpoint(make, work)
    ranges = make_ranges(size=str(TINY_SIZE), static=static)
    export(checkpoint, work / "bundles" / name, precision=precision, ranges=ranges)


def _tiny_checkpoint(make: str, work: Path) -> Path:
    """Returns a tiny checkpoint of the tests, made on first use."""
    checkpoint = work / "checkpoints" / make
    if not checkpoint.is_dir():
        getattr(tiny, make)(checkpoint)
    return checkpoint


def make_full(name: str, work: Path) -> None:
    """Exports a published model without weights, and writes the configs of its networks."""
    full = FULL[name]
    checkpoint = work / "checkpoints" / name
    hollow_checkpoint(full.family, full.published, full.parts, checkpoint)
    with hollow_export():
        ranges = make_ranges(size=str(SIZE), static=True)
        export(
            checkpoint,
            work / "bundles" / name,
            precision=full.precision,
            ranges=ranges,
            text_encoders=[checkpoint / each for each in full.parts if each.startswith(ENCODER)],
        )
    strip(work, name, checkpoint)


def make_rehearsal(name: str, work: Path) -> None:
    """Exports a tiny pipeline in place of a published model, to be filled in the same way."""
    checkpoint = _tiny_checkpoint(f"tiny_{FULL[name].family}", work)
    ranges = make_ranges(size=str(TINY_SIZE), static=True)
    export(checkpoint, work / "bundles" / name, ranges=ranges)
    strip(work, name, checkpoint)


def strip(work: Path, name: str, checkpoint: Path) -> None:
    """Cuts a bundle's weights files to their headers, and writes its networks' configs."""
    bundle = read_bundle(work / "bundles" / name)
    skeleton(bundle)
    classes = PARTS[bundle.family]
    networks = {
        component: {
            "class_name": classes[part],
            "config": json.loads((checkpoint / part / "config.json").read_text(encoding="utf-8")),
        }
        for component, part in (("denoiser", DENOISERS[bundle.family]), ("vae_decoder", "vae"))
        if component in bundle.components
    }
    file = work / "networks" / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(networks), encoding="utf-8")


class Uncompared(Report):
    """The report of a component that was not compared."""

    def worst(self, component: str) -> float:
        del component
        return 0.0


@contextmanager
def hollow_export() -> Iterator[None]:
    """Lets `export` write headers for weights, and compare nothing."""

    def write(file: Path, items: Sequence[Conversion], on_bytes: Listener = no_progress) -> Written:
        size = sum(item.nbytes for item in items)
        with file.open("xb") as stream:
            stream.write(header_of(in_file_order(items)))
            stream.truncate(stream.tell() + size)
        on_bytes(size)
        record = FileRecord(size=file.stat().st_size, sha256=UNKNOWN)
        return Written(read_headers([file]), record)

    with patch.multiple(
        export_bundle,
        write_weights=write,
        real_inputs=lambda *_: None,
        compare=lambda *_, **__: Compared(Uncompared(()), None),
        require_space=lambda *_: None,
    ):
        yield


def skeleton(bundle: Bundle) -> None:
    """Cuts every weights file of a bundle to its header."""
    for name in weight_files(bundle):
        with bundle.path(name).open("r+b") as stream:
            stream.truncate(WORD + int.from_bytes(stream.read(WORD), "little"))


def archive(work: Path, file: Path) -> None:
    """Packs bundles and configs; graphs are alike, so the archive is small."""
    with tarfile.open(file, "w:xz") as packed:
        for name in ("bundles", "networks"):
            if (work / name).is_dir():
                packed.add(work / name, name)


def wheels(output: Path) -> None:
    """Downloads diffusers, as it is here, and what else it needs that the machine lacks."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version=3.12", f"--dest={output}"]
    command += [f"diffusers=={version('diffusers')}", "importlib_metadata"]
    subprocess.run(command, check=True)  # noqa: S603


def report(output: Path) -> int:
    """Prints the size of every part; returns their sum in bytes."""
    sizes = {each.name: each.stat().st_size for each in sorted(output.iterdir()) if each.is_file()}
    for name, size in {**sizes, "in total": sum(sizes.values())}.items():
        print(f"{size / 2**20:7.2f} MiB  {name}")  # noqa: T201
    return sum(sizes.values())


def _parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu.pack", description=__doc__.splitlines()[0]
    )
    add, models = parser.add_argument, [*TINY, *FULL]
    add("output", type=Path, help="folder of the parts")
    add("--models", nargs="+", choices=models, default=models)
    add("--runtime", type=Path, help="an archive of onnxruntime-gpu to take along")
    add("--rehearsal", action="store_true", help="tiny models in place of the full-size ones")
    add("--no-wheels", action="store_true", help="the machine has all packages")
    return parser


if __name__ == "__main__":
    sys.exit(main())
