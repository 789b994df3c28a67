"""Codebook upkeep and the order of training pictures."""

import jax.numpy as jnp
import numpy as np

from ar_omni_jax.tokenizers.image.codebook import codebook_of, k_means, moving_average, revive
from ar_omni_jax.tokenizers.image.data import batch_indices, busiest_crops


def test_moving_average_is_that_of_counts_and_sums():
    statistics = {"count": jnp.array([2.0, 1.0, 4.0]), "sum": jnp.array([[2.0], [3.0], [8.0]])}
    latents, codes = jnp.array([[5.0], [7.0], [1.0]]), jnp.array([0, 0, 1])
    moved = moving_average(statistics, latents, codes, decay=0.75)
    np.testing.assert_allclose(moved["count"], [0.75 * 2 + 0.25 * 2, 0.75 + 0.25, 3.0])
    np.testing.assert_allclose(moved["sum"], [[0.75 * 2 + 0.25 * 12], [0.75 * 3 + 0.25], [6.0]])
    np.testing.assert_allclose(codebook_of(moved), [[4.5 / 2], [2.5], [2.0]])  # the unused one stays: 8 / 4


def test_k_means_finds_the_clusters():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)
    points = np.repeat(centres, [500, 20, 20, 5], axis=0)  # one cluster holds nearly all
    points = (points + rng.normal(0, 0.1, points.shape)).astype(np.float32)
    found = k_means(points, 4, 5, rng)
    distances = np.linalg.norm(found[:, None] - centres, axis=-1)
    assert (distances.min(axis=0) < 0.2).all()


def test_dead_codes_move_to_what_is_represented_worst():
    rng = np.random.default_rng(0)
    codebook = np.array([[0.0, 0.0], [99.0, 99.0], [50.0, 0.0]], np.float32)
    points = np.concatenate([np.zeros((200, 2)), [[5.0, 5.0]]]).astype(np.float32)
    revived = revive(codebook, np.array([False, True, False]), points, rng)
    np.testing.assert_array_equal(revived[[0, 2]], codebook[[0, 2]])
    np.testing.assert_array_equal(revived[1], [5.0, 5.0])
    all_dead = revive(codebook, np.ones(3, bool), points, rng)
    assert all((row == points).all(-1).any() for row in all_dead)


def test_every_epoch_is_a_new_order_of_all_pictures():
    order = np.concatenate([batch_indices(10, 4, step, seed=3) for step in range(5)])
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert list(order[:10]) != list(order[10:])
    np.testing.assert_array_equal(batch_indices(10, 4, 2, seed=3), order[8:12])  # any step by itself
    assert list(batch_indices(10, 10, 0, seed=4)) != list(order[:10])


def test_crops_are_aligned_and_the_busiest():
    picture = np.zeros((16, 16, 3), np.float32)
    picture[8:12, 8:12] = np.random.default_rng(0).normal(size=(4, 4, 3))
    crop = busiest_crops(picture[None], size=4, step=4, tries=200, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(crop[0], picture[8:12, 8:12])
