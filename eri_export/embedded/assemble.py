"""Put the embedded checkpoint of a family together as one diffusers folder.

    python -m eri_export.embedded.assemble flux checkpoints/emoji-flux

`emoji-sd35` is whole; the folders of the other families hold what is their own, and take text
encoders, tokenizers and Flux's autoencoder from it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from eri_export.embedded import FAMILIES, checkpoint
from eri_runtime.errors import EriError, UsageError

# component -> the component of emoji-sd35 that it is
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
    """Copy the whole checkpoint of a family into `target`, which must be new or empty.

    It appears complete or not at all. Raises `UnknownNameError` for another family and
    `UsageError` where something is in the way.
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
    """The whole checkpoint of a family, for as long as the block lasts."""
    if not SHARED[family]:
        yield checkpoint(family)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield assemble(family, Path(folder) / FAMILIES[family])


def main() -> None:
    """Assemble the family asked for, where asked for."""
    parser = argparse.ArgumentParser(description="Put an embedded checkpoint together.")
    parser.add_argument("family", choices=[*FAMILIES])
    parser.add_argument("target", type=Path, metavar="FOLDER", help="new, or empty")
    options = parser.parse_args()
    try:
        assemble(options.family, options.target)
    except (EriError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
