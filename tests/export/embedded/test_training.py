"""How the embedded checkpoint was made: captions, tokenizers, a run that survives being killed."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from eri_export.embedded import checkpoint, emoji_data, train_tokenizers, train_vae, training_loop
from eri_export.embedded.retrieval import nearest_images, nearest_vectors


def test_captions_name_the_emoji_with_its_article():
    assert emoji_data.captions("octopus") == (
        "an octopus",
        "octopus",
        "an octopus emoji",
        "an icon of an octopus",
    )
    assert emoji_data.captions("red heart")[0] == "a red heart"
    assert emoji_data.captions("cherries")[0] == "cherries"


def test_the_chosen_emoji_are_distinct():
    names = emoji_data.chosen_names()
    assert len(set(names)) == len(names) == 236


def test_a_missing_drawing_is_named(tmp_path):
    names = tmp_path / "names.json"
    names.write_text('{"❤": {"name": "red heart"}}')
    with pytest.raises(ValueError, match=r"smiling face with smiling eyes.*unicode-emoji-json"):
        emoji_data.find_samples(tmp_path, names)


@pytest.mark.parametrize("name", ["clip_l", "clip_g", "t5"])
def test_tokenizers_are_the_shipped_ones(name):
    """Training them again gives the same ids: the weights depend on it."""
    folder = {"clip_l": "tokenizer", "clip_g": "tokenizer_2", "t5": "tokenizer_3"}[name]
    again = getattr(train_tokenizers.build_tokenizers(), name)
    shipped = type(again).from_pretrained(checkpoint() / folder)
    for caption in [
        *itertools.chain(*map(emoji_data.captions, emoji_data.chosen_names())),
        "",
        "Zoë 心 ❤",
    ]:
        assert again(caption).input_ids == shipped(caption).input_ids, caption


def test_latents_have_unit_deviation_and_hold_most_of_the_picture():
    images = torch.nn.functional.interpolate(
        torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)), 48, mode="bicubic"
    )
    latents = train_vae.target_latents(images)
    assert latents.shape == (8, 16, 6, 6)
    assert abs(latents.mean()) < 1e-4
    assert abs(latents.std() - 1) < 1e-3
    filters, _ = train_vae.patch_components(images)
    back = torch.linalg.pinv(filters.reshape(16, -1))
    patches = torch.nn.functional.unfold(images, 8, stride=8)
    rest = patches - patches.mean(dim=(0, 2), keepdim=True)
    kept = back @ (filters.reshape(16, -1) @ rest)
    assert (kept - rest).square().sum() < 0.05 * rest.square().sum()


def test_retrieval_finds_each_image_under_noise_and_not_another():
    rng = np.random.default_rng(0)
    training = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    noisy = np.clip(training[::-1] + rng.normal(0, 20, training.shape), 0, 255).astype(np.uint8)
    found = nearest_images(noisy, training)
    np.testing.assert_array_equal(found.nearest, np.arange(20)[::-1])
    assert found.accuracy(np.arange(20)[::-1]) == 1.0
    assert found.accuracy(np.arange(20)) == 0.0


def test_retrieval_is_the_brute_force_distance():
    rng = np.random.default_rng(1)
    queries, keys = rng.normal(size=(7, 3, 2)), rng.normal(size=(9, 3, 2))
    distances = np.sqrt(((queries[:, None] - keys[None]) ** 2).mean(axis=(2, 3)))
    found = nearest_vectors(queries, keys)
    np.testing.assert_array_equal(found.nearest, distances.argmin(axis=1))
    np.testing.assert_allclose(found.distance, distances.min(axis=1), rtol=1e-9)
    with pytest.raises(ValueError, match="differ in shape"):
        nearest_vectors(queries, keys[:, :2])


def regression(model, generator):
    """A loss for a toy run: the model should learn the sum of its inputs."""
    x = torch.randn(16, 4, generator=generator)
    return {"loss": (model(x) - x.sum(dim=1, keepdim=True)).square().mean()}


def toy(path):
    torch.manual_seed(0)
    return training_loop.Run(path, torch.nn.Linear(4, 1), lr=0.05, seed=0)


def test_a_run_goes_on_where_it_was_saved(tmp_path):
    first = toy(tmp_path / "toy.pt")
    training_loop.train(first, regression, minutes=0.004)
    second = toy(tmp_path / "toy.pt")
    assert (second.step, second.elapsed) == (first.step, first.elapsed)
    assert second.step > 0
    for name, value in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value)
    training_loop.train(second, regression, minutes=0.008)
    assert second.step > first.step
    assert second.elapsed >= 0.008 * 60


def train_forever(path):
    """What the child of the next test does: train and save at every step."""
    training_loop.SAVE_SECONDS = 0
    training_loop.train(toy(path), regression, minutes=1)


def test_a_run_killed_at_any_moment_goes_on(tmp_path):
    path, steps = tmp_path / "toy.pt", [0]
    code = "import sys, pathlib; from tests.export.embedded.test_training import train_forever; "
    code += "train_forever(pathlib.Path(sys.argv[1]))"
    for delay in (0.05, 0.12, 0.21):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[3]
        )
        wait_for_change(path)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        steps.append(toy(path).step)
    assert steps == sorted(set(steps)), "every life must get further than the last"


def wait_for_change(path):
    """Until the file is written anew, at most a minute."""
    before = path.stat().st_mtime_ns if path.exists() else None
    for _ in range(600):
        if path.exists() and path.stat().st_mtime_ns != before:
            return
        time.sleep(0.1)
    raise AssertionError("the child never saved")
