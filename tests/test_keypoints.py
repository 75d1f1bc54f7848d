"""The keypoint head: targets, loss, layers and decoding against NumPy written out; training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from configs import keypoints as config_file
from maskrcnn_jax import losses, targets
from maskrcnn_jax import postprocess_keypoints as post
from maskrcnn_jax.models import mask_rcnn
from maskrcnn_jax.models.keypoints import Deconv4, KeypointHead
from maskrcnn_jax.models.mask_rcnn import forward_train

SIZE = 56


def test_targets_are_the_cells_of_the_keypoints():
    rng = np.random.default_rng(0)
    corner = rng.uniform(-5, 30, (20, 2))
    rois = np.concatenate([corner, corner + rng.uniform(1, 60, (20, 2))], -1).astype(np.float32)
    points = rng.uniform(-10, 80, (6, 4, 3)).astype(np.float32)
    points[..., 2] = rng.integers(0, 3, (6, 4))
    matched = rng.integers(0, 6, 20)
    # On the corners of their rois: the far one still belongs to the last cell.
    points[0, 0], points[1, 0] = (*rois[0, 2:], 2), (*rois[1, :2], 1)
    matched[:2] = 0, 1
    cells, valid = targets.keypoint_targets(
        jnp.asarray(rois), jnp.asarray(matched), jnp.asarray(points), SIZE
    )
    assert cells[0, 0] == SIZE * SIZE - 1 and cells[1, 0] == 0 and valid[:2, 0].all()
    for r in range(20):
        x0, y0, x1, y1 = rois[r]
        for j in range(4):
            x, y, v = points[matched[r], j]
            inside = x0 <= x <= x1 and y0 <= y <= y1
            assert valid[r, j] == (inside and v > 0)
            if valid[r, j]:
                column = min(int((x - x0) / (x1 - x0) * SIZE), SIZE - 1)
                row = min(int((y - y0) / (y1 - y0) * SIZE), SIZE - 1)
                assert cells[r, j] == row * SIZE + column
            else:
                assert cells[r, j] == 0


def test_rois_without_area_have_no_targets():
    rois = jnp.array([[5.0, 5, 5, 9], [0, 0, 0, 0]])
    points = jnp.array([[[5.0, 6, 2], [1e30, -1e30, 2]]])
    cells, valid = targets.keypoint_targets(rois, jnp.zeros(2, int), points, SIZE)
    assert not valid.any() and (cells == 0).all()


@pytest.mark.parametrize("normalizer", [None, 7.0])
def test_loss_is_the_cross_entropy_of_the_valid_keypoints(normalizer):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 4, (2, 3, 5, 8, 8)).astype(np.float32)
    cells, valid = rng.integers(0, 64, (2, 3, 5)), rng.random((2, 3, 5)) < 0.6
    logits[~valid] = np.inf  # a padding row may hold anything
    total = 0.0
    for at in zip(*np.nonzero(valid), strict=True):
        flat = logits[at].ravel().astype(np.float64)
        total += np.log(np.exp(flat).sum()) - flat[cells[at]]
    logits, cells, mask = map(jnp.asarray, (logits, cells, valid))
    found = losses.keypoint_loss(logits, cells, mask, normalizer)
    np.testing.assert_allclose(found, total / (normalizer or valid.sum()), rtol=1e-5)
    grad = jax.grad(lambda x: losses.keypoint_loss(x, cells, jnp.zeros_like(mask)))
    assert (grad(jnp.zeros_like(logits)) == 0).all()


def test_deconvolution_against_its_definition():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 3, 4, 6)).astype(np.float32)
    kernel = rng.normal(size=(4, 4, 6, 5)).astype(np.float32)
    bias = rng.normal(size=5).astype(np.float32)
    expected = np.zeros((2, 3 * 2 + 2, 4 * 2 + 2, 5))
    for y in range(3):
        for z in range(4):
            patch = np.einsum("rf,yxfo->ryxo", x[:, y, z], kernel)
            expected[:, 2 * y : 2 * y + 4, 2 * z : 2 * z + 4] += patch
    expected = expected[:, 1:-1, 1:-1] + bias
    found = Deconv4(5).apply({"params": {"kernel": kernel, "bias": bias}}, jnp.asarray(x))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_head_enlarges_four_times():
    """The last step is bilinear: at the centres of the new cells, flat beyond the outer ones."""
    head = KeypointHead(3, features=8, num_convs=0)
    x = jax.random.normal(jax.random.key(0), (2, 14, 14, 4))
    variables = head.init(jax.random.key(1), x, True)
    found = head.apply(variables, x, True)
    assert found.shape == (2, 3, SIZE, SIZE) and found.dtype == np.float32
    low = Deconv4(3).apply({"params": variables["params"]["deconv"]}, x)
    places = np.clip((np.arange(SIZE) + 0.5) / 2 - 0.5, 0, 27)
    weights = np.maximum(1 - np.abs(places[:, None] - np.arange(28)), 0)
    expected = np.einsum("yh,rhwj,xw->rjyx", weights, low, weights)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def cubic(t):
    """The cubic kernel of a = -3/4, as Keys writes it."""
    t = abs(t)
    if t <= 1:
        return 1.25 * t**3 - 2.25 * t**2 + 1
    return -0.75 * t**3 + 3.75 * t**2 - 6 * t + 3 if t < 2 else 0.0


def bicubic_at(image, y, x):
    """The value at a continuous place, cell centres at whole numbers, borders repeated."""
    height, width = image.shape
    total = 0.0
    for row in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
        for column in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
            value = image[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
            total += cubic(y - row) * cubic(x - column) * value
    return total


@pytest.mark.parametrize("size", [(11, 17), (8, 8), (5, 3), (1, 30)])
def test_bicubic_against_its_definition(size):
    image = np.random.default_rng(3).normal(size=(8, 8)).astype(np.float32)
    found = post.resize_bicubic(image, size)
    assert found.shape == size
    for row in range(size[0]):
        for column in range(size[1]):
            y, x = (row + 0.5) * 8 / size[0] - 0.5, (column + 0.5) * 8 / size[1] - 0.5
            np.testing.assert_allclose(found[row, column], bicubic_at(image, y, x), atol=1e-5)


def test_decoding_finds_the_peak_over_the_pixels_of_the_box():
    rng = np.random.default_rng(4)
    boxes = np.float32([[3.25, 10, 20.5, 41.5], [0, 0, 8, 8], [5, 5, 5.2, 5.4]])
    maps = rng.normal(0, 2, (3, 2, 8, 8)).astype(np.float32)
    found = post.heatmaps_to_keypoints(maps, boxes)
    for i, (x0, y0, x1, y1) in enumerate(boxes.astype(np.float64)):
        width, height = max(x1 - x0, 1), max(y1 - y0, 1)
        columns, rows = int(np.ceil(width)), int(np.ceil(height))
        for j in range(2):
            fine = np.array(
                [
                    [
                        bicubic_at(
                            maps[i, j], (r + 0.5) * 8 / rows - 0.5, (c + 0.5) * 8 / columns - 0.5
                        )
                        for c in range(columns)
                    ]
                    for r in range(rows)
                ]
            )
            row, column = np.unravel_index(fine.argmax(), fine.shape)
            x = x0 + (column + 0.5) * width / columns
            y = y0 + (row + 0.5) * height / rows
            score = np.exp(fine.max()) / np.exp(maps[i, j].astype(np.float64)).sum()
            np.testing.assert_allclose(found[i, j], [x, y, score], rtol=1e-4)
    assert post.heatmaps_to_keypoints(maps[:, :0], boxes).shape == (3, 0, 3)
    assert post.heatmaps_to_keypoints(maps[:0], boxes[:0]).shape == (0, 2, 3)


def test_targets_and_decoding_are_inverse():
    """A one-hot heatmap at the target's cell leads back to the keypoint, to half a cell."""
    roi = np.float32([[10, 20, 122, 90]])
    points = np.float32([[[30.2, 44.4, 2], [121.9, 20.1, 1]]])
    cells, valid = targets.keypoint_targets(
        jnp.asarray(roi), jnp.zeros(1, int), jnp.asarray(points), SIZE
    )
    assert valid.all()
    maps = np.asarray(10 * jax.nn.one_hot(cells, SIZE * SIZE)).reshape(1, 2, SIZE, SIZE)
    found = post.heatmaps_to_keypoints(maps, roi)
    half = np.array([112, 70]) / SIZE / 2 + 0.5
    assert (np.abs(found[..., :2] - points[..., :2]) <= half).all()


def test_keypoints_return_to_the_picture():
    found = post.keypoints_to_image(
        np.float32([[[10, 20, 0.3], [50, 100, 0.9]]]), (10.0, 0.0, 50.0, 100.0), (200, 20)
    )
    np.testing.assert_allclose(found, [[[0, 40, 0.3], [20, 200, 0.9]]], rtol=1e-6)


def shapes_of(config, classes):
    """Parameter and statistics shapes by part of the model."""
    model = mask_rcnn.build(config.model, classes)
    images, hw = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.full((1, 2), 64)
    return jax.eval_shape(model.init, jax.random.key(0), images, hw)


def test_as_many_parameters_as_detectron2s_keypoint_rcnn():
    """59,186,278, where a frozen norm counts as a scale and a bias. Derived by hand in the test.

    torchvision's keypointrcnn_resnet50_fpn has 59,137,258 parameters: without the 53,120 of the
    frozen norms, with 4,100 more for the boxes of the background.
    """
    tree = shapes_of(config_file.get_config(), 1)
    count = lambda t: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(t))  # noqa: E731
    head = tree["params"]["keypoint_head"]
    assert head["conv8"]["conv"]["kernel"].shape == (3, 3, 512, 512)
    assert head["deconv"]["kernel"].shape == (4, 4, 512, 17)
    assert count(head) == 256 * 512 * 9 + 7 * 512 * 512 * 9 + 8 * 512 + 512 * 17 * 16 + 17
    assert "mask_head" not in tree["params"]
    assert count(tree) == 59_186_278 == 59_137_258 + 53_120 - 4_100


def test_three_steps_lower_the_keypoint_loss():
    """Of the head and of the features below it; test_arms.py trains the whole."""
    tiny = tiny_model.model(keypoints=3, keypoint_channels=16, keypoint_convs=2)
    variables = tiny_model.variables(tiny)
    batch = jax.tree.map(jnp.asarray, tiny_model.batch(2, keypoints=3))

    def step(params):
        def loss(params):
            both = {**variables, "params": variables["params"] | params}
            terms, _, _ = forward_train(tiny, both, batch, tiny_model.keys(2))
            return terms.keypoint, terms

        grads, terms = jax.grad(loss, has_aux=True)(params)
        norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
        return jax.tree.map(lambda p, g: p - 0.1 * g / norm, params, grads), terms, grads

    params = {name: variables["params"][name] for name in ("fpn", "keypoint_head")}
    # Less to compile; the steps are few.
    step = jax.jit(step).lower(params).compile({"xla_backend_optimization_level": 0})
    seen = []
    for _ in range(4):
        params, terms, grads = step(params)
        seen.append(float(terms.keypoint))
        for part in grads.values():
            leaves = jax.tree.leaves(part)
            assert all(bool(jnp.isfinite(g).all()) for g in leaves) and any(g.any() for g in leaves)
    assert np.isfinite(seen).all() and (np.diff(seen) < 0).all()
    assert seen[-1] > 0
