"""Prompts to token ids, with the checkpoint's own `tokenizer.json`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import SizeError
from eri_runtime.spec import Bundle, TokenizerSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)


class PromptTokenizer:
    """A tokenizer that fills and cuts every prompt to one length, as diffusers' pipelines do."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        from tokenizers import Tokenizer

        self.spec: TokenizerSpec = bundle.tokenizers[name]
        self.name = name
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(bundle.path(self.spec.file)))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def __call__(self, prompts: Sequence[str], length: int | None = None) -> NDArray[np.int64]:
        """(B, length) int64 ids, `length` at most the encoder's own, which is the default.

        Longer prompts lose their end, but keep the closing special token, and are logged.
        """
        length = self.spec.max_length if length is None else length
        if not 2 <= length <= self.spec.max_length:
            expected = f"2 to {self.spec.max_length}"
            raise SizeError(f"{self.name}: token length", got=length, expected=expected)
        self._tokenizer.enable_truncation(length)
        ids = np.full((len(prompts), length), self.spec.pad_id, dtype=np.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            encoding = self._tokenizer.encode(prompt)
            row[: len(encoding.ids)] = encoding.ids
            if encoding.overflowing:
                log.warning("%s: %r is cut to %d tokens", self.name, prompt, length)
        return ids
