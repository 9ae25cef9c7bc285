"""What `eri bench` does not measure of a peer: exports, several processes, size of installation."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.finished_process import finish
from benchmarks.memory import Watch
from benchmarks.vs_pytorch import PROMPT, SIZES
from eri_export.bench.older_tokenizers import with_older_tokenizers
from eri_runtime import read_bundle
from eri_runtime.bench.peers import peer_python
from eri_runtime.bench.worker_client import Worker
from eri_runtime.bench.worker_server import Job, Setup
from eri_runtime.latents import latent_shape

OURS, THEIRS = "eri_runtime.bench.eri_worker", "eri_export.bench.optimum_worker"
THREADS = os.cpu_count() or 1
TIMEOUT = 3600.0  # seconds for an answer
PROCESSES = (1, 4)
SUBJECTS = {  # name: module, variant
    "eri/openvino:bf16": (OURS, "openvino:bf16"),
    "eri/openvino": (OURS, "openvino"),
    "eri/cpu": (OURS, "cpu"),
    "openvino-genai+bf16": (THEIRS, "openvino-genai+bf16"),
    "openvino-genai": (THEIRS, "openvino-genai"),
}
INSTALLATIONS = {  # name: whether the peers' environment has it, packages
    "eri with ONNX Runtime": (False, ("eri-diffusion[cpu]",)),
    "eri with OpenVINO": (False, ("eri-diffusion[openvino]",)),
    "eri's exporter": (False, ("eri-diffusion[export]",)),
    "diffusers on PyTorch": (False, ("diffusers", "transformers", "torch")),
    "OpenVINO GenAI": (True, ("openvino-genai",)),
    "optimum-intel": (True, ("optimum-intel", "openvino", "diffusers")),
    "optimum-onnx": (True, ("optimum-onnx", "onnxruntime", "diffusers")),
}
# prints the bytes of the files of packages and of what they require, here and now
COUNT = """
import sys
from importlib.metadata import distribution, PackageNotFoundError
from packaging.requirements import Requirement
todo, seen, total = [Requirement(each) for each in sys.argv[1:]], set(), 0
while todo:
    wanted = todo.pop()
    key = wanted.name.lower(), tuple(sorted(wanted.extras))
    if key in seen:
        continue
    try:
        found = distribution(wanted.name)
    except PackageNotFoundError:
        if wanted.marker is None:
            raise
        continue
    if not any(name == key[0] for name, _ in seen):
        files = [each.locate() for each in found.files or ()]
        total += sum(file.stat().st_size for file in files if file.is_file())
    seen.add(key)
    for line in found.requires or ():
        need = Requirement(line)
        extras = [{"extra": each} for each in ("", *wanted.extras)]
        if need.marker is None or any(need.marker.evaluate(each) for each in extras):
            todo.append(need)
print(total)
"""


def export_costs(family: str, checkpoint: Path, work: Path) -> dict[str, Any]:
    """Returns seconds and peak memory of each export of a checkpoint; bundles go into `work`."""
    side = SIZES[family]
    sizes = ["--size", f"{side // 2}:{side}:{side}"]
    ours = ["-m", "eri_runtime", "export", str(checkpoint), *sizes, "-q", "-o"]
    optimum = ["-m", "optimum.commands.optimum_cli", "export"]
    source = with_older_tokenizers(checkpoint, work / "source")  # theirs are of transformers 4
    model = ["--model", str(source), "--task", "text-to-image"]
    peers = peer_python(None)
    commands = {
        "eri": [sys.executable, *ours, str(work / "whole")],
        "eri, quick comparison": [sys.executable, *ours, str(work / "quick"), "--gate", "quick"],
        "optimum-cli export openvino": [
            *(peers, *optimum, "openvino", *model),
            *("--weight-format", "fp32", str(work / "openvino")),
        ],
        "optimum-cli export onnx": [peers, *optimum, "onnx", *model, str(work / "onnx")],
    }
    return {name: cost(command) for name, command in commands.items()}


def cost(command: Sequence[str]) -> dict[str, Any]:
    """Runs a command and returns its wall time, CPU time and peak memory, or why it failed."""
    ended = finish(command)
    if ended.status:
        return {"failed": (ended.errors.strip().splitlines() or ["no reason"])[-1]}
    return {
        "wall_s": round(ended.seconds, 1),
        "cpu_s": round(ended.cpu_seconds, 1),
        "peak_bytes": ended.peak_bytes,
    }


def process_costs(family: str, checkpoint: Path, bundle: Path, work: Path) -> dict[str, Any]:
    """Returns the memory (PSS) of one process and of four that draw at the same time."""
    job = job_of(family, bundle, work)
    found: dict[str, Any] = {}
    for name, (module, variant) in SUBJECTS.items():
        setup = Setup(
            variant=variant,
            bundle=str(bundle),
            checkpoint=str(checkpoint),
            threads=THREADS,
            device="cpu",
            folder=str(work),
        )
        bytes_of = {count: most_memory(module, asdict(setup), job, count) for count in PROCESSES}
        one, four = (bytes_of[count] for count in PROCESSES)
        found[name] = {"pss": bytes_of, "ratio": round(four / one, 3)}
    return found


def most_memory(module: str, setup: Mapping[str, Any], job: Job, count: int) -> int:
    """Returns the most memory (PSS) that so many processes have together while each draws."""
    python = peer_python(None) if module == THEIRS else sys.executable
    environment = {"OMP_NUM_THREADS": str(setup["threads"])}
    if module == THEIRS:
        with Worker("conversion", module, environment, TIMEOUT, python) as worker:
            worker.ask("convert", setup=setup)
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(f"process {i}", module, environment, TIMEOUT, python))
            for i in range(count)
        ]
        watch = Watch([each.pid for each in workers])
        with ThreadPoolExecutor(count) as pool:
            for words in ({"do": "open", "setup": setup}, {"do": "draw", "job": asdict(job)}):
                list(pool.map(lambda each, words=words: each.ask(**words), workers))
        return watch.stop()


def job_of(family: str, bundle: Path, work: Path) -> Job:
    """Returns the drawing of one picture in one step, with its noise in a file."""
    side, latents = SIZES[family], work / "latents.npy"
    shape = latent_shape(read_bundle(bundle).latents, side, side)
    np.save(latents, np.random.default_rng(0).standard_normal((1, *shape), np.float32))
    return Job(
        prompt=PROMPT,
        seed=0,
        images=1,
        width=side,
        height=side,
        steps=1,
        guidance=5.0,
        tokens=16,
        latents=str(latents),
        output=str(work / "picture.png"),
    )


def install_sizes() -> dict[str, int]:
    """Returns the bytes of each installation: its packages, and what they require."""
    return dict(_install_sizes())


def _install_sizes() -> Iterator[tuple[str, int]]:
    """Yields an installation and its bytes."""
    for name, (theirs, packages) in INSTALLATIONS.items():
        python = peer_python(None) if theirs else sys.executable
        done = subprocess.run(  # noqa: S603 -- our own program
            [python, "-c", COUNT, *packages], check=True, capture_output=True, text=True
        )
        project = project_bytes() if any("eri-" in each for each in packages) else 0
        yield name, int(done.stdout) + project


def project_bytes() -> int:
    """Returns the bytes of our own packages, which a clone's installation only points to."""
    files = (file for name in ("eri_runtime", "eri_export") for file in Path(name).rglob("*"))
    return sum(each.stat().st_size for each in files if each.is_file() and each.suffix != ".pyc")
