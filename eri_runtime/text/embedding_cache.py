"""A cache of prompt embeddings, in memory and optionally in files that outlive the process."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext

from eri_runtime.bundle import Bundle, WeightHashes
from eri_runtime.text.conditioning import Condition, Encode, check_encoders
from eri_runtime.text.embedding_files import EmbeddingFiles, Shapes
from eri_runtime.text.prompts import Text
from eri_runtime.text.syntax import WeightedText

MEMORY = 256 << 20  # bytes per pipeline; Flux's T5 gives 8 MB per prompt
SCHEMA = 1  # version of the files; increase it if the same key would stand for other numbers

Key = tuple[Text, int, Hashable]  # text, number of tokens, state of the weights


class EmbeddingCache:
    """Encodes prompts to a `Condition`, each prompt only once. Threads may share it.

    Each prompt is encoded alone, so that its bits do not depend on other prompts. The most recently
    used embeddings stay in memory. A text encoder is opened only if a prompt must be encoded.

    Args:
        bundle: The bundle of the text encoders.
        encode: Encodes a list of prompts to a number of T5 tokens, such as `TextEncoders`.
        hashes: Compares the text encoders' files with the manifest.
        state: Returns what identifies the text encoders' weights, or None for the bundle's own.
            Only embeddings of the bundle's own weights are kept in files.
        read_lock: Returns a context manager within which `state()` does not change.
        engine: The engine and its options, as text; they are part of a file's key.
        files: Where to keep embeddings on disk, but those of texts with weights. Default: only in
            memory.
        limit: Bytes to keep in memory.
    """

    def __init__(
        self,
        bundle: Bundle,
        encode: Encode,
        *,
        hashes: WeightHashes | None = None,
        state: Callable[[], Hashable | None] = lambda: None,
        read_lock: Callable[[], AbstractContextManager[object]] = nullcontext,
        engine: str = "",
        files: EmbeddingFiles | None = None,
        limit: int = MEMORY,
    ) -> None:
        self._bundle, self._encode = bundle, encode
        self._hashes = WeightHashes(bundle) if hashes is None else hashes
        self._state, self._read_lock = state, read_lock
        self._engine, self._files, self._limit = engine, files, limit
        self._entries: dict[Key, Condition] = {}  # the least recently used first
        self._lock, self._encode_lock = threading.Lock(), threading.Lock()

    def windows(self, text: WeightedText) -> int:
        """Returns how many windows a weighted text takes; see `TextEncoders.windows`."""
        return self._encode.windows(text)

    def __call__(self, prompts: Sequence[Text], max_sequence_length: int) -> Condition:
        """Returns the condition of a batch of prompts, in new arrays.

        Args:
            prompts: The prompts, B texts, or for each one text per encoder.
            max_sequence_length: Number of T5 tokens; SDXL ignores it.

        Raises:
            UsageError: If the bundle has no text encoders.
            SizeError: If the text encoders do not accept this length.
            IntegrityError: Before embeddings are read from or written to a file, if the text
                encoders' files are not those of the manifest.
        """
        check_encoders(self._bundle)
        if not prompts:
            return self._encode(prompts, max_sequence_length)
        with self._read_lock():
            state = self._state()
            keys: list[Key] = [(text, max_sequence_length, state) for text in prompts]
            conditions = {key: self._lookup_or_encode(key) for key in dict.fromkeys(keys)}
        return Condition.stack([conditions[key] for key in keys])

    def _lookup_or_encode(self, key: Key) -> Condition:
        """Returns one prompt's condition from memory, from a file, or by encoding it."""
        condition = self._lookup(key)
        if condition is not None:
            return condition
        with self._encode_lock:  # another thread may have encoded it while this one waited
            condition = self._lookup(key)
            if condition is None:
                condition = self._read_or_encode(key)
                self._store(key, condition)
            return condition

    def _lookup(self, key: Key) -> Condition | None:
        """Returns the condition in memory, marked as the most recently used, or None."""
        with self._lock:
            if key in self._entries:
                self._entries[key] = self._entries.pop(key)
            return self._entries.get(key)

    def _store(self, key: Key, condition: Condition) -> None:
        """Adds a condition to memory and evicts the least recently used ones above the limit."""
        with self._lock:
            self._entries[key] = condition
            excess = sum(map(_nbytes, self._entries.values())) - self._limit
            for oldest in list(self._entries)[:-1]:
                if excess > 0:
                    excess -= _nbytes(self._entries.pop(oldest))

    def _read_or_encode(self, key: Key) -> Condition:
        """Reads one prompt's condition from its file, or encodes it and writes the file."""
        text, length, state = key
        if self._files is None or state is not None or not isinstance(text, str):
            return self._encode([text], length)
        self._verify()
        name = embedding_key(self._bundle, self._engine, text, length)
        condition = self._files.read(name, embedding_shapes(self._bundle, length))
        if condition is None:
            condition = self._encode([text], length)
            self._files.write(name, condition)
        return condition

    def _verify(self) -> None:
        """Raises `IntegrityError` if the encoders' files are not those that a key stands for.

        Embeddings in a file may be read without an encoder being opened, whose weights are hashed
        only then. And those of damaged weights would stay wrong after the bundle is mended.
        """
        names = encoder_files(self._bundle)
        self._hashes.check_all(names)
        self._bundle.check_unchanged(names)


def embedding_key(bundle: Bundle, engine: str, text: Text, length: int) -> str:
    """Returns the sha256 (hex) of everything that determines a prompt's embeddings.

    That is the text encoders' graphs, weights and plans, the tokenizers, the engine described by
    `engine`, the text, and the shapes of the embeddings, which depend on `length`.
    """
    sums = sorted((name, bundle.files[name].sha256) for name in encoder_files(bundle))
    parts = [SCHEMA, bundle.family, sums, engine, text, length, embedding_shapes(bundle, length)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def encoder_files(bundle: Bundle) -> list[str]:
    """Returns the files that prompts are encoded with, by their names in the bundle."""
    encoders = [name for name in bundle.components if name.startswith("text_encoder")]
    return [
        *(file for name in encoders for file in _files(bundle, name)),
        *(tokenizer.file for tokenizer in bundle.tokenizers.values()),
    ]


def embedding_shapes(bundle: Bundle, length: int) -> Shapes:
    """Returns the shapes of one prompt's condition, as the denoiser's inputs define them."""
    widths = {tensor.name: tensor.shape[-1] for tensor in bundle.components["denoiser"].inputs}
    clip = 0 if bundle.family == "flux" else bundle.tokenizers["tokenizer"].max_length
    tokens = clip if bundle.family == "sdxl" else clip + length
    pooled = "text_embeds" if bundle.family == "sdxl" else "pooled_projections"
    return {
        "embeds": (1, tokens, int(widths["encoder_hidden_states"])),
        "pooled": (1, int(widths[pooled])),
    }


def _files(bundle: Bundle, component: str) -> list[str]:
    """Returns the files that a component runs from, by their names in the bundle."""
    spec = bundle.components[component]
    plans = [file for file, plan in bundle.plans.items() if plan.component == component]
    form = spec.graph.removesuffix(".onnx") + ".cuda.onnx"
    return [spec.graph, *([form] if form in bundle.files else []), spec.weights, *plans]


def _nbytes(condition: Condition) -> int:
    """Returns the size of a condition's arrays in bytes."""
    return condition.embeds.nbytes + condition.pooled.nbytes
