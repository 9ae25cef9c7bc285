"""Embeddings of weighted prompts: a NumPy oracle on the text encoders' own outputs.

The oracle restates AUTOMATIC1111's rules by itself: the text between weights is tokenized apart,
windows are filled token by token, and z' = w·z·mean(z)/mean(w·z) for each window.
"""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

import eri_runtime as eri
from eri_runtime.errors import SizeError, UsageError
from eri_runtime.text.syntax import parse_emphasis
from eri_runtime.text.windows import cut_windows

LENGTH = 8  # tokens of T5
REACH = 20  # of a comma
LONG = ", ".join(["a red heart on a blue ground"] * 3)
# a prompt, and the same as pieces with weights; None for BREAK
PROMPTS = [
    ("a (red:1.4) heart", [("a ", 1), ("red", 1.4), (" heart", 1)]),
    ("a ((red)) [heart]", [("a ", 1), ("red", 1.1 * 1.1), (" ", 1), ("heart", 1 / 1.1)]),
    ("(all of it:0.6)", [("all of it", 0.6)]),
    (
        "a (red:1.3) heart BREAK (two:-0.5) cats",
        [("a ", 1), ("red", 1.3), (" heart", 1), None, ("two", -0.5), (" cats", 1)],
    ),
    (f"{LONG} (dog:1.2)", [(f"{LONG} ", 1), ("dog", 1.2)]),
]


@pytest.fixture(scope="module", params=["sdxl", "sd35", "flux"])
def pipe(request):
    with eri.load(request.getfixturevalue(f"{request.param}_bundle"), "cpu") as pipe:
        yield pipe


class Oracle:
    """The text encoders of a pipeline, run by themselves."""

    def __init__(self, pipe):
        self.pipe, self.tokenizers = pipe, {}
        for name, spec in pipe.bundle.tokenizers.items():
            self.tokenizers[name] = Tokenizer.from_file(str(pipe.bundle.path(spec.file)))
            self.tokenizers[name].no_padding()
            self.tokenizers[name].no_truncation()

    def tokens(self, name, pieces):
        """(token, weight) of all pieces, None for BREAK."""
        tokenizer = self.tokenizers[name]
        for piece in pieces:
            if piece is None:
                yield None
            else:
                ids = tokenizer.encode(piece[0], add_special_tokens=False).ids
                yield from ((token, piece[1]) for token in ids)

    def windows(self, name, pieces):
        """Lists of (token, weight) of at most T − 2."""
        size = self.pipe.bundle.tokenizers[name].max_length - 2
        comma = self.tokenizers[name].encode(",", add_special_tokens=False).ids[0]
        done, window, at = [], [], None
        for token in self.tokens(name, pieces):
            if token is None:
                done, window, at = [*done, window], [], None
                continue
            if token[0] == comma:
                at = len(window)
            elif len(window) == size and at is not None and size - at <= REACH:
                done, window, at = [*done, window[: at + 1]], window[at + 1 :], None
            if len(window) == size:
                done, window, at = [*done, window], [], None
            window.append(token)
        return [*done, window] if window or not done else done

    def rows(self, name, windows):
        """Ids and weights, with special tokens and padding."""
        spec = self.pipe.bundle.tokenizers[name]
        begin, end = self.tokenizers[name].encode("").ids
        for window in windows:
            fill = spec.max_length - len(window) - 2
            yield (
                [begin, *(token for token, _ in window), end, *[spec.pad_id] * fill],
                [1, *(weight for _, weight in window), 1, *[1] * fill],
            )

    def run(self, component, ids):
        least = self.pipe.bundle.components[component].ranges["batch"].min
        found = self.pipe.run(component, {"input_ids": np.array([ids] * least, np.int64)})
        return {name: value[0] for name, value in found.items()}

    def clips(self, names, pieces):
        """(hidden states (T, D), weights (T,)) of each window for each CLIP, and pooled ones."""
        cut = {name: self.windows(name, pieces) for name in names}
        count = max(map(len, cut.values()))
        states, pooled = [], []
        for name in names:
            component = name.replace("tokenizer", "text_encoder")
            ran = [
                (self.run(component, ids), np.array(weights))
                for ids, weights in self.rows(name, cut[name] + [[]] * (count - len(cut[name])))
            ]
            states.append([(each.get("hidden_states"), weights) for each, weights in ran])
            pooled.append(ran[0][0].get("pooled"))
        return states, pooled

    def t5(self, name, pieces, length, *, weighted):
        spec = self.pipe.bundle.tokenizers[name]
        (end,) = self.tokenizers[name].encode("").ids
        kept = [token for token in self.tokens(name, pieces) if token][: length - 1]
        ids = [*(token for token, _ in kept), end, *[spec.pad_id] * (length - 1 - len(kept))]
        weights = np.array([*(weight for _, weight in kept), *[1] * (length - len(kept))])
        states = self.run(name.replace("tokenizer", "text_encoder"), ids)["hidden_states"]
        return emphasised(states, weights) if weighted else states

    def embeds(self, pieces):
        """Embeddings (T, D) and pooled (P,) of a family."""
        family, clips = self.pipe.bundle.family, ("tokenizer", "tokenizer_2")
        if family == "flux":
            _, (pooled,) = self.clips(clips[:1], pieces)
            return self.t5("tokenizer_2", pieces, LENGTH, weighted=True), pooled
        (first, second), pooled = self.clips(clips, pieces)
        if family == "sdxl":
            sides = [np.concatenate([emphasised(*each) for each in own]) for own in (first, second)]
            return np.concatenate(sides, axis=-1), pooled[1]
        both = []
        for (left, weights), (right, _) in zip(first, second, strict=True):
            both.append(emphasised(np.concatenate([left, right], axis=-1), weights))
        clip = np.concatenate(both)
        t5 = self.t5("tokenizer_3", pieces, LENGTH, weighted=False)
        clip = np.pad(clip, ((0, 0), (0, t5.shape[-1] - clip.shape[-1])))
        return np.concatenate([clip, t5]), np.concatenate(pooled)


def emphasised(states, weights):
    """z' = w·z·mean(z)/mean(w·z)."""
    weighted = states.astype(np.float64) * weights[:, None]
    return weighted * (states.astype(np.float64).mean() / weighted.mean())


def close(found, expected):
    return np.abs(found - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize(("prompt", "pieces"), PROMPTS, ids=[prompt[:12] for prompt, _ in PROMPTS])
def test_embeddings_are_the_formulas(pipe, prompt, pieces):
    embeds, pooled = Oracle(pipe).embeds(pieces)
    most = {"sdxl": 4, "sd35": 2, "flux": 99}[pipe.bundle.family]
    if pipe.bundle.family == "sd35" and len(embeds) > 2 * 16 + LENGTH:
        with pytest.raises(SizeError, match=f"windows of CLIP's tokens, expected at most {most}"):
            pipe.encode_prompt(prompt, LENGTH, "a1111")
        return
    found = pipe.encode_prompt(prompt, LENGTH, "a1111")
    assert found.embeds.shape == (1, *embeds.shape)
    assert close(found.embeds[0], embeds)
    assert close(found.pooled[0], pooled)


def test_weights_of_one_are_the_bits_of_plain_text(pipe):
    plain = pipe.encode_prompt("a red heart, two cats", LENGTH)
    for text in ("a red heart, two cats", r"a (red heart, two cats:1)"):
        found = pipe.encode_prompt(text, LENGTH, "a1111")
        assert (found.embeds == plain.embeds).all()
        assert (found.pooled == plain.pooled).all()


def test_texts_of_a_list_take_as_many_windows_as_the_longest(pipe):
    short, long = "a (red:1.3) heart", "two cats BREAK one dog"
    both = pipe.encode_prompt([short, long], LENGTH, "a1111")
    padded = pipe.encode_prompt([f"{short} BREAK", long], LENGTH, "a1111")
    alone = pipe.encode_prompt(short, LENGTH, "a1111")
    if pipe.bundle.family == "flux":  # whose denoiser reads T5's tokens only, in one window
        assert (both.embeds[0] == alone.embeds[0]).all()
        return
    assert both.embeds.shape[1] == alone.embeds.shape[1] + 16
    assert (both.embeds[0, :16] == alone.embeds[0, :16]).all()
    assert (both.embeds[0] == padded.embeds[0]).all()


def test_the_cache_keeps_weights_apart(pipe):
    first = pipe.encode_prompt("a (red:1.4) heart", LENGTH, "a1111")
    other = pipe.encode_prompt("a (red:1.5) heart", LENGTH, "a1111")
    again = pipe.encode_prompt("a (red:1.4) heart", LENGTH, "a1111")
    assert not (first.embeds == other.embeds).all()
    assert (first.embeds == again.embeds).all()
    assert not (first.embeds == pipe.encode_prompt("a (red:1.4) heart", LENGTH).embeds).all()


@pytest.mark.parametrize("text", ["a AND b", "[a:b:0.5]", "[a|b]", "a <lora:x:1>"])
def test_what_is_no_embedding_is_refused(pipe, text):
    with pytest.raises(UsageError, match=r"^prompt: got .*pass it to a call"):
        pipe.encode_prompt(text, LENGTH, "a1111")


def test_tokens_of_textual_inversions_have_weights_and_stay_whole(sdxl_bundle):
    vectors = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    with eri.load(sdxl_bundle, "cpu") as pipe:
        pipe.load_textual_inversion({"clip_l": vectors, "clip_g": vectors}, "<cat>")
        plain = pipe.encode_prompt("a <cat>", LENGTH)
        heavy = pipe.encode_prompt("a (<cat>:1.5)", LENGTH, "a1111")
        ratio = heavy.embeds / plain.embeds
        # [begin] a <cat> <cat> <cat> [end]: one factor for the token's three rows
        assert np.allclose(ratio[0, 2:5, :32] / ratio[0, :1, :32], 1.5, rtol=1e-3)
        assert np.allclose(ratio[0, 5:, :32] / ratio[0, :1, :32], 1, rtol=1e-3)
        # 12 tokens of 14 are taken, so that the three rows go to the next window
        tokens = pipe._encode._encode.tokenizer("text_encoder")
        words = "cat " * 20
        while len(tokens.tokens(words)) > 12:
            words = words[:-1]
        found = pipe.encode_prompt(f"{words} (<cat>:1.5)", LENGTH, "a1111")
        assert found.embeds.shape[1] == 32
        rows = tokens.rows["<cat>"]
        cut = cut_windows(tokens, parse_emphasis(f"{words} (<cat>:1.5)"))
        assert cut.ids[1, 1:4].tolist() == list(rows)
        assert cut.weights[1, :5].tolist() == [1, 1.5, 1.5, 1.5, 1]
