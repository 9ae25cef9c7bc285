"""The least that is a bundle, and its publishing."""

from __future__ import annotations

from eri_export.publishing.atomic_publish import records, staging, write_manifest
from eri_runtime.bundle.spec import Bundle, Defaults, LatentSpec, ScheduleSpec


def make_bundle(folder, text):
    """The least that has a manifest: one file."""
    (folder / "note.txt").write_text(text)
    write_manifest(
        Bundle(
            root=folder,
            family="sdxl",
            components={},
            tokenizers={},
            schedule=ScheduleSpec(kind="vp", prediction="eps"),
            latents=LatentSpec(channels=4, factor=8, scale=1.0, shift=0.0, patch=4),
            defaults=Defaults(
                sampler="euler",
                num_inference_steps=1,
                guidance_scale=1.0,
                height=8,
                width=8,
                max_sequence_length=1,
            ),
            files=records(folder, {}),
        )
    )


def published(target, text):
    with staging(target) as folder:
        make_bundle(folder, text)
    return target


def interrupted(target):
    with staging(target) as folder:
        make_bundle(folder, "new")
        raise KeyboardInterrupt
