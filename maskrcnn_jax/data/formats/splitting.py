"""Splits a COCO JSON by pictures: stratified by class, near-duplicates kept together."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskrcnn_jax.data.formats.grouping import group_keys
from maskrcnn_jax.errors import UserError


def split(
    coco: dict[str, Any], fractions: Sequence[float], seed: int, keys: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Splits the pictures into parts, each a COCO JSON with all categories.

    Every class, and the pictures, are spread over the parts as the fractions ask: greedily, the
    rarest class first, in the spirit of iterative stratification (Sechidis et al., "On the
    stratification of multi-label data", 2011). Every class occurs in the first part, as far as no
    other part is left without a picture by that.
    Equal arguments give equal parts.

    Args:
      coco: a COCO JSON.
      fractions: the share of each part; the first is for training.
      seed: for ties, and for pictures without objects.
      keys: one per picture; pictures with the same key stay together. Default: `group_keys`.

    Raises:
      UserError: there are fewer groups than parts.
    """
    keys = group_keys(coco) if keys is None else keys
    names = sorted(set(keys))
    if len(names) < len(fractions):
        raise UserError(
            f"--split: {len(coco['images'])} pictures in {len(names)} groups make no "
            f"{len(fractions)} parts; give more pictures or another --group, or let "
            "near-duplicates be in several parts: --no-twins"
        )
    row = {name: i for i, name in enumerate(names)}
    group_of = {e["id"]: row[key] for e, key in zip(coco["images"], keys, strict=True)}
    column = {c["id"]: i for i, c in enumerate(coco["categories"])}
    # One more column, of pictures, so that those without objects are spread as well.
    counts = np.zeros((len(names), len(column) + 1))
    for entry in coco["images"]:
        counts[group_of[entry["id"]], -1] += 1
    for a in coco["annotations"]:
        counts[group_of[a["image_id"]], column[a["category_id"]]] += 1
    shares = np.array(fractions, np.float64) / sum(fractions)
    part_of = _assign(counts, shares, np.random.default_rng(seed))
    parts = []
    for part in range(len(fractions)):
        images = [e for e in coco["images"] if part_of[group_of[e["id"]]] == part]
        chosen = {e["id"] for e in images}
        annotations = [a for a in coco["annotations"] if a["image_id"] in chosen]
        parts.append(coco | {"images": images, "annotations": annotations})
    return parts


def _assign(counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The part of each group. counts [groups, classes + 1], shares [parts]."""
    totals = np.maximum(counts.sum(0), 1)
    # The pictures weigh as much as all classes together.
    weights = np.append(np.ones(len(totals) - 1), max(len(totals) - 1, 1)) / totals**2
    want = shares[:, None] * counts.sum(0)
    part_of = np.full(len(counts), -1)
    for group in _order(counts, rng):
        # By how much the squared lack, in proportion to the share, becomes less.
        gain = (2 * want * counts[group] - counts[group] ** 2) @ weights / shares
        best = int(np.argmax(gain))
        part_of[group] = best
        want[best] -= counts[group]
    _fill_empty(part_of, counts, len(shares))
    _all_classes_in_first(part_of, counts)
    return part_of


def _order(counts: np.ndarray, rng: np.random.Generator) -> list[int]:
    """The groups: those with the rarest class first, of these the largest, else by chance."""
    totals = counts[:, :-1].sum(0)
    rarest = [
        min((totals[c] for c in np.flatnonzero(row)), default=np.inf) for row in counts[:, :-1]
    ]
    shuffled = rng.permutation(len(counts)).tolist()
    return sorted(shuffled, key=lambda group: (rarest[group], -counts[group].sum()))


def _fill_empty(part_of: np.ndarray, counts: np.ndarray, num_parts: int) -> None:
    """Gives each part without a group the smallest group of a part that has several."""
    for part in range(num_parts):
        if not (part_of == part).any():
            sizes = np.bincount(part_of, minlength=num_parts)
            spare = np.flatnonzero(sizes[part_of] > 1)
            part_of[spare[np.argmin(counts[spare, -1])]] = part


def _all_classes_in_first(part_of: np.ndarray, counts: np.ndarray) -> None:
    """Moves groups into the first part until it has every class; leaves no part empty."""
    for column in range(counts.shape[1] - 1):
        having = np.flatnonzero(counts[:, column] > 0)
        if not having.size or (part_of[having] == 0).any():
            continue
        sizes = np.bincount(part_of)
        movable = having[sizes[part_of[having]] > 1]
        if movable.size:
            part_of[movable[np.argmin(counts[movable, -1])]] = 0
