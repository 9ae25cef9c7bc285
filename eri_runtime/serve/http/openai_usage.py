"""The `usage` of a request: tokens that the text encoder reads, and tokens of pictures.

A picture's tokens are the patches of its latents, which are what the denoiser works on.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from eri_runtime.bundle import Bundle
from eri_runtime.errors import EriError
from eri_runtime.latents import token_count
from eri_runtime.serve.engine import Model
from eri_runtime.serve.messages import PictureRequest
from eri_runtime.text import PromptTokenizer

log = logging.getLogger(__name__)


class TokenCounter:
    """Counts tokens; opens the tokenizer of a model when it is first needed, and keeps it."""

    def __init__(self) -> None:
        self._tokenizers: dict[str, PromptTokenizer | None] = {}

    async def usage(
        self, model: Model, request: PictureRequest, size: tuple[int, int], pictures: int
    ) -> dict[str, Any] | None:
        """Returns OpenAI's usage object, or None if it cannot be counted.

        Args:
            model: The model.
            request: The request.
            size: Width and height of the pictures.
            pictures: How many were made.
        """
        try:
            text = await asyncio.to_thread(self._text_tokens, model, request)
            each = token_count(model.bundle.latents, size[1], size[0])
        except EriError as error:
            log.warning("no usage: %s", error)
            return None
        image = each if "image" in request.words else 0
        return {
            "total_tokens": text + image + each * pictures,
            "input_tokens": text + image,
            "output_tokens": each * pictures,
            "input_tokens_details": {"text_tokens": text, "image_tokens": image},
        }

    def _text_tokens(self, model: Model, request: PictureRequest) -> int:
        """Returns the tokens of prompt and negative prompt."""
        if model.name not in self._tokenizers:
            self._tokenizers[model.name] = _longest_tokenizer(model.bundle)
        tokenizer = self._tokenizers[model.name]
        texts = filter(None, (request.prompt, request.negative_prompt))
        return 0 if tokenizer is None else sum(map(tokenizer.count, texts))


def _longest_tokenizer(bundle: Bundle) -> PromptTokenizer | None:
    """Returns the tokenizer of a bundle that reads the most, or None if it has none."""
    if not bundle.tokenizers:
        return None
    name = max(bundle.tokenizers, key=lambda each: bundle.tokenizers[each].max_length)
    return PromptTokenizer(bundle, name)
