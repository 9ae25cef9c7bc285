"""Assembles the embedded checkpoint of a family as one complete diffusers folder.

    python -m eri_export.embedded.assemble flux checkpoints/emoji-flux

`emoji-sd35` is complete. The folders of the other families hold only their own components; the text
encoders, the tokenizers and Flux's autoencoder come from `emoji-sd35`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from eri_export.embedded import FAMILIES, checkpoint
from eri_runtime.errors import EriError, UsageError
from eri_runtime.unfinished import temporary_folder

# component -> the component of emoji-sd35 that it is a copy of
SHARED: Mapping[str, Mapping[str, str]] = {
    "sd35": {},
    "sdxl": {
        "text_encoder": "text_encoder",
        "text_encoder_2": "text_encoder_2",
        "tokenizer": "tokenizer",
        "tokenizer_2": "tokenizer_2",
    },
    "flux": {
        "vae": "vae",
        "text_encoder": "text_encoder",
        "text_encoder_2": "text_encoder_3",
        "tokenizer": "tokenizer",
        "tokenizer_2": "tokenizer_3",
    },
}


def assemble(family: str, target: Path) -> Path:
    """Copies the complete checkpoint of a family to `target`, atomically.

    Args:
        family: `sd35`, `sdxl` or `flux`.
        target: A folder that is empty or does not exist yet.

    Returns:
        `target`.

    Raises:
        UnknownNameError: If there is no such family.
        UsageError: If `target` exists and is not an empty folder.
    """
    own = checkpoint(family)
    target = Path(target)
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        fix = "name another folder, or remove it"
        raise UsageError(target, got="something that exists", expected="a new folder", fix=fix)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        shutil.copytree(own, partial)
        for name, source in SHARED[family].items():
            shutil.copytree(checkpoint("sd35") / source, partial / name)
        partial.replace(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


@contextlib.contextmanager
def assembled(family: str) -> Iterator[Path]:
    """Yields a folder with the complete checkpoint of a family, which may be temporary."""
    if not SHARED[family]:
        yield checkpoint(family)
        return
    with temporary_folder() as folder:
        yield assemble(family, folder / FAMILIES[family])


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Assemble an embedded checkpoint.")
    parser.add_argument("family", choices=[*FAMILIES])
    parser.add_argument("target", type=Path, metavar="FOLDER", help="an empty or new folder")
    options = parser.parse_args()
    try:
        assemble(options.family, options.target)
    except (EriError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
