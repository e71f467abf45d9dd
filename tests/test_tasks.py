"""What runs learn: generated images, folders, other libraries' data sets, and what is done to them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import qkjax
from qkjax.images.preprocess import normalise
from qkjax.train.augment import _DISTORTIONS, inception_crop, mixup_weight, rand_augment, shift_image
from qkjax.train.config import TrainConfig, vit_config
from qkjax.train.data import PRESET, held_out_batches, training_batches
from qkjax.train.model import initial, plain
from qkjax.train.odd_one_out import CELL, CELLS, OddOneOut, odd_one_out
from qkjax.train.step import Batch, mixed, program
from qkjax.train.tasks import load_task
from qkjax.vit.model import ViT


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [Image.fromarray(image) for image in load_sample_images().images]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures):
    """Two classes of ten crops each, of two photographs."""
    path, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for name, picture in zip(("china", "flower"), pictures, strict=True):
        (path / name).mkdir()
        for number in range(10):
            left, top = rng.integers(0, 200, size=2)
            picture.crop((left, top, left + 90, top + 60)).save(path / name / f"{number}.png")
    return path


def test_odd_one_out_is_odd_where_it_says():
    """Told from the pixels alone: of each cell the mean colour and the spread along either axis and diagonal."""
    for index in range(40):
        image, label = OddOneOut(40, 3, 0)[index]
        assert (label > 0) == (index % 2 == 1)
        cells = image.reshape(CELLS, CELL, CELLS, CELL, 3).swapaxes(1, 2).reshape(-1, CELL, CELL, 3)
        ink = np.abs(cells).max(-1)
        colour = (cells * ink[..., None]).sum((1, 2)) / ink.sum((1, 2))[:, None]
        y, x = np.mgrid[:CELL, :CELL]
        weights = ink / ink.sum((1, 2), keepdims=True)
        y, x = (v - (weights * v).sum((1, 2), keepdims=True) for v in (y, x))
        shape = np.stack([(weights * (x**2 - y**2)).sum((1, 2)), 2 * (weights * x * y).sum((1, 2))], axis=1)
        found = np.concatenate([colour / 0.5, shape / 2], axis=1)
        distance = np.linalg.norm(found - np.median(found, axis=0), axis=1)
        others = np.delete(distance, label - 1) if label else distance
        assert others.max() < 0.2, "but for pixels' edges all the others are alike"
        if label:
            assert distance[label - 1] > others.max()


def test_odd_one_out_images_are_made_from_the_seed_and_their_number():
    same, again = (OddOneOut(10, 1, 0) for _ in range(2))
    np.testing.assert_array_equal(same[7][0], again[7][0])
    assert (same[7][0] != OddOneOut(10, 2, 0)[7][0]).any()
    assert (same[7][0] != OddOneOut(10, 1, 1)[7][0]).any(), "what the model is tried on is no training image"
    where = [odd_one_out(np.random.default_rng(i), odd=True)[1] for i in range(400)]
    assert set(where) == set(range(1, CELLS * CELLS + 1))


def test_folders_of_classes(folder, tmp_path):
    config = TrainConfig(data=str(folder), resolution=32, patch=8, batch=4, rand_augment=2)
    task = load_task(config)
    assert (task.classes, task.pixels, len(task.train), len(task.held_out)) == (2, (32, 32, 3), 16, 4)
    images, labels = next(training_batches(task, config))
    assert images.shape == (4, 32, 32, 3)
    assert images.dtype == np.uint8, "pixels are normalised on the device"
    assert np.ptp(images) > 100
    assert set(labels) <= {0, 1}
    picture, label = task.held_out[0]
    np.testing.assert_array_equal(next(iter(held_out_batches(task, 4)))[0][0], task.fit(picture))
    assert label in (0, 1)
    # The same in folders train and val, with the classes numbered alike.
    for part, numbers in (("train", range(8)), ("val", range(8, 10))):
        for name in ("china", "flower"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in numbers:
                (tmp_path / part / name / f"{number}.png").write_bytes((folder / name / f"{number}.png").read_bytes())
    task = load_task(TrainConfig(data=str(tmp_path)))
    assert (len(task.train), len(task.held_out)) == (16, 4)
    assert [label for _, label in (task.held_out[i] for i in range(4))] == [0, 0, 1, 1]


def test_folders_that_cannot_be(folder, tmp_path, pictures):
    with pytest.raises(qkjax.QkjaxError, match="has no classes: expected at least two subfolders with images"):
        load_task(TrainConfig(data=str(folder / "china")))
    for part, name in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "c")):
        (tmp_path / part / name).mkdir(parents=True)
        pictures[0].save(tmp_path / part / name / "0.png")
    with pytest.raises(
        qkjax.QkjaxError, match="contains the class b in only one of the folders for training and validation"
    ):
        load_task(TrainConfig(data=str(tmp_path)))


def test_hugging_face_data_sets(folder):
    """Its library's own reading of a folder."""
    pytest.importorskip("datasets", reason="needs the parity extra: pip install 'qkjax[parity]'")
    task = load_task(TrainConfig(data=f"hf:{folder}", resolution=32))
    assert (task.classes, len(task.train), len(task.held_out)) == (2, 16, 4)
    ours = load_task(TrainConfig(data=str(folder), resolution=32))
    found, expected = (
        sorted((np.asarray(image).tobytes(), label) for image, label in (t.train[i] for i in range(16)))
        for t in (task, ours)
    )
    assert [label for _, label in found].count(0) == [label for _, label in expected].count(0)
    assert found == expected
    file = next(folder.rglob("*.png"))
    Image.new("RGB", (40, 40)).save(file)
    assert load_task(TrainConfig(data=f"hf:{folder}", resolution=32)).fingerprint != task.fingerprint, "replaced"


def test_no_name():
    with pytest.raises(qkjax.QkjaxError, match="data='' is not a known task"):
        load_task(TrainConfig(data=""))


def test_moved_is_what_padding_and_cutting_give():
    image = np.random.default_rng(0).standard_normal((5, 6, 1)).astype(np.float32)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), constant_values=-1)
    for down in range(-2, 3):
        for right in range(-2, 3):
            wanted = padded[2 - down : 7 - down, 2 - right : 8 - right]
            np.testing.assert_array_equal(shift_image(image, down, right), wanted)


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_mixup_adds_the_previous_image_and_its_target(kind):
    """Against numpy: in a whole batch, and in an accumulated batch, where neighbours are in different parts."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 16, 16, 3)).astype(kind) / (1 if kind == np.uint8 else kind(128))
    images, labels, weight = images.astype(kind), rng.integers(0, 5, 8).astype(np.int32), np.float32(0.7)
    numbers = normalise(images, PRESET) if kind == np.uint8 else images
    expected = weight * numbers + (1 - weight) * np.roll(numbers, 1, axis=0)
    targets = weight * np.eye(5)[labels] + (1 - weight) * np.eye(5)[np.roll(labels, 1)]
    previous = jnp.roll(images, 1, axis=0), jnp.roll(labels, 1)
    found = mixed(Batch(jnp.asarray(images), jnp.asarray(labels), previous, jnp.full(8, weight)), 5)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    np.testing.assert_allclose(found[1], targets, atol=1e-6)

    config = TrainConfig(patch=8, width=16, depth=1, heads=2, mlp_dim=16, batch=8, mixup=0.2, label_smoothing=0.0)
    vit = vit_config(config, (16, 16, 3), 5)
    params = initial(jax.random.key(0), vit, ("free",))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)
    logits = ViT(vit).apply({"params": plain(params, vit, ("free",))}, expected.astype(np.float32))[0]
    loss = -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()
    for parts in (1, 4):
        part = replace(config, accumulate=parts)
        step = program(part, vit)
        value = step.step(step.begin(jax.tree.map(jnp.copy, params)), images, labels, np.full(8, weight))[1]
        np.testing.assert_allclose(value, loss, rtol=1e-5)


def test_mixup_weights_are_at_least_a_half():
    weights = [mixup_weight(0.2, np.random.default_rng(i)) for i in range(200)]
    assert min(weights) >= 0.5
    assert max(weights) <= 1
    assert np.ptp(weights) > 0.3


def test_cuts_and_distortions(pictures):
    """Every distortion keeps the size, changes the picture, and depends on the generator alone."""
    picture = inception_crop(pictures[0], 64, np.random.default_rng(0))
    assert picture.size == (64, 64)
    for number, distortion in enumerate(_DISTORTIONS):
        changed, again = (distortion(picture, 0.6, np.random.default_rng(1)) for _ in range(2))
        assert changed.size == picture.size, number
        assert np.asarray(changed).tobytes() == np.asarray(again).tobytes() != np.asarray(picture).tobytes(), number
    assert rand_augment(picture, 0, 10.0, np.random.default_rng(0)) is picture
    cuts = [np.asarray(inception_crop(pictures[0], 8, np.random.default_rng(i))).mean() for i in range(20)]
    assert np.ptp(cuts) > 10
