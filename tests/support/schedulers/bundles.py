"""Bundles as the export of a checkpoint with another scheduler would write them."""

from __future__ import annotations

import dataclasses
import shutil

import eri_runtime as eri
from eri_export.checkpoints.scheduler_facts import own_sampling
from eri_export.checkpoints.training_schedule import training_schedule
from eri_runtime.bundle import MANIFEST, manifest
from tests.support.schedulers.loops import settings


def of_scheduler(bundle, folder, scheduler):
    """A copy of a bundle as the export of a checkpoint with this scheduler would write it."""
    shutil.copytree(bundle, folder)
    old = eri.read_bundle(folder)
    config = {**scheduler.config, "_class_name": type(scheduler).__name__}
    read = settings(old.family, config)
    new = dataclasses.replace(
        old,
        schedule=training_schedule(read),
        defaults=own_sampling(read).into(old.defaults),
    )
    (folder / MANIFEST).write_text(manifest.dump(new), encoding="utf-8")
    assert eri.read_bundle(folder) == dataclasses.replace(new, root=folder)
    return folder
