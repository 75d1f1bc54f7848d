"""Test-time augmentation: merged boxes and mean masks against NumPy, mirrored pictures."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_checkpoint
import tiny_model
import tiny_run
from jax.sharding import AxisType, Mesh

from configs import common
from maskrcnn_jax import config as config_lib
from maskrcnn_jax import conventions, postprocess, runtime, tta, views
from maskrcnn_jax.datasets import load_data
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluate import Evaluator
from maskrcnn_jax.logs import RunLog
from maskrcnn_jax.models import families, mask_rcnn
from maskrcnn_jax.types import Detections
from maskrcnn_jax.views import View

CASCADE = {"cascade_ious": (0.5, 0.6), "class_agnostic_boxes": True}
MODELS = {
    "mask": {},
    "cascade": CASCADE,
    "faster": {"mask_branch": "none"},
    "c4": {"neck": "c4", "anchor_sizes": (32.0, 64.0), "box_fcs": 0, "box_pool_size": 14},
}
PICTURES = [tiny_checkpoint.photo(64, 88), tiny_checkpoint.photo(60, 80, 1)]


def mesh_of(count):
    return Mesh(np.array(jax.devices()[:count]), ("data",), axis_types=(AxisType.Auto,))


def views_of(pictures, short, long=96):
    """A batch on the canvas 64 x 96."""
    rows = []
    for picture in pictures:
        pixels, placement = conventions.prepare_input(picture, "pillow", short, long, (64, 96))
        window = np.array(placement.window, np.float32)
        rows.append(View(pixels, np.array(placement.image_hw, np.int32), window))
    return jax.tree.map(lambda *x: np.stack(x), *rows)


class Setup:
    """A tiny model with random weights, and what it finds."""

    def __init__(self, fields):
        self.config = tiny_model.config(**fields)
        self.config.data.update({"short_test": 64, "long_test": 96, "canvases": ()})
        self.model = tiny_model.model(**fields)
        self.variables = tiny_model.variables(self.model)
        self.said = []

    def detect(self, short, flip, pictures=PICTURES, devices=1):
        """short: () is plain evaluation."""
        self.config.eval.tta_short, self.config.eval.tta_long = short, 96
        self.config.eval.tta_flip = flip
        mesh = mesh_of(devices)
        detector = tta.make_detector(self.model, self.config, mesh, self.said.append)
        seen = [views_of(pictures, size.short) for size in tta.sizes(self.config)]
        variables = runtime.replicate(self.variables, mesh)
        return jax.device_get(detector(variables, runtime.shard_batch(seen, mesh)))


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Less to compile; the pictures are few."""
    with pytest.MonkeyPatch.context() as patch:
        options = {"xla_backend_optimization_level": 0}
        patch.setattr(runtime, "compiler_options", lambda: options)
        yield


@pytest.fixture(scope="module", params=MODELS)
def setup(request):
    return Setup(MODELS[request.param])


@pytest.fixture(scope="module")
def plain_setup():
    return Setup({})


@pytest.fixture(scope="module")
def augmented(plain_setup):
    """What is found at two sizes and in their mirror images, and what was said of it."""
    plain_setup.said.clear()
    return plain_setup.detect((64, 48), True), list(plain_setup.said)


def assert_same(a, b, atol=1e-4):
    assert a.valid.sum() > 5
    np.testing.assert_array_equal(a.valid, b.valid)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
    valid = a.valid
    np.testing.assert_array_equal(a.classes[valid], b.classes[valid])
    np.testing.assert_allclose(a.boxes[valid], b.boxes[valid], atol=atol)
    assert (a.masks is None) == (b.masks is None)
    if a.masks is not None:
        np.testing.assert_allclose(a.masks[valid], b.masks[valid], atol=1e-4)


def test_one_view_is_plain_evaluation(setup):
    assert_same(setup.detect((64,), False), setup.detect((), False))


def mirrored(found, width):
    """Detections of a picture of that width, left and right exchanged."""
    x0, y0, x1, y1 = np.moveaxis(found.boxes, -1, 0)
    boxes = np.stack([width - x1, y0, width - x0, y1], -1)
    masks = None if found.masks is None else found.masks[..., ::-1]
    return found._replace(boxes=boxes, masks=masks)


def test_a_mirrored_picture_has_mirrored_detections(plain_setup):
    picture = PICTURES[0]  # of the size that it is seen at: resizing does not interfere
    found = plain_setup.detect((64,), True, [picture, picture[:, ::-1]])
    ours, theirs = (jax.tree.map(lambda x, i=i: x[i : i + 1], found) for i in range(2))
    assert_same(mirrored(ours, 88), theirs)


def greedy(boxes, scores, classes, thresh, number):
    """Rows that class-wise NMS keeps, best first, one box after another."""
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        rivals = [j for j in kept if classes[j] == classes[i]]
        if all(iou(boxes[i], boxes[j]) <= thresh for j in rivals):
            kept.append(i)
    return kept[:number]


def iou(a, b):
    inner = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    return inner / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inner)


def test_merging_is_greedy_nms():
    rng = np.random.default_rng(0)
    model = tiny_model.model(mask_branch="none")
    corner = rng.uniform(0, 40, (3, 2, 25, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 50, corner.shape)], -1)
    boxes = boxes.astype(np.float32)
    scores = rng.uniform(0.05, 1, (3, 2, 25)).astype(np.float32)
    classes, valid = rng.integers(0, 2, scores.shape), rng.uniform(size=scores.shape) < 0.8
    dropped = np.array([[1, 0], [2, 0], [0, 5]], np.int32)
    empty = jnp.zeros((2, 25, 0, 1, 1))
    frame = np.float32([[0, 0, 60, 50], [0, 0, 96, 64]])
    parts = [
        Detections(*(jnp.asarray(x[i]) for x in (boxes, scores, classes, valid)), None, d, empty)
        for i, d in enumerate(dropped)
    ]
    found = jax.jit(lambda parts, frame: tta.merge(model, None, parts, frame))(parts, frame)
    assert found.num_dropped.tolist() == [3, 5] and found.masks is None
    for b in range(2):
        own = valid[:, b].reshape(-1)
        everything = boxes[:, b].reshape(-1, 4)[own]
        everything = np.clip(everything, 0, np.tile(frame[b, 2:], 2))
        s, c = scores[:, b].reshape(-1)[own], classes[:, b].reshape(-1)[own]
        rows = greedy(everything, s, c, model.settings.nms_thresh, 20)
        assert found.valid[b].sum() == len(rows) > 10
        np.testing.assert_array_equal(found.boxes[b, : len(rows)], everything[rows])
        np.testing.assert_array_equal(found.scores[b, : len(rows)], s[rows])
        np.testing.assert_array_equal(found.classes[b, : len(rows)], c[rows])


def by_hand(setup, short, picture):
    """Boxes by NumPy's NMS and masks by NumPy's mean, of two sizes and their mirror images."""
    model, variables = setup.model, setup.variables
    predict = jax.jit(lambda v, *args: families.forward_predict(model, v, *args))
    mask = jax.jit(lambda v, *args: mask_rcnn.forward_masks(model, v, *args))
    boxes, scores, classes, inputs = [], [], [], []
    for side in short:
        for flip in (False, True):
            view = views_of([picture], side)
            (height, width) = hw = view.image_hw[0]
            images = view.images.copy()
            if flip:
                images[:, :, :width] = view.images[:, :, :width][:, :, ::-1]
            found = jax.device_get(predict(variables, images, view.image_hw, view.window))
            if flip:
                found = mirrored(found, width)
            scale = np.tile(PICTURE_HW[::-1] / np.float32([width, height]), 2)
            boxes.append(found.boxes[0][found.valid[0]] * scale)
            scores.append(found.scores[0][found.valid[0]])
            classes.append(found.classes[0][found.valid[0]])
            inputs.append((images, hw, scale, flip))
    boxes, scores, classes = map(np.concatenate, (boxes, scores, classes))
    rows = greedy(boxes, scores, classes, 0.5, 20)
    boxes, scores, classes = boxes[rows], scores[rows], classes[rows]
    masks = []
    for images, hw, scale, flip in inputs:
        own = (boxes / scale)[None]
        if flip:
            own = own.copy()
            own[..., [0, 2]] = hw[1] - own[..., [2, 0]]
        valid = np.ones((1, len(rows)), bool)
        found = mask(variables, images, hw[None], own.astype(np.float32), classes[None], valid)
        masks.append(np.asarray(found[0])[..., :: -1 if flip else 1])
    return boxes, scores, classes, np.mean(masks, 0)


PICTURE_HW = np.float32(PICTURES[0].shape[:2])


def test_boxes_and_masks_of_many_views(plain_setup, augmented):
    boxes, scores, classes, masks = by_hand(plain_setup, (64, 48), PICTURES[0])
    found = jax.tree.map(lambda x: x[0, : len(boxes)], augmented[0]._replace(num_dropped=None))
    assert augmented[0].valid[0].sum() == len(boxes) > 10
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    np.testing.assert_array_equal(found.classes, classes)
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-3)
    np.testing.assert_allclose(found.masks, masks, atol=1e-4)


def test_programs_are_few_and_told(augmented):
    names = [line.split(" in ")[0] for line in augmented[1]]
    assert names == [f"compiled the prediction of {kind} for 64x96" for kind in ("boxes", "masks")]


def test_many_devices_find_the_same(plain_setup, augmented):
    assert_same(plain_setup.detect((64, 48), True, devices=2), augmented[0])


def test_views_mirror_pictures_and_not_their_padding():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 4, 8, 3)).astype(np.uint8)
    window = jnp.array([[0, 0, 5, 4], [1, 0, 7, 3]], jnp.float32)
    view = View(jnp.asarray(images), jnp.array([[4, 5], [4, 8]]), window)
    seen = views.mirror(view, jnp.array(True))
    expected = images.copy()
    expected[0, :, :5] = images[0, :, 4::-1]
    expected[1] = images[1, :, ::-1]
    np.testing.assert_array_equal(seen.images, expected)
    np.testing.assert_array_equal(seen.window, [[0, 0, 5, 4], [1, 0, 7, 3]])
    for a, b in zip(views.mirror(view, jnp.array(False)), view, strict=True):
        np.testing.assert_array_equal(a, b)


def test_boxes_are_carried_from_window_to_window():
    boxes = jnp.array([[[10, 20, 30, 60], [0, 20, 10, 40]]], jnp.float32)
    window, to = jnp.array([[0, 20, 40, 60]], jnp.float32), jnp.array([[5, 0, 85, 20]], jnp.float32)
    moved = views.carry(boxes, window, to)
    np.testing.assert_allclose(moved, [[[25, 0, 65, 20], [5, 0, 25, 10]]])
    np.testing.assert_allclose(views.carry(moved, to, window), boxes)


def test_sizes_hold_every_picture():
    config = common.get_config()
    assert tta.sizes(config) == ((800, 1333, ((800, 1088), (800, 1344), (1088, 800), (1344, 800))),)
    config.eval.tta_short = (400, 1200)
    small, large = tta.sizes(config)
    assert (small.short, large.long) == (400, 2000) and len(large.canvases) == 4
    assert small.canvases[:2] == ((416, 544), (416, 672)) and (416, 2016) in small.canvases


INVALID = {
    ("eval.tta_flip=true",): "set eval.tta_short=800",
    ("eval.tta_short=400,0",): "greater than 0",
    ("eval.tta_short=400,600.5",): "whole numbers",
    ("eval.tta_short=((400,600),)",): "whole numbers",
    ("eval.tta_short=400,400",): "twice",
    ("eval.tta_short=400,3000",): "raise eval.tta_long",
    ("eval.tta_short=400", "eval.tta_long=0"): "greater than 0",
    ("eval.tta_short=400", "data.resize_rule=matterport"): "set a multiple of 32, as 2016",
    ("eval.tta_short=400", "model.keypoints=17", "train.best_metric=bbox/AP"): "keypoints=17",
}


@pytest.mark.parametrize("overrides", INVALID, ids=lambda o: o[-1])
def test_wrong_fields_are_refused(overrides):
    data = ("data.name=coco_2017",)
    path = tiny_run.ROOT / "configs" / "common.py"
    config = config_lib.load(path, (*data, *overrides), schema=common.get_config())
    with pytest.raises(UserError) as error:
        config_lib.validate(config)
    assert INVALID[overrides] in str(error.value) and str(error.value).count("\n") == 0


def test_keypoints_of_foreign_weights_are_refused():
    config = tiny_model.config()
    config.eval.tta_short = (64,)
    model = tiny_model.model(keypoints=5)
    with pytest.raises(UserError, match="keypoints=5"):
        tta.make_detector(model, config, mesh_of(1), print)


def test_evaluation_of_one_view_is_the_plain_one(plain_setup, tmp_path):
    """And of three: pictures are read at each size, boxes and masks return to the picture."""
    config = plain_setup.config
    config.data.update({"cache_dir": str(tmp_path), "shapes_train": 1, "shapes_val": 3})
    config.eval.num_pictures = 1
    _, data = load_data(config, train=False)
    log = RunLog(tmp_path, 0, 0, speaks=True, records=False)
    found = {}
    for short in ((), (64,), (64, 48)):
        config.eval.tta_short, config.eval.tta_long, config.eval.tta_flip = short, 96, False
        mesh, classes = mesh_of(1), {"names": data.names, "category_ids": data.category_ids}
        evaluator = Evaluator(plain_setup.model, data, config, mesh, print, classes)
        evaluator.run(runtime.replicate(plain_setup.variables, mesh), tmp_path / "eval", log, 0)
        found[short] = json.loads((tmp_path / "eval" / "results.json").read_text())
    plain, one, two = found.values()
    assert len(plain) == len(one) > 20 and len(two) > 20 and two != one
    for a, b in zip(plain, one, strict=True):
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        np.testing.assert_allclose(a["bbox"], b["bbox"], atol=2e-3)
        np.testing.assert_allclose(a["score"], b["score"], atol=1e-5)
        masks = [postprocess.rle_to_mask(row["segmentation"]) for row in (a, b)]
        assert (masks[0] == masks[1]).mean() > 0.999
    best = [max(rows, key=lambda row: row["score"]) for rows in (plain, two)]
    masks = [postprocess.rle_to_mask(row["segmentation"]) for row in best]
    assert masks[0].shape == masks[1].shape
