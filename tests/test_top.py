"""Scores of maps and the running top-k, against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkjax.activations import top_maps
from qkjax.activations.scores import SCORES, both_signs, mean_of_top
from qkjax.activations.top_k import Top, add, empty, merge


def plain_score(name: str, query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """As the authors' notebook does it, for one image: (P, ...) -> (...)."""
    if name == "product":
        return np.max(query, 0) * np.max(key, 0)
    side, pool = name.split("_")
    values = query if side == "query" else key
    if pool == "top5":
        return np.sort(values, 0)[-5:].mean(0)
    return {"max": np.max, "mean": np.mean}[pool](values, 0)


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_both_signs(name):
    query, key = np.random.default_rng(0).standard_normal((2, 3, 20, 2, 4)).astype(np.float32)
    ours = both_signs(name, jnp.asarray(query), jnp.asarray(key))
    assert ours.shape == (3, 2, 4, 2)
    for image in range(3):
        for i, sign in enumerate((1, -1)):
            wanted = plain_score(name, sign * query[image], sign * key[image])
            np.testing.assert_allclose(ours[image, ..., i], wanted, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_mean_of_the_five_largest_with_ties(values):
    """Few distinct integers: nearly every draw has ties, often at the border of the five."""
    ours = mean_of_top(jnp.asarray(values, jnp.float32)[None, :, None])
    assert float(ours[0, 0]) == pytest.approx(np.mean(sorted(values)[-5:]), abs=1e-6)


def plain_top(scores: np.ndarray, index: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Of one mode: all scores at once, equal ones by the image's index."""
    there = (index >= 0) & ~np.isnan(scores)
    order = sorted(np.flatnonzero(there), key=lambda i: (-scores[i], index[i]))[:k]
    score, image = np.full(k, -np.inf), np.full(k, -1)
    score[: len(order)], image[: len(order)] = scores[order], index[order]
    return score, image


@pytest.mark.gpu
@settings(deadline=None, max_examples=40)
@given(st.data())
def test_running_top_k_is_that_of_all_at_once(data):
    """Whatever the batches; with ties, unreadable images (-1) and NaN. And so is the merge of shares."""
    count, batch, k = (data.draw(st.integers(1, n)) for n in (30, 7, 5))
    drawn = st.one_of(st.integers(-2, 2).map(float), st.just(float("nan")))
    scores = np.array(data.draw(st.lists(drawn, min_size=count, max_size=count)), np.float32)
    gone = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    index = np.where(gone, -1, np.arange(count)).astype(np.int32)
    groups = [slice(i, i + batch) for i in range(0, count, batch)]

    def running(groups):
        top = empty((1,), k)
        for group in groups:
            top = add(top, jnp.asarray(scores[group, None]), jnp.asarray(index[group]))
        return top

    wanted = plain_top(scores, index, k)
    shares = [running(groups[i::3]) for i in range(3)]
    for top in (running(groups), merge(Top(*map(np.stack, zip(*shares, strict=True))))):
        np.testing.assert_array_equal(top.score[0], wanted[0])
        np.testing.assert_array_equal(top.image[0], wanted[1])


def test_add_is_jittable_for_any_number_of_modes():
    scores = np.random.default_rng(1).standard_normal((6, 2, 3, 4)).astype(np.float32)
    top = jax.jit(add)(empty((2, 3, 4), 2), scores, np.arange(6, dtype=np.int32))
    assert top.image.shape == (2, 3, 4, 2)
    np.testing.assert_array_equal(top.image[..., 0], scores.argmax(0))


@pytest.mark.gpu
@settings(deadline=None, max_examples=30)
@given(st.data())
def test_maps_follow_their_images(data):
    """Whatever the batches and the shares: those of the images in the top-k, to the bit, and NaN elsewhere.

    The maps are those of the first score and the first two of three modes; the one of image i is full of i.
    """
    count, batch, k = (data.draw(st.integers(1, n)) for n in (20, 7, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    scores = rng.integers(-2, 3, (count, 2, 1, 2, 3, 2)).astype(np.float32)  # with ties
    index = np.where(rng.random(count) < 0.2, -1, np.arange(count)).astype(np.int32)
    kind = np.arange(2)[:, None] / 2  # query and key map differ
    of_images = np.broadcast_to(np.arange(count)[:, None, None] + kind, (1, 2, 2, count, 2, 4)).astype(np.float32)
    groups = [slice(i, i + batch) for i in range(0, count, batch)]

    def running(groups):
        state = top_maps.empty((2, 1, 2, 3), k, 2, 4)
        for group in groups:
            state = top_maps.add(state, *map(jnp.asarray, (scores[group], index[group], of_images[:, :, :, group])))
        return state

    shares = [jax.tree.map(np.asarray, running(groups[i::3])) for i in range(3)]
    for state in (running(groups), top_maps.merge(shares)):
        image = np.asarray(state.top.image)[0, :, :, :2]
        wanted = np.where(image < 0, np.nan, image)[..., None, None] + kind
        np.testing.assert_array_equal(state.maps, np.broadcast_to(wanted, state.maps.shape))
