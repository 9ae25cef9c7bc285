"""Exports that are killed, that meet, or whose disk fills up: trials for the tests and a benchmark.

Each trial asserts what must hold after it: the target is the old bundle or the new one, every byte
of it, or there is none where there was none; and what is left over, the next export removes.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGTERM

from tests.support.zygote import (
    INTERRUPTED,
    MOUNT,
    NAME,
    NAMESPACE,
    NONE,
    Child,
    Workshop,
    siblings,
)

ROOT = Path(__file__).parents[2]
COMPONENTS = ("denoiser", "vae_decoder", "vae_encoder", "text_encoder", "text_encoder_2")
ENDINGS = {0: "finished", INTERRUPTED: "unwound", -SIGTERM: "ended before anything was made"}
AIMS = ("whole", "stage", "end", "rename")


def run(plan: dict, *, namespace: bool = False, **paths: Path) -> dict:
    """The results of the trials that `plan` names, with their arguments, in a process of its own.

    `paths`: a `checkpoint`, the `graphs` of its bundle, and `work`, a folder that is empty.
    """
    command = [*(NAMESPACE if namespace else ()), sys.executable, "-m", "tests.support.faults"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [*command, json.dumps(plan), json.dumps(paths, default=str)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def main() -> None:
    """Run the trials the command line names and print their results as JSON."""
    import onnxruntime  # noqa: F401 what every child would import again
    import torch
    import transformers  # noqa: F401

    import eri_export.publishing.export_bundle  # noqa: F401

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # engines then start no threads
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page
    plan, paths = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    shop = Workshop.of(**{name: Path(path) for name, path in paths.items()})
    sys.stdout.write(json.dumps({name: TRIALS[name](shop, **plan[name]) for name in plan}))


# SIGKILL


def kills(shop: Workshop, count: int, seed: int, quirks: tuple[str, ...] = ()) -> dict:
    """Kill `count` exports, three of four over a bundle; each leaves its rest to the next.

    One that had ended before it was to be killed is checked like the others, and not counted.
    """
    draw, gaps = random.Random(seed), _clock(shop, quirks)  # noqa: S311 a fixed draw
    phases, outcomes = Counter(), Counter()
    work = shop.work / f"kills-{seed}"
    homes = {home: work / home / NAME for home in ("over", NONE)}
    now = {"over": shop.publish("a", homes["over"]), NONE: NONE}
    for number in range(4 * count):
        home = NONE if number % 4 == 3 else "over"
        target, old = homes[home], now[home]
        label = "a" if old == "b" else "b"
        before, aim = siblings(target), AIMS[number // 4 % len(AIMS)]
        child = shop.launch(label, target, *quirks)
        _wait(child, aim, draw, gaps, partial(_moved, target, _inode(target)))
        killed = child.send(SIGKILL) == -SIGKILL
        left, new = siblings(target), shop.state(target)
        phase = _phase(target, left - before, moved=new != old) if killed else "finished"
        assert new in (old, label) or _halved(shop, target, left, old), (phase, old, label, new)
        assert len(left) <= 1 + len(quirks), left
        phases[phase] += 1
        outcomes[f"{_kind(old)} -> {'the same' if new == old else _kind(new)}"] += killed
        now[home] = _cleared(target) if home == NONE else old if new == NONE else new
        if phases.total() - phases["finished"] == count:
            break
    for target in homes.values():
        shop.publish("b", target)
        assert [path.name for path in target.parent.iterdir()] == [NAME]
    assert phases.total() - phases.pop("finished", 0) == count
    return {"kills": count, "phases": dict(phases), "outcomes": dict(+outcomes)}


def _wait(child: Child, aim: str, draw: random.Random, gaps: list[float], moved) -> None:
    """Until a random moment of a whole export, of one of its stages, of its end, or of the rename.

    The end is what follows the components: hashing, manifest, flush, rename, the old removed.
    """
    if aim == "rename":
        child.wait_for(moved)
        time.sleep(draw.uniform(0, 0.001))
        return
    end = len(gaps) - 2  # of the gaps before, within and after the publishing
    stage = {"whole": 0, "stage": draw.randrange(len(gaps)), "end": end}[aim]
    seconds = draw.uniform(0, sum(gaps[stage : stage + 1] if aim == "stage" else gaps[stage:]))
    while len(child.told) < stage and child.hear():
        pass
    time.sleep(seconds)


def _clock(shop: Workshop, quirks: tuple[str, ...]) -> list[float]:
    """Seconds from line to line of an undisturbed export, start and end included; the best of 2."""
    target, runs = shop.work / "clock" / NAME, []
    for label in "aba":
        times = [time.perf_counter()]
        child = shop.launch(label, target, *quirks)
        while child.hear():
            times.append(time.perf_counter())
        assert child.hear_out() == 0
        times.append(time.perf_counter())
        runs.append([after - before for before, after in itertools.pairwise(times)])
    return [min(gaps) for gaps in zip(*runs[1:], strict=True)]  # the first may replace nothing


def _inode(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0


def _moved(target: Path, inode: int) -> bool:
    return _inode(target) != inode


def _phase(target: Path, new: set[str], *, moved: bool) -> str:
    """What a killed export was doing, by what it left."""
    if moved:
        return "removing the old" if new else "ending"
    folders = [target.parent / name for name in new if name.endswith(".partial")]
    if len(new) != 1 or not folders:
        return "between two renames" if new else "starting"
    held = {path.relative_to(folders[0]).as_posix() for path in folders[0].rglob("*")}
    begun, weights, graphs = (
        {name.partition("/")[0] for name in held if name.endswith(suffix)}
        for suffix in (COMPONENTS, "/weights.safetensors", "/model.onnx")
    )
    rules = (
        ("manifest.json" in held, "flushing"),
        ("parity.json" in held, "hashing"),
        (not begun, "tokenizers"),
        (begun != weights, "tracing"),
        (weights != graphs, "writing weights"),
    )
    return next((phase for holds, phase in rules if holds), "comparing")


def _halved(shop: Workshop, target: Path, left: set[str], old: str) -> bool:
    """Without an exchange, the old bundle may lie whole beside its name until the next export."""
    moved = [name for name in left if name.endswith(".old")]
    return len(moved) == 1 and shop.state(target.with_name(moved[0])) == old


def _kind(label: str) -> str:
    return NONE if label == NONE else "bundle"


def _cleared(target: Path) -> str:
    shutil.rmtree(target, ignore_errors=True)
    return NONE


# SIGTERM


def stops(shop: Workshop, count: int, seed: int) -> dict:
    """End exports over a bundle by SIGTERM: nothing is left, and there is no need of a next one."""
    draw, gaps = random.Random(seed), _clock(shop, ())  # noqa: S311 a fixed draw
    target, endings = shop.work / "stopped" / NAME, Counter()
    old = shop.publish("a", target)
    for number in range(count):
        label, aim = "a" if old == "b" else "b", AIMS[number % len(AIMS)]
        child = shop.launch(label, target)
        _wait(child, aim, draw, gaps, partial(_moved, target, _inode(target)))
        ending = ENDINGS[child.send(SIGTERM)]
        new = shop.state(target)
        assert new in (old, label)
        assert [path.name for path in target.parent.iterdir()] == [NAME], ending
        endings[f"{ending}, {'the same' if new == old else 'replaced'}"] += 1
        old = new
    return {"stops": count, "endings": dict(endings)}


# two exports to one name


def meetings(shop: Workshop, rounds: int, quirks: tuple[str, ...] = ()) -> dict:
    """Two exports to one name that are let go at the moment both would publish."""
    target, endings = shop.work / "met" / NAME, Counter()
    for number in range(rounds):
        if number % 2 == 0:
            _cleared(target)
        (shop.work / "gate").unlink(missing_ok=True)
        children = [shop.launch(label, target, "gate", *quirks) for label in "ab"]
        for child in children:
            while not child.told or not child.told[-1].startswith("bundle publish"):
                assert child.hear(), child.told
        (shop.work / "gate").touch()
        codes = sorted(child.hear_out() for child in children)
        assert codes in ([0, 0], [0, 1]), codes
        assert shop.state(target) in ("a", "b")
        assert [path.name for path in target.parent.iterdir()] == [NAME]
        endings[f"over {('none', 'a bundle')[number % 2]}: {codes.count(0)} of 2 finished"] += 1
    return {"rounds": rounds, "endings": dict(endings)}


# full disks


def full_disks(shop: Workshop, shares: list[float], inodes: list[int]) -> dict:
    """Exports into file systems with room for these shares of a bundle, or these numbers of files.

    With the check of the free space, and without, so that every file has its turn to fail.
    """
    size = sum(path.stat().st_size for path in shop.first.rglob("*"))
    struck, outcomes = Counter(), Counter()
    limited = [
        (f"size={int(size * (share + 1.1 * (old == 'a'))) // 4096 * 4 + 16}k", old, quirks)
        for share, old, quirks in itertools.product(shares, (NONE, "a"), ((), ("no check",)))
    ]
    limited += [(f"size=64m,nr_inodes={count}", NONE, ()) for count in inodes]
    for limit, old, quirks in limited:
        ending, place = _export_into(shop, limit, old, quirks)
        outcomes[ending] += 1
        struck[place] += 1
    return {"trials": len(limited), "outcomes": dict(outcomes), "struck_after": dict(struck)}


def _export_into(shop: Workshop, limit: str, old: str, quirks: tuple[str, ...]) -> tuple[str, str]:
    """How an export into a new file system ended, and the last stage it had reached."""
    disk = shop.work / "disk"
    disk.mkdir(exist_ok=True)
    subprocess.run([*MOUNT, limit, "tmpfs", disk], check=True)
    try:
        if old != NONE:
            shutil.copytree(shop.first, disk / NAME)
        child = shop.launch("b", disk / NAME, *quirks)
        code = child.hear_out()
        new, names = shop.state(disk / NAME), [path.name for path in disk.iterdir()]
    finally:
        subprocess.run(["umount", disk], check=True)
    assert names == [NAME] * (new != NONE), names
    if code == 0:
        assert new == "b"
        return "published", "the end"
    *stages, error = child.told
    assert error.startswith(f"error DiskError {disk}"), error
    assert new == old
    place = " ".join(stages[-1].split()[:2]) if stages else "the beginning"
    return "refused before" if "for the weights alone" in error else "ran out", place


TRIALS = {trials.__name__: trials for trials in (kills, stops, meetings, full_disks)}

if __name__ == "__main__":
    main()
