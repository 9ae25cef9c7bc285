"""Subjects of `eri bench` that only paint, and the options of a quick run."""

from __future__ import annotations

import argparse
from pathlib import Path

from eri_runtime.bench.plan import Candidate
from eri_runtime.commands.bench import bench_command

ROOT = Path(__file__).parents[2]
PAINTER = "tests.support.bench_worker"
FAST = ["--sizes", "32x32", "--steps", "2", "--rounds", "2", "--prompt", "a red heart", "--threads"]


def options_of(*words):
    parser = argparse.ArgumentParser()
    bench_command(parser.add_subparsers())
    return parser.parse_args(["bench", *map(str, words)])


def painted(name, kind="eri", variant=None):
    return Candidate(
        name=name, kind=kind, variant=variant or name.partition("/")[2], module=PAINTER
    )
