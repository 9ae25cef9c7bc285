"""Trains the embedded checkpoints.

    python -m eri_export.embedded.train --emoji ASSETS --names data-by-emoji.json --work DIR
        [--family sd35|sdxl|flux]

ASSETS is `assets/` of npm `@lobehub/fluent-emoji-3d` 1.1.0, the names are from npm
`unicode-emoji-json` 0.9.0. SDXL and Flux use the shipped text encoders of sd35 and start from its
autoencoder. If the command is killed, running it again resumes the training.
"""

from __future__ import annotations

import argparse
import logging
import pathlib

import torch

from eri_export.embedded import (
    FAMILIES,
    checkpoint,
    emoji_data,
    models,
    other_families,
    train_denoiser,
    train_flux,
    train_unet,
    train_vae,
    write_checkpoint,
)
from eri_export.embedded.caption_embeddings import CaptionEmbeddings, embedded_captions

# training minutes of each stage, in order
MINUTES = {
    "sd35": {"decoder": 22.0, "denoiser": 46.0, "encoder": 5.0, "pack": 0.0},
    "sdxl": {"decoder": 10.0, "denoiser": 40.0, "pack": 0.0},
    "flux": {"denoiser": 40.0, "pack": 0.0},
}
STAGES = tuple(MINUTES["sd35"])


def main() -> None:
    """Runs the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments = _parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    samples = emoji_data.find_samples(arguments.emoji, arguments.names)
    images = torch.from_numpy(emoji_data.load_images(samples, models.IMAGE_SIZE))
    work, family = arguments.work, arguments.family
    if family != "sd35":
        work = work / family
        work.mkdir(exist_ok=True)
    for stage in MINUTES[family] if arguments.stage == "all" else (arguments.stage,):
        minutes = MINUTES[family].get(stage) if arguments.minutes is None else arguments.minutes
        run_stage(
            family, stage, work, images, minutes=minutes or 0.0, every=arguments.validate_every
        )


def run_stage(
    family: str,
    stage: str,
    work: pathlib.Path,
    images: torch.Tensor,
    *,
    minutes: float,
    every: int = 0,
) -> None:
    """Trains one part of a family or writes its checkpoint; raises ValueError if unknown."""
    target = pathlib.Path(__file__).with_name(FAMILIES[family])
    match family, stage:
        case "sd35", "decoder":
            train_vae.train_decoder(work, images, minutes=minutes)
        case "sd35", "encoder":
            train_vae.train_encoder(work, images, minutes=minutes)
        case "sd35", "denoiser":
            train_denoiser.train_denoiser(work, images, minutes=minutes, every=every)
        case "sd35", "pack":
            write_checkpoint.pack(work, target)
        case "sdxl", "decoder":
            other_families.train_sdxl_decoder(work, images, minutes=minutes)
        case "sdxl", "denoiser":
            train_unet.train_unet(work, images, _captions(), minutes=minutes)
        case "sdxl", "pack":
            other_families.pack_sdxl(work, images, target)
        case "flux", "denoiser":
            train_flux.train_flux(work, images, _captions(), minutes=minutes)
        case "flux", "pack":
            other_families.pack_flux(work, target)
        case _:
            raise ValueError(f"stage {stage!r}: {family} has {', '.join(MINUTES[family])}")


def _captions() -> CaptionEmbeddings:
    """Embeds all captions with the text encoders of sd35."""
    return embedded_captions(checkpoint("sd35"))


def _parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description="Train an embedded checkpoint.")
    parser.add_argument("--family", choices=[*MINUTES], default="sd35")
    parser.add_argument("--emoji", type=pathlib.Path, required=True, help="folder of .webp files")
    parser.add_argument("--names", type=pathlib.Path, required=True, help="data-by-emoji.json")
    parser.add_argument(
        "--work", type=pathlib.Path, required=True, help="folder of the runs' states"
    )
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--minutes", type=float, help="total training time of each stage")
    parser.add_argument(
        "--validate-every",
        type=int,
        default=0,
        metavar="N",
        help="draw for TensorBoard in WORK/watch every N steps of sd35's denoiser; 0: never",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
