"""Opens checkpoints of every layout: folders, single files and ids of the Hugging Face Hub.

One module per layout: `folder`, `single_file`, `hub`; `extra_components` adds a VAE and text
encoders from elsewhere. Start with `open_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eri_export.checkpoints.checkpoint import Checkpoint
from eri_export.checkpoints.sources.config_files import PICKLES
from eri_export.checkpoints.sources.extra_components import with_extras, with_tokenizers
from eri_export.checkpoints.sources.folder import INDEX, open_folder
from eri_export.checkpoints.sources.hub import resolve
from eri_export.checkpoints.sources.scheduler_presets import with_scheduler
from eri_export.checkpoints.sources.single_file import open_file
from eri_runtime import checks
from eri_runtime.bundle import pickle_error
from eri_runtime.errors import NotACheckpointError, UsageError
from eri_runtime.files import is_regular


def open_checkpoint(
    path: str | Path,
    *,
    config: str | Path | None = None,
    vae: str | Path | None = None,
    text_encoders: Sequence[str | Path] = (),
    variant: str | None = None,
    revision: str | None = None,
    scheduler: str | Path | None = None,
) -> Checkpoint:
    """Opens a checkpoint without reading its weights.

    Args:
        path: A diffusers folder, a safetensors or GGUF file, or an id of the Hub, OWNER/NAME
            or OWNER/NAME:FILE, which is downloaded to the Hub's cache.
        config: A folder of configs and tokenizers in diffusers' layout, for a single file;
            default: those of the published model nearest to it.
        vae: A file or folder, or OWNER/NAME:FILE, with a VAE that replaces or completes the
            checkpoint's; default: the checkpoint's own.
        text_encoders: Files or folders, or OWNER/NAME:FILE, with text encoders that replace or
            complete the checkpoint's.
        variant: The variant of a folder's weights to read, such as "fp16"; default: the plain ones.
        revision: The branch, tag or commit of the Hub's repository; default: "main".
        scheduler: The scheduler instead of the checkpoint's: "turbo", "lightning", "hyper", "lcm"
            or "tcd" for a model distilled so, or a `scheduler_config.json`, or a folder with one.

    Returns:
        The checkpoint, with a config and a tokenizer for every text encoder.

    Raises:
        NotACheckpointError: If the path is no checkpoint, or a file of it is missing.
        PickleError: If the weights are pickled; pickles are never opened.
        CheckpointError: If it is a model that cannot be exported, or its configs do not fit.
        DamagedWeightsError: If a safetensors header is damaged or its weights are incomplete.
        HubError: If the Hub's repository cannot be downloaded.
        UsageError: If an argument does not apply to this layout or family.
        UnknownNameError: If `scheduler` is neither a preset nor a config.

    Example:
        With the checkpoint of a published model in `./sdxl`:

            checkpoint = open_checkpoint("./sdxl", variant="fp16")
            print(checkpoint.family, checkpoint.denoiser.parameters)
    """
    checks.path("checkpoint", path)
    for name, value in {"vae": vae, "config": config, "scheduler": scheduler}.items():
        if value is not None:
            checks.path(name, value)
    for i, each in enumerate(text_encoders):
        checks.path(f"text_encoders[{i}]", each)
    if Path(path).suffix.lower() in PICKLES and is_regular(path):
        raise pickle_error(path, path)
    root = resolve(path, revision=revision, variant=variant)
    file = _single_file(root)
    if file is None:
        if config is not None:
            got = f"{config}, with a folder that has configs of its own"
            raise UsageError("config", got=got, expected="a single file to go with it")
        opened = open_folder(root, variant=variant)
    else:
        if variant is not None:
            raise UsageError("variant", got=variant, expected="a folder, which may have variants")
        opened = open_file(file, config=Path(config) if config else None)
    supplied = with_extras(
        opened,
        vae=resolve(vae) if vae else None,
        text_encoders=[resolve(each) for each in text_encoders],
    )
    complete = with_tokenizers(supplied)
    return complete if scheduler is None else with_scheduler(complete, scheduler)


def _single_file(root: Path) -> Path | None:
    """Returns `root` if it is a file, or the only weights file of a folder without an index.

    None for a diffusers folder. Raises `NotACheckpointError` for a folder of several such files.
    """
    if not root.is_dir():
        return root
    if (root / INDEX).is_file():
        return None
    files = sorted((*root.glob("*.safetensors"), *root.glob("*.gguf")))
    if len(files) > 1:
        raise NotACheckpointError(
            root,
            got=f"a folder holding {[file.name for file in files[:8]]}",
            expected=f"a diffusers folder with {INDEX}, or one safetensors or GGUF file",
            fix="name one of the files",
        )
    return files[0] if files else None
