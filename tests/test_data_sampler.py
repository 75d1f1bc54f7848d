"""The sampler: a pure function of (seed, step) that treats every image alike."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn_jax.data.sampler import Sampler

groups_strategy = st.lists(st.integers(0, 3), min_size=1, max_size=30).map(np.array)


@given(groups_strategy, st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=50)
def test_every_image_equally_often(groups, batch_size, seed):
    sampler = Sampler(groups, batch_size, seed)
    for period in range(2):
        counts = np.zeros(len(groups), int)
        for step in range(period * len(groups), (period + 1) * len(groups)):
            group, rows = sampler.batch(step)
            assert rows.shape == (batch_size,)
            assert (groups[rows] == group).all()
            np.add.at(counts, rows, 1)
        assert (counts == batch_size).all()


@given(groups_strategy, st.integers(1, 5), st.integers(0, 10**9))
@settings(max_examples=50)
def test_any_step_without_history(groups, batch_size, step):
    group, rows = Sampler(groups, batch_size, 7).batch(step)
    other = Sampler(groups, batch_size, 7)
    other.batch(step + 3), other.batch(step // 2)
    again_group, again = other.batch(step)
    assert group == again_group
    np.testing.assert_array_equal(rows, again)


def test_an_epoch_has_no_repetition_and_seeds_differ():
    groups = np.zeros(64, int)
    epochs = {
        seed: np.concatenate([Sampler(groups, 8, seed).batch(s)[1] for s in range(8)])
        for seed in (0, 1)
    }
    for rows in epochs.values():
        np.testing.assert_array_equal(np.sort(rows), np.arange(64))
    assert (epochs[0] != epochs[1]).any()
    second = np.concatenate([Sampler(groups, 8, 0).batch(s)[1] for s in range(8, 16)])
    assert (epochs[0] != second).any()


def test_groups_come_mixed():
    groups = np.repeat([0, 1], [90, 10])
    order = np.array([Sampler(groups, 4, 0).batch(s)[0] for s in range(100)])
    assert (order == 1).sum() == 10
    assert 0 < (order[:50] == 1).sum() < 10
