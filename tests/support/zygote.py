"""A process that imports torch once and forks a child for each real `export` of a tiny checkpoint.

Traced graphs are read from a bundle made before, and comparing, which writes nothing, is a pause.
Two checkpoints that differ in one weight take turns, so that an old bundle and a new can be told
apart.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from eri_export.gate.parity import Compared
from eri_export.gate.report import Metric, Report
from eri_export.graphs.recipes.base import Recipe

NAME = "demo"
NONE = "none"  # the state of a name where no bundle is
COMPARING = 0.05  # seconds of a component
INTERRUPTED = 130  # the exit status of an export that unwound
SIBLING = re.compile(rf"\.{NAME}\.[0-9a-f]{{8}}\.(partial|old)")
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
MOUNT = ("mount", "-t", "tmpfs", "-o")


def no_mounts(folder: Path) -> str | None:
    """Why no file system can be mounted in a namespace of our own here; None if it can."""
    if shutil.which(NAMESPACE[0]) is None:
        return "no unshare command"
    command = [*NAMESPACE, *MOUNT, "size=64k", "tmpfs", folder]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return tried.stderr.strip() if tried.returncode else None


def siblings(target: Path) -> set[str]:
    """The hidden folders beside `target` that belong to it."""
    home = target.parent
    names = [path.name for path in home.iterdir()] if home.exists() else []
    return {name for name in names if SIBLING.fullmatch(name)}


def _agree(recipe: Recipe, *_given: object, **_options: object) -> Compared:
    """Takes time as comparing does, and writes as little."""
    time.sleep(COMPARING)
    metric = Metric(
        component=recipe.name,
        output="",
        precision="fp32",
        subject="graph",
        case="drawn",
        network="whole",
        sizes={},
        max_abs=0.0,
        max_rel=0.0,
        tolerance=1.0,
    )
    return Compared(Report((metric,)), None)


@dataclass(frozen=True)
class Workshop:
    """What every trial needs; `labels` tells a published bundle by the text of its manifest."""

    work: Path
    checkpoints: dict[str, Path]
    graphs: Path
    labels: dict[str, str]

    @classmethod
    def of(cls, checkpoint: Path, graphs: Path, work: Path) -> Workshop:
        """`a` is `checkpoint`, `b` differs in one weight; each is exported to know its bundle."""
        from safetensors.numpy import load_file, save_file

        other = work / "other"
        shutil.copytree(checkpoint, other)
        file = other / "vae" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        tensors["decoder.conv_in.bias"] *= 2
        save_file(tensors, file)
        shop = cls(work, {"a": checkpoint, "b": other}, graphs, {})
        for label in ("b", "a"):  # `a` is left there
            assert shop.launch(label, shop.first).hear_out() == 0
            shop.labels[(shop.first / "manifest.json").read_text()] = label
            assert shop.state(shop.first) == label
        assert len(shop.labels) == 2
        return shop

    @property
    def first(self) -> Path:
        """A bundle of `a` that no trial touches."""
        return self.work / "first" / NAME

    def state(self, target: Path) -> str:
        """`NONE`, or whose bundle is at `target`, with every byte of it and nothing else."""
        from eri_runtime.bundle import integrity, manifest

        if not os.path.lexists(target):
            return NONE
        bundle = manifest.read(target)
        integrity.verify_all(bundle)
        files = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
        assert files == {*bundle.files, "manifest.json"}, files
        return self.labels[(target / "manifest.json").read_text()]

    def publish(self, label: str, target: Path) -> str:
        """Export to `target` undisturbed; the label again."""
        assert self.launch(label, target).hear_out() == 0
        assert self.state(target) == label
        return label

    def launch(self, label: str, target: Path, *quirks: str) -> Child:
        """Start an export of checkpoint `label` in a child."""
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reading)
            os._exit(self._export(label, target, quirks, os.fdopen(writing, "w")))
        os.close(writing)
        return Child(pid, os.fdopen(reading, "rb", buffering=0))

    def _export(self, label: str, target: Path, quirks: tuple[str, ...], pipe: IO[str]) -> int:
        import onnx_ir as ir

        from eri_export.publishing import atomic_publish as publish
        from eri_export.publishing import export_bundle as bundle
        from eri_runtime.errors import EriError

        def say(*words: object) -> None:
            pipe.write(" ".join(map(str, words)) + "\n")
            pipe.flush()

        def tell(event) -> None:
            """A line where a component begins, and where a stage is over."""
            if event.done == event.total or event.stage in ("trace", "publish"):
                say(event.component, event.stage, event.done)
            gate = "gate" in quirks and event.stage == "publish"
            while gate and not (self.work / "gate").exists():
                time.sleep(0.0005)

        bundle.trace = lambda recipe: ir.load(self.graphs / recipe.name / "model.onnx")
        bundle.compare, bundle.real_inputs = _agree, lambda *_: None
        bundle.envelope, bundle.WITH_FORMS = lambda *_: (), ()
        if "no exchange" in quirks:
            publish._exchange = lambda _one, _other: False
        if "no check" in quirks:
            bundle.require_space = lambda _folder, _nbytes: None
        try:
            bundle.export(self.checkpoints[label], target, progress=tell)
        except EriError as error:
            say("error", type(error).__name__, error)
            return 1
        except KeyboardInterrupt:
            return INTERRUPTED
        except BaseException:  # the parent sees the status, and asserts
            traceback.print_exc()
            return 2
        return 0


@dataclass
class Child:
    """A running export; `told` is what it has said, a line for each stage of a component."""

    pid: int
    pipe: IO[bytes]
    told: tuple[str, ...] = ()

    def hear(self, seconds: float | None = None) -> bool:
        """Wait that long for a line; False if none came, or no more will."""
        if not select.select([self.pipe], [], [], seconds)[0]:
            return False
        line = bytearray()
        while (byte := self.pipe.read(1)) and byte != b"\n":
            line += byte
        self.told += (line.decode(),) if line else ()
        return bool(line)

    def hear_out(self) -> int:
        """Wait for its end and give its exit status, negative for a signal."""
        while self.hear():
            pass
        self.pipe.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def wait_for(self, event: Callable[[], bool]) -> None:
        """Wait until `event` has happened, or the export has ended; take little notice."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while not event() and os.waitid(os.P_PID, self.pid, flags) is None:
            pass

    def send(self, number: signal.Signals) -> int:
        """Send it a signal, if it has not ended before, and give its exit status."""
        os.kill(self.pid, number)  # not waited for yet, so the id is still its own
        return self.hear_out()
