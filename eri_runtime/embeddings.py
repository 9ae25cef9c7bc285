"""Prompts' embeddings that are remembered: in memory, and in files from one process to the next."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext

from eri_runtime.conditioning import Condition, check_encoders
from eri_runtime.embedding_files import EmbeddingFiles, Shapes
from eri_runtime.guiding import Encode
from eri_runtime.live import LiveWeights
from eri_runtime.spec import Bundle

MEMORY = 256 << 20  # bytes of one pipeline; Flux's T5 gives 8 MB a prompt
SCHEMA = 1  # of the files; raise it when the same key would mean other numbers

Key = tuple[str, int, Hashable]  # text, tokens, which weights


class Embeddings:
    """Prompts to a `Condition`, as `encode` makes it, and each only once.

    A prompt is encoded alone, so that its bits depend on no other. Those used last are kept, up to
    `limit` bytes, and all in `files` if there are any; where nothing has to be encoded, no text
    encoder is opened. Threads may share it.

    `state` says which weights the text encoders have: None for the bundle's own, and files are for
    those alone. It must not change within a `turn`. `words` are the engine and its options.
    """

    def __init__(
        self,
        bundle: Bundle,
        encode: Encode,
        *,
        state: Callable[[], Hashable | None] = lambda: None,
        turn: Callable[[], AbstractContextManager[object]] = nullcontext,
        words: str = "",
        files: EmbeddingFiles | None = None,
        limit: int = MEMORY,
    ) -> None:
        self._bundle, self._encode, self._state, self._turn = bundle, encode, state, turn
        self._words, self._files, self._limit = words, files, limit
        self._known: dict[Key, Condition] = {}
        self._lock, self._encoding = threading.Lock(), threading.Lock()

    def __call__(self, prompts: Sequence[str], max_sequence_length: int) -> Condition:
        """The condition of a batch of prompts, in arrays of its own; raises what `encode` does."""
        check_encoders(self._bundle)
        if not prompts:
            return self._encode(prompts, max_sequence_length)
        with self._turn():
            state = self._state()
            keys: list[Key] = [(text, max_sequence_length, state) for text in prompts]
            found = {key: self._found(key) for key in dict.fromkeys(keys)}
        return Condition.stack([found[key] for key in keys])

    def _found(self, key: Key) -> Condition:
        known = self._remembered(key)
        if known is not None:
            return known
        with self._encoding:  # who has waited may find what it wants
            known = self._remembered(key)
            if known is None:
                known = self._read_or_made(key)
                self._remember(key, known)
            return known

    def _remembered(self, key: Key) -> Condition | None:
        with self._lock:
            if key in self._known:
                self._known[key] = self._known.pop(key)  # the last used is the last to go
            return self._known.get(key)

    def _remember(self, key: Key, condition: Condition) -> None:
        with self._lock:
            self._known[key] = condition
            spare = sum(map(_nbytes, self._known.values())) - self._limit
            for each in list(self._known)[:-1]:
                if spare > 0:
                    spare -= _nbytes(self._known.pop(each))

    def _read_or_made(self, key: Key) -> Condition:
        text, length, state = key
        if self._files is None or state is not None:
            return self._encode([text], length)
        name = digest(self._bundle, self._words, text, length)
        condition = self._files.read(name, shapes(self._bundle, length))
        if condition is None:
            condition = self._encode([text], length)
            self._files.write(name, condition)
        return condition


def encoder_state(bundle: Bundle, live: LiveWeights) -> Hashable | None:
    """What tells the weights of the text encoders apart; None for the bundle's own."""
    encoders = [name for name in bundle.components if name.startswith("text_encoder")]
    changed = any(live.overrides(name) for name in encoders)
    return tuple(live.swaps(name) for name in encoders) if changed else None


def digest(bundle: Bundle, words: str, text: str, length: int) -> str:
    """The sha256 (hex) of all that decides a prompt's embeddings.

    That is the text encoders' graphs, weights and plans, the tokenizers, the engine in `words`, the
    text, and the shape of what comes out, which `length` decides.
    """
    encoders = [name for name in bundle.components if name.startswith("text_encoder")]
    files = [
        *(file for name in encoders for file in _files(bundle, name)),
        *(each.file for each in bundle.tokenizers.values()),
    ]
    sums = sorted((name, bundle.files[name].sha256) for name in files)
    decides = [SCHEMA, bundle.family, sums, words, text, length, shapes(bundle, length)]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def shapes(bundle: Bundle, length: int) -> Shapes:
    """Those of one prompt's condition, as the denoiser takes it."""
    widths = {each.name: each.shape[-1] for each in bundle.components["denoiser"].inputs}
    clip = 0 if bundle.family == "flux" else bundle.tokenizers["tokenizer"].max_length
    tokens = clip if bundle.family == "sdxl" else clip + length
    pooled = "text_embeds" if bundle.family == "sdxl" else "pooled_projections"
    return {
        "embeds": (1, tokens, int(widths["encoder_hidden_states"])),
        "pooled": (1, int(widths[pooled])),
    }


def _files(bundle: Bundle, component: str) -> list[str]:
    """The files that a component is run from, by their names in the bundle."""
    spec = bundle.components[component]
    plans = [file for file, plan in bundle.plans.items() if plan.component == component]
    return [spec.graph, spec.weights, *plans]


def _nbytes(condition: Condition) -> int:
    return condition.embeds.nbytes + condition.pooled.nbytes
