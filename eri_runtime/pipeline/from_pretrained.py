"""diffusers' arguments of `from_pretrained`: which say nothing new, and what to do for the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from eri_runtime.checks import did_you_mean
from eri_runtime.errors import UnknownNameError, UsageError, short

TRUE_ALREADY: Mapping[str, tuple[Any, ...]] = {
    "use_safetensors": (True, None),
    "local_files_only": (True, False),
    "low_cpu_mem_usage": (True, False),
    "safety_checker": (None,),
    "requires_safety_checker": (False,),
    "feature_extractor": (None,),
    "variant": (None,),
    "torch_dtype": (None,),
    "dtype": (None,),
    "device_map": (None,),
    "add_watermarker": (False, None),
}
ELSEWHERE: Mapping[str, str] = {
    "torch_dtype": "choose it at export, with `eri export --precision`",
    "dtype": "choose it at export, with `eri export --precision`",
    "variant": "name the variant's files to `eri export`",
    "device_map": "pass backend= and memory=",
    "scheduler": "pass sampler= and sigmas= to the call",
    "revision": "name it to `eri export`",
    "vae": "export the checkpoint with that VAE",
    "custom_pipeline": "write your own loop with pipe.request and pipe.denoise",
}


def load_words(options: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """Returns the options that are `load`'s own; `own` are their names.

    Raises `UsageError` for one of diffusers' that has no effect on a bundle, and `UnknownNameError`
    for any other.
    """
    words = {}
    for name, value in options.items():
        if name in own:
            words[name] = value
        elif name in TRUE_ALREADY and any(value is each for each in TRUE_ALREADY[name]):
            continue
        elif name in TRUE_ALREADY or name in ELSEWHERE:
            expected = "options of eri_runtime.load, as a bundle is exported already"
            raise UsageError(name, got=short(value), expected=expected, fix=ELSEWHERE.get(name))
        else:
            fix, expected = did_you_mean(name, own), "an option of eri_runtime.load"
            raise UnknownNameError("option", got=short(name), expected=expected, fix=fix)
    return words
