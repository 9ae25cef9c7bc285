"""peft's config of a LoRA: diffusers writes it into a file's metadata, peft into a file beside it.

Every option of peft's `LoraConfig` is in one of the lists below; a test compares them with peft's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from eri_runtime.errors import LoraError, short
from eri_runtime.files import parse_json

METADATA = "lora_adapter_metadata"
SCOPES = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")

HONOURED = frozenset({"lora_alpha", "alpha_pattern", "use_rslora", "peft_type"})
# what the tensors themselves say: their ranks, their modules, biases and magnitudes
IN_THE_TENSORS = frozenset({
    "r", "rank_pattern", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "modules_to_save", "bias", "lora_bias", "use_dora",
})  # fmt: skip
# about training, or where the base model came from
HARMLESS = frozenset({
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "lora_dropout", "fan_in_fan_out", "megatron_config", "megatron_core",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config",
    "runtime_config", "qalora_group_size", "ensure_weight_tying",
})  # fmt: skip
REFUSED: Mapping[str, str] = {
    "alora_invocation_tokens": "it is active only after certain tokens",
    "arrow_config": "it routes between several LoRAs",
    "kasa_config": "it changes the base model's weights",
    "layer_replication": "it repeats layers of the base model",
    "monteclora_config": "its weights are random",
    "target_parameters": "it changes parameters that are no layer",
    "trainable_token_indices": "it changes the embeddings of tokens",
    "use_bdlora": "its factors are block-diagonal",
    "use_qalora": "it averages the inputs of a layer in groups",
}
# ways to initialise a LoRA that leave the base model as it is
PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
TO_PLAIN = "save it with peft's `path_initial_model_for_weight_conversion`"

LARGEST_ALPHA = 1e30
LONGEST_PATTERN = 512  # characters, of a pattern and of a module's name
MANY_REPEATS = 3  # more could keep the matcher busy for minutes


@dataclass(frozen=True)
class Alphas:
    """The `lora_alpha`, `alpha_pattern` and `use_rslora` of a peft config.

    Attributes:
        config: The config; keys start with the component if the file has several, such as
            `unet.lora_alpha`.
    """

    config: Mapping[str, Any]

    def scale(self, module: str, rank: int) -> float:
        """Returns a module's scale: alpha / rank, or alpha / sqrt(rank) with rsLoRA.

        Raises `LoraError` if alpha is not a finite number, or a pattern cannot be used.
        """
        scope, _, name = module.partition(".")
        prefix, name = (f"{scope}.", name) if scope in SCOPES else ("", module)
        patterns = self.config.get(f"{prefix}alpha_pattern") or {}
        default = self.config.get(f"{prefix}lora_alpha", rank)
        alpha = next((patterns[each] for each in patterns if matches(each, name)), default)
        if (
            isinstance(alpha, bool)
            or not isinstance(alpha, int | float)
            or not abs(alpha) <= LARGEST_ALPHA
        ):
            raise LoraError(METADATA, got=f"an alpha of {short(alpha)}", expected="a number")
        return alpha / (math.sqrt(rank) if self.config.get(f"{prefix}use_rslora") else rank)


def matches(pattern: str, module: str) -> bool:
    """Returns whether a key of `alpha_pattern` is for this module.

    As in peft, it is a regular expression for the end of the name, from a dot on. Raises
    `LoraError` for an expression that is invalid, or that could take very long.
    """
    plain = re.sub(r"\\.", "", pattern, flags=re.DOTALL)
    repeats, nested = len(re.findall("[*+{]", plain)), re.search(r"\)[*+{]", plain)
    longest = max(len(pattern), len(module))
    if longest > LONGEST_PATTERN or repeats > MANY_REPEATS or nested:
        expected = f"at most {MANY_REPEATS} repeats, none of a group"
        raise LoraError("alpha_pattern", got=short(pattern), expected=expected)
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error as error:
        got = f"{short(pattern)} ({error})"
        raise LoraError("alpha_pattern", got=got, expected="a regular expression") from error


def read_alphas(metadata: Mapping[str, str]) -> Alphas:
    """Reads peft's config from a file's metadata.

    Raises `LoraError` if it is invalid, or has an option that cannot be merged.
    """
    text = metadata.get(METADATA, "{}")
    try:
        config = parse_json(text, infinite=True)
    except ValueError as error:
        raise LoraError(METADATA, got=short(text), expected="JSON") from error
    items = config.items() if isinstance(config, dict) else ()
    patterns = [value for key, value in items if key.endswith("alpha_pattern") and value]
    if not isinstance(config, dict) or not all(isinstance(each, dict) for each in patterns):
        raise LoraError(METADATA, got=short(text), expected="a config of peft")
    for name, value in _options(config):
        _check(name, value)
    return Alphas(config)


def _options(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the options without the component that they are for."""
    for key, value in config.items():
        scope, dot, name = key.partition(".")
        yield (name, value) if dot and scope in SCOPES else (key, value)


def _check(name: str, value: Any) -> None:
    """Raises `LoraError` for an option that changes the result in an unsupported way."""
    if name == "peft_type" and value not in (None, "LORA"):
        raise LoraError(name, got=short(value), expected="LORA")
    if name == "init_lora_weights" and value not in PLAIN_INITS:
        got = f"{short(value)}, which changes the base model's weights too"
        raise LoraError(name, got=got, expected="a plain LoRA", fix=TO_PLAIN)
    if name in REFUSED and value:
        raise LoraError(name, got=f"{short(value)}: {REFUSED[name]}", expected="a plain LoRA")
