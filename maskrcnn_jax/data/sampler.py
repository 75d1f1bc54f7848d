"""Which images make up the batch of a step: a function of (seed, step), nothing to save.

Each batch comes from one group of images that share a canvas. Every image is seen equally often:
a period of n steps (n: number of images) holds n_g batches of group g (n_g: its images), that is
batch_size epochs of each group, and each group walks through its own endless stream of epochs,
every epoch a new permutation.
"""

import functools

import numpy as np
from jaxtyping import Int, Int64

_STEPS, _ROWS = 0, 1  # streams of random numbers


class Sampler:
    """Draws rows for a step. Any step costs the same, the first as the millionth.

    Args:
      groups: for each image the group it belongs to, >= 0.
      batch_size: global, over all hosts.
      seed: of the order.
    """

    def __init__(self, groups: Int[np.ndarray, " n"], batch_size: int, seed: int):
        if len(groups) == 0:
            raise ValueError("no images to sample from")
        self._groups = groups
        self._batch_size = batch_size
        self._seed = seed
        self._members = {int(g): np.flatnonzero(groups == g) for g in np.unique(groups)}
        # Neighbouring steps need the same few permutations.
        self._period = functools.lru_cache(maxsize=2)(self._make_period)
        self._epoch = functools.lru_cache(maxsize=2 * len(self._members) + 2)(self._make_epoch)

    def batch(self, step: int) -> tuple[int, Int64[np.ndarray, " B"]]:
        """Returns the group and the rows (into `groups`) of the global batch of this step."""
        period, offset = divmod(step, len(self._groups))
        order, rank = self._period(period)
        group = int(order[offset])
        size = len(self._members[group])
        start = (period * size + int(rank[offset])) * self._batch_size
        positions = np.arange(start, start + self._batch_size)
        epochs, places = np.divmod(positions, size)
        rows = [self._epoch(group, int(e))[p] for e, p in zip(epochs, places, strict=True)]
        return group, np.array(rows, np.int64)

    def _make_period(self, period: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the group of each step of the period, and its rank within that group."""
        order = self._rng(_STEPS, period).permutation(self._groups)
        rank = np.empty(len(order), np.int64)
        for g, members in self._members.items():
            rank[order == g] = np.arange(len(members))
        return order, rank

    def _make_epoch(self, group: int, epoch: int) -> np.ndarray:
        return self._rng(_ROWS, group, epoch).permutation(self._members[group])

    def _rng(self, *path: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, *path))
