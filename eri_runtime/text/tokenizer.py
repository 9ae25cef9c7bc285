"""Tokenizes prompts with the checkpoint's own `tokenizer.json`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import Bundle, TokenizerSpec
from eri_runtime.errors import BundleError, EriError, SizeError, short
from eri_runtime.files import read_regular_file
from eri_runtime.text.borrowed_tokens import BorrowedTokens, Rows, spare_rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PANIC = "PanicException"  # of a library in Rust; it is no Exception, and has no module to import

log = logging.getLogger(__name__)


class PromptTokenizer:
    """A tokenizer that pads or truncates every prompt to one length, as diffusers' pipelines do.

    Attributes:
        spec: What the manifest says of it.
        name: Its name in the bundle.
        rows: The rows of each token that was added to its vocabulary.
    """

    def __init__(self, bundle: Bundle, name: str) -> None:
        """Reads the tokenizer `name` of a bundle."""
        self.spec: TokenizerSpec = bundle.tokenizers[name]
        self._file = bundle.path(self.spec.file)
        self.name = name
        file = self.spec.file
        self._open: Callable[[], Tokenizer] = lambda: _open(bundle.pinned_path(file))
        self._tokenizer = self._open()
        self._borrowed: BorrowedTokens | None = None
        self.rows: Rows = {}

    def __call__(self, prompts: Sequence[str], length: int | None = None) -> NDArray[np.int64]:
        """Returns token ids (B, length) int64.

        A longer prompt is truncated, keeps its closing special token, and is logged. `length`
        defaults to the encoder's maximum; raises `SizeError` if it is below 2 or above that.
        """
        length = self.spec.max_length if length is None else length
        if not 2 <= length <= self.spec.max_length:
            expected = f"2 to {self.spec.max_length}"
            raise SizeError(f"{self.name}: token length", got=length, expected=expected)
        borrowed = self._borrowed
        self._tokenizer.enable_truncation(length)
        ids = np.full((len(prompts), length), self.spec.pad_id, dtype=np.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            if borrowed is None:
                with _tokenizer_errors(self._file):
                    encoding = self._tokenizer.encode(prompt)
                own, is_cut = encoding.ids, bool(encoding.overflowing)
            else:
                with _tokenizer_errors(self._file):
                    whole = borrowed.encode(prompt)
                is_cut = len(whole) > length
                own = [*whole[: length - 1], whole[-1]] if is_cut else whole
            row[: len(own)] = own
            if is_cut:
                log.warning("%s: %s is cut to %d tokens", self.name, short(prompt), length)
        return ids

    def tokens(self, text: str) -> list[tuple[int, ...]]:
        """Returns the rows of each token of a text of any length, without special tokens."""
        with _tokenizer_errors(self._file):
            if self._borrowed is not None:
                whole = self._borrowed.encode_tokens(text)
            else:
                whole = [(each,) for each in self._whole.encode(text).ids]
        return whole[len(self.ends[0]) : -1]

    @cached_property
    def ends(self) -> tuple[tuple[int, ...], int]:
        """The special tokens before a text, CLIP's one or none, and the one behind it."""
        with _tokenizer_errors(self._file):
            *front, end = self._whole.encode("").ids
        return tuple(front), end

    @cached_property
    def _whole(self) -> Tokenizer:
        """The tokenizer without truncation, which another thread may turn on in `_tokenizer`."""
        return self._open()

    def count(self, prompt: str) -> int:
        """Returns how many tokens of a prompt the text encoder reads, special ones included."""
        with _tokenizer_errors(self._file):
            return min(len(self._tokenizer.encode(prompt).ids), self.spec.max_length)

    def has(self, token: str) -> bool:
        """Returns whether a token is in the tokenizer's own vocabulary."""
        return self._tokenizer.token_to_id(token) is not None

    def spare_rows(self, count: int, size: int) -> list[int]:
        """Returns rows of the table of embeddings for a new token, of the rarest pieces of words.

        They are fewer than `count` if the table, of `size` rows, has no more.
        """
        used = {row for own in self.rows.values() for row in own} | {self.spec.pad_id}
        return [*islice(spare_rows(self._tokenizer, used, size), count)]

    def set_tokens(self, rows: Rows) -> None:
        """Replaces the tokens that were added to the vocabulary, each with its rows."""
        self._borrowed = BorrowedTokens(self._open(), rows, self.name) if rows else None
        self.rows = dict(rows)


def _open(file: Path) -> Tokenizer:
    """Reads a tokenizer and turns its own padding and truncation off.

    Raises `BundleError` for a file that the library cannot read.
    """
    from tokenizers import Tokenizer

    with _tokenizer_errors(file):
        tokenizer = Tokenizer.from_str(read_regular_file(file).decode("utf-8"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
    return tokenizer


def is_library_error(error: BaseException) -> bool:
    """Returns whether an error may be the package tokenizers' own, and no Ctrl-C or exit."""
    return isinstance(error, Exception) or type(error).__name__ == PANIC


@contextmanager
def _tokenizer_errors(file: Path) -> Iterator[None]:
    """Turns every error of the library, which has no types for them, into a `BundleError`."""
    try:
        yield
    except EriError:
        raise
    except BaseException as error:
        if not is_library_error(error):
            raise
        expected = "a tokenizer that the package tokenizers reads"
        fix = "export the checkpoint again with `eri export`"
        raise BundleError(file, got=short(str(error)), expected=expected, fix=fix) from error
