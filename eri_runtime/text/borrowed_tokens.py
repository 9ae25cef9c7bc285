"""New tokens of a tokenizer, which borrow rows of the text encoder's table of embeddings.

The table in a graph has a fixed number of rows. A new token takes rows of rare pieces of words, and
a prompt with such a piece is refused while they are borrowed. So other prompts keep their bits.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from eri_runtime.errors import UsageError, short

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Rows = Mapping[str, Sequence[int]]
"""The rows of each token, one or several."""

WORD = re.compile(r"\w(.*\w)?", re.DOTALL)


class BorrowedTokens:
    """A tokenizer with new tokens.

    A token that begins and ends as a word does is read as a whole word only, others such as `<cat>`
    also beside letters.

    Args:
        tokenizer: A tokenizer of its own, which is changed.
        rows: The rows of each token.
        name: The tokenizer's name, for errors.
    """

    def __init__(self, tokenizer: Tokenizer, rows: Rows, name: str) -> None:
        from tokenizers import AddedToken

        self._pieces = {row: token for token, own in rows.items() for row in own}
        tokenizer.add_tokens(
            [AddedToken(token, single_word=bool(WORD.fullmatch(token))) for token in rows]
        )
        self._rows = {tokenizer.token_to_id(token): tuple(own) for token, own in rows.items()}
        self._tokenizer, self._name = tokenizer, name

    def encode(self, prompt: str) -> list[int]:
        """Returns a prompt's ids of any number, with the rows of each new token in its place.

        Raises `UsageError` for a prompt with a piece of a word whose row is borrowed.
        """
        return [row for rows in self.encode_tokens(prompt) for row in rows]

    def encode_tokens(self, prompt: str) -> list[tuple[int, ...]]:
        """Returns the rows of each of a prompt's tokens; raises as `encode` does."""
        encoding = self._tokenizer.encode(prompt)
        for row in encoding.ids:
            if row in self._pieces:
                raise UsageError(
                    f"prompt {short(prompt)}",
                    got=f"the piece {short(self._tokenizer.id_to_token(row))}, whose row of "
                    f"{self._name} the token {short(self._pieces[row])} has borrowed",
                    expected="other words",
                    fix="word it differently, or unload that token",
                )
        return [self._rows.get(each, (each,)) for each in encoding.ids]


def as_read(token: str) -> str:
    """Returns a token as a CLIP's tokenizer reads it: in lower case, with single spaces."""
    return " ".join(token.lower().split())


def spare_rows(tokenizer: Tokenizer, used: Collection[int], size: int) -> Iterator[int]:
    """Yields rows of a table of `size` to borrow, of the rarest pieces first.

    They are never special or in `used`, and below the largest special token's: some CLIPs find the
    end of a text as the largest id.
    """
    special = set(tokenizer.get_added_tokens_decoder())
    end = min(size, max(special, default=tokenizer.get_vocab_size()))
    return (row for row in range(end - 1, 0, -1) if row not in special and row not in used)
