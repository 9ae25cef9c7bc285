"""Train the embedded checkpoint.

    python -m eri_export.embedded.train --emoji ASSETS --names data-by-emoji.json --work DIR

ASSETS is `assets/` of npm `@lobehub/fluent-emoji-3d` 1.1.0, the names are from npm
`unicode-emoji-json` 0.9.0. Killed at any moment, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import pathlib

import torch

from eri_export.embedded import FAMILIES, data, denoiser_stage, models, pack, vae_stage

MINUTES = {"decoder": 22.0, "denoiser": 46.0, "encoder": 5.0, "pack": 0.0}
TARGET = pathlib.Path(__file__).with_name(FAMILIES["sd35"])


def main() -> None:
    """Run the stages asked for."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments = _parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    samples = data.find_samples(arguments.emoji, arguments.names)
    images = torch.from_numpy(data.load_images(samples, models.IMAGE_SIZE))
    for stage in MINUTES if arguments.stage == "all" else (arguments.stage,):
        minutes = MINUTES[stage] if arguments.minutes is None else arguments.minutes
        run_stage(stage, arguments.work, images, minutes=minutes, every=arguments.validate_every)


def run_stage(
    stage: str, work: pathlib.Path, images: torch.Tensor, *, minutes: float, every: int = 0
) -> None:
    """Train one part, or write the checkpoint folder."""
    if stage == "decoder":
        vae_stage.train_decoder(work, images, minutes=minutes)
    elif stage == "encoder":
        vae_stage.train_encoder(work, images, minutes=minutes)
    elif stage == "denoiser":
        denoiser_stage.train_denoiser(work, images, minutes=minutes, every=every)
    elif stage == "pack":
        pack.pack(work, TARGET)
    else:
        raise ValueError(f"stage {stage!r}: expected one of {sorted(MINUTES)}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the embedded checkpoint.")
    parser.add_argument("--emoji", type=pathlib.Path, required=True, help="folder of .webp files")
    parser.add_argument("--names", type=pathlib.Path, required=True, help="data-by-emoji.json")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="where runs are kept")
    parser.add_argument("--stage", choices=[*MINUTES, "all"], default="all")
    parser.add_argument("--minutes", type=float, help="training time of each stage, in all")
    parser.add_argument(
        "--validate-every",
        type=int,
        default=0,
        metavar="N",
        help="steps of the denoiser between pictures in WORK/watch, for TensorBoard; 0 for none",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
