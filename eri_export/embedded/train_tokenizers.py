"""Trains the tokenizers of the embedded checkpoint on its captions."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import string

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, T5Tokenizer

from eri_export.embedded import emoji_data
from eri_export.embedded.models import MAX_TOKENS

CLIP_VOCABULARY = 800
T5_SPECIALS, T5_SPACE = ("<pad>", "</s>", "<unk>"), "\u2581"
COMMON = 3  # a word with as many occurrences becomes one piece
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizers:
    """The three tokenizers of a Stable Diffusion 3 checkpoint."""

    clip_l: CLIPTokenizer
    clip_g: CLIPTokenizer
    t5: T5Tokenizer


def build_tokenizers() -> Tokenizers:
    """Trains all three on the captions; the result is deterministic."""
    corpus = [text for name in emoji_data.chosen_names() for text in variants(name)]
    vocabulary, merges = train_bpe(corpus)
    return Tokenizers(
        clip_l=_clip(vocabulary, merges, EOS),
        clip_g=_clip(vocabulary, merges, "!"),
        t5=T5Tokenizer(vocab=train_unigram(corpus), extra_ids=0, model_max_length=MAX_TOKENS),
    )


def variants(name: str) -> tuple[str, ...]:
    """Returns the captions of one emoji, also with a capital first letter."""
    texts = emoji_data.captions(name)
    return tuple(dict.fromkeys((*texts, *(text[:1].upper() + text[1:] for text in texts))))


def train_bpe(corpus: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Trains CLIP's vocabulary: bytes, bytes that end a word, merges, the two special tokens.

    Among equally frequent pairs the one with the lowest ids is merged first. The trainer of the
    `tokenizers` library is not used, as it breaks such ties differently in every process.
    """
    alphabet = sorted(ByteLevel.alphabet())
    pieces = [*alphabet, *(byte + WORD_END for byte in alphabet)]
    ids = {piece: index for index, piece in enumerate(pieces)}
    words = _count_words(corpus)
    merges: list[tuple[str, str]] = []
    while len(ids) < CLIP_VOCABULARY - 2:
        left, right = _most_frequent_pair(words, ids)
        merges.append((left, right))
        ids[left + right] = len(ids)
        words = {_merge(word, left, right): count for word, count in words.items()}
    return {**ids, BOS: len(ids), EOS: len(ids) + 1}, merges


def _count_words(corpus: list[str]) -> dict[tuple[str, ...], int]:
    """Counts the words, as tuples of bytes of which the last one is marked as the word's end."""
    backend = _clip({BOS: 0, EOS: 1}, [], EOS).backend_tokenizer
    counts: collections.Counter[tuple[str, ...]] = collections.Counter()
    for text in corpus:
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(
            backend.normalizer.normalize_str(text)
        ):
            counts[(*word[:-1], word[-1] + WORD_END)] += 1
    return dict(counts)


def _most_frequent_pair(words: dict[tuple[str, ...], int], ids: dict[str, int]) -> tuple[str, str]:
    """Returns the most frequent pair of neighbouring pieces."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for word, count in words.items():
        for pair in itertools.pairwise(word):
            counts[pair] += count
    return min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]))


def _merge(word: tuple[str, ...], left: str, right: str) -> tuple[str, ...]:
    """Joins every `left` that is followed by `right`."""
    merged: list[str] = []
    for piece in word:
        if merged and merged[-1] == left and piece == right:
            merged[-1] = left + right
        else:
            merged.append(piece)
    return tuple(merged)


def train_unigram(corpus: list[str]) -> list[tuple[str, float]]:
    """Returns T5's vocabulary with log-probabilities: <pad>, </s>, <unk>, words, characters."""
    counts = collections.Counter(word for text in corpus for word in text.split())
    total = counts.total()
    words = sorted(word for word, count in counts.items() if count >= COMMON)
    characters = sorted(set(string.printable) - set(string.whitespace))
    pieces = [(T5_SPACE + word, math.log(counts[word] / total)) for word in words]
    rare = math.log(0.1 / total)
    return [
        *((special, 0.0) for special in T5_SPECIALS),
        *pieces,
        *((character, rare) for character in (T5_SPACE, *characters)),
    ]


def _clip(vocabulary: dict[str, int], merges: list[tuple[str, str]], padding: str) -> CLIPTokenizer:
    """Builds a CLIP tokenizer."""
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, pad_token=padding, model_max_length=MAX_TOKENS
    )
