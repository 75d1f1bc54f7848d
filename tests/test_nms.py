"""Non-maximum suppression against the greedy algorithm as the textbook has it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn_jax.ops import nms as forms
from maskrcnn_jax.ops.nms import nms

pytestmark = pytest.mark.optimized

SIZE, CASES = 24, 50  # boxes of a case, cases of an example
THRESHOLDS = np.float32([0, 0.1, 0.25, 0.3, 1 / 3, 0.5, 0.6, 0.7, 0.9, 1])
# What accelerators and CPUs do, the latter with several tiles to a case.
FORMS = {
    "pairs": forms.keep_of_all_pairs,
    "tiles of 8": partial(forms.keep_by_tiles, tile=8),
    "tiles of 7": partial(forms.keep_by_tiles, tile=7),
}


run_nms = jax.jit(jax.vmap(nms))


@partial(jax.jit, static_argnames="form")
@partial(jax.vmap, in_axes=(0, 0, 0, 0, 0, None))
def run_cases(boxes, scores, valid, thresh, classes, form):
    order = jnp.argsort(jnp.where(valid, scores, -jnp.inf), descending=True, stable=True)
    keep = FORMS[form](boxes[order], classes[order], valid[order], thresh)
    return jnp.zeros_like(valid).at[order].set(keep)


def greedy(corners, scores, valid, thresh, classes):
    """Takes the best box, strikes out what it overlaps, and goes on with the rest."""
    with np.errstate(invalid="ignore"):
        x0, y0, x1, y1 = corners.T
        width = np.minimum(x1[:, None], x1) - np.maximum(x0[:, None], x0)
        height = np.minimum(y1[:, None], y1) - np.maximum(y0[:, None], y0)
        inter = np.maximum(width, 0) * np.maximum(height, 0)
        area = (x1 - x0) * (y1 - y0)
        iou = inter / (area[:, None] + area - inter)
        removes = (iou > thresh) & (classes[:, None] == classes)
    keep = np.zeros(len(corners), bool)
    left = valid.copy()
    while left.any():
        best = max(np.flatnonzero(left), key=lambda i: (scores[i], -i))
        keep[best] = True
        left &= ~removes[best]
        left[best] = False
    return keep


def draw_cases(seed, span, kind, levels, num_classes):
    """CASES cases; whole-numbered corners make areas exact and IoUs on the threshold common."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, span, (CASES, SIZE, 2))
    if kind == "chain":  # each box overlaps the next, few others
        corner = np.stack([np.arange(SIZE) * rng.integers(1, 5, (CASES, 1))] * 2, -1)
        corner[..., 1] = 0
        corner = rng.permuted(corner, axis=1)
    side = rng.integers(0, 9, corner.shape)
    if kind == "same size":
        side[:] = rng.integers(1, 9, (CASES, 1, 2))
    corners = np.concatenate([corner, corner + side], -1).astype(np.float32)
    if kind == "duplicates":
        corners = corners[np.arange(CASES)[:, None], rng.integers(0, SIZE // 4, (CASES, SIZE))]
    scores = rng.integers(0, levels, (CASES, SIZE)).astype(np.float32)
    valid = rng.random((CASES, SIZE)) < rng.choice([0.0, 0.3, 0.85, 1.0], (CASES, 1))
    corners[~valid & (rng.random(valid.shape) < 0.5)] = np.nan
    scores[~valid & (rng.random(valid.shape) < 0.5)] = np.nan
    classes = rng.integers(0, num_classes, (CASES, SIZE)).astype(np.int32)
    drawn = rng.random(CASES, np.float32)
    thresh = np.where(rng.random(CASES) < 0.7, rng.choice(THRESHOLDS, CASES), drawn)
    return corners, scores, valid, thresh.astype(np.float32), classes


def spread(count, seed, num_classes):
    """Clusters of boxes, best scores anywhere; a tenth not valid."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 400, (count // 20 + 1, 2))[rng.integers(0, count // 20 + 1, count)]
    corner = centre + rng.normal(0, 6, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 60, (count, 2))], 1)
    scores = rng.integers(0, 500, count).astype(np.float32)
    classes = rng.integers(0, num_classes, count).astype(np.int32)
    return boxes.astype(np.float32), scores, rng.random(count) < 0.9, classes


@pytest.mark.parametrize(("count", "num_classes"), [(1, 1), (256, 1), (257, 3), (900, 1), (900, 4)])
def test_several_tiles_equal_the_greedy_algorithm(count, num_classes):
    boxes, scores, valid, classes = spread(count, count, num_classes)
    found = np.asarray(nms(*map(jnp.asarray, (boxes, scores, valid)), 0.5, jnp.asarray(classes)))
    expected = greedy(boxes, scores, valid, 0.5, classes)
    np.testing.assert_array_equal(found, expected)
    assert count < 256 or 10 < expected.sum() < 0.8 * count


@settings(max_examples=200)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([4, 8, 20, 60]),
    st.sampled_from(["random", "duplicates", "chain", "same size"]),
    st.sampled_from([1, 3, 1000]),
    st.integers(1, 3),
)
def test_nms_equals_the_greedy_algorithm(seed, span, kind, levels, num_classes):
    """200 examples of 50 cases: 10,000, with ties, duplicates, chains and NaN in padding."""
    cases = draw_cases(seed, span, kind, levels, num_classes)
    expected = [greedy(*case) for case in zip(*cases, strict=True)]
    for form in FORMS:
        found = np.asarray(run_cases(*cases, form))
        np.testing.assert_array_equal(found, expected, err_msg=form)
    np.testing.assert_array_equal(run_nms(*cases), expected)


def test_nms_keeps_the_end_of_a_chain():
    """A removes B; B, being gone, must not remove C. IoU(AB) = IoU(BC) = 1/3, IoU(AC) = 0."""
    chain = jnp.array([[0.0, 0, 2, 1], [1, 0, 3, 1], [2, 0, 4, 1]])
    scores, valid = jnp.array([3.0, 2, 1]), jnp.ones(3, bool)
    assert nms(chain, scores, valid, 0.3).tolist() == [True, False, True]
    assert nms(chain, scores, valid, 0.34).tolist() == [True, True, True]


def test_nms_settles_a_chain_through_all_boxes():
    """Each of 200 boxes hangs on the one before it, the longest way that there is."""
    count = 200
    left = np.arange(count, dtype=np.float32)
    zeros, ones = np.zeros(count, np.float32), np.ones(count, np.float32)
    chain = np.stack([left, zeros, left + 2, ones], -1)
    scores, valid = np.float32(count - left), np.ones(count, bool)
    keep = nms(jnp.asarray(chain), jnp.asarray(scores), jnp.asarray(valid), 0.3)
    np.testing.assert_array_equal(keep, np.arange(count) % 2 == 0)


def test_padding_does_not_matter():
    """Rows that are not valid may hold NaN, infinities or the best score of all."""
    corners, scores, _, _, classes = draw_cases(0, 8, "random", 1000, 1)
    corners, scores = np.nan_to_num(corners[0]), np.nan_to_num(scores[0])
    valid = np.arange(SIZE) % 3 > 0
    expected = nms(*map(jnp.asarray, (corners, scores, valid)), 0.5, jnp.asarray(classes[0]))
    for junk in (np.nan, np.inf, -np.inf, 1e30):
        dirty, tops = corners.copy(), scores.copy()
        dirty[~valid], tops[~valid] = junk, junk
        found = nms(*map(jnp.asarray, (dirty, tops, valid)), 0.5, jnp.asarray(classes[0]))
        np.testing.assert_array_equal(found, expected)
