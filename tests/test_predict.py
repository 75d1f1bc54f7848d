"""The predictor: every kind of input agrees, batches equal single pictures, few programs."""

import io
import json

import jax
import numpy as np
import pytest
import tiny_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from tiny_checkpoint import photo

import maskrcnn_jax
from maskrcnn_jax import canvases, conventions, postprocess, preprocess
from maskrcnn_jax.errors import UserError


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tiny_checkpoint.make(tmp_path_factory.mktemp("predict") / "run")


@pytest.fixture(scope="module")
def predictor(workdir):
    return maskrcnn_jax.load(workdir)


def assert_same(a, b, atol=1e-4):
    assert len(a) == len(b) > 0
    np.testing.assert_allclose(a.boxes, b.boxes, atol=atol)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
    np.testing.assert_array_equal(a.classes, b.classes)
    assert (a.masks == b.masks).mean() > 0.999


def test_every_kind_of_input_agrees(predictor, tmp_path):
    pixels, path = photo(50, 70), tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    expected = predictor(pixels)
    assert expected.image_hw == (50, 70) and expected.masks.shape == (len(expected), 50, 70)
    sources = [path, str(path), path.read_bytes(), Image.open(path), pixels]
    for found in (*predictor(sources), predictor(path), predictor(Image.fromarray(pixels))):
        assert_same(found, expected, 0)


def by_hand(workdir, canvas, image_hw):
    """The valid rows of what the model finds on a canvas."""
    weights = maskrcnn_jax.predict._read_weights(workdir, print)
    model = maskrcnn_jax.build(weights.config.model, 5)
    run = jax.jit(lambda v, i, hw: maskrcnn_jax.forward_predict(model, v, i, hw))
    out = jax.device_get(run(weights.variables, canvas[None], np.int32([image_hw])))
    return jax.tree.map(lambda x: x[0][out.valid[0]], out._replace(num_dropped=out.scores))


def test_fields_agree_with_the_model(predictor, workdir):
    """Boxes and scores against the model called by hand, on a picture that needs no resizing."""
    pixels = photo(64, 96)
    found, out = predictor(pixels), by_hand(workdir, pixels, (64, 96))
    assert len(found) == len(out.boxes) > 3
    np.testing.assert_allclose(found.boxes, out.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, out.scores, atol=1e-5)
    assert found.names == [tiny_checkpoint.NAMES[c] for c in out.classes]
    masks = [
        postprocess.paste_binary(m, b, (64, 96), 0.5)
        for m, b in zip(out.masks, found.boxes, strict=True)
    ]
    assert (found.masks == masks).mean() > 0.9999
    for rle, mask in zip(found.rles, found.masks, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(rle).astype(bool), mask)


def test_the_rules_of_the_weights_are_followed(tmp_path):
    """torchvision's: floats without antialias, the size rounded down, masks in whole pixels."""
    workdir = tiny_checkpoint.make(tmp_path / "run", rules=("torchvision", "torchvision"))
    image, canvas = photo(61, 87), np.zeros((64, 96, 3), np.float32)
    resized = preprocess.resize_torchvision(image, 64, 96)
    assert resized.shape == (64, 91, 3)  # 64 / 61 * 87 = 91.3
    canvas[:64, :91] = resized
    found, out = maskrcnn_jax.load(workdir)(image), by_hand(workdir, canvas, (64, 91))
    boxes = out.boxes * np.float32([87 / 91, 61 / 64] * 2)
    assert len(found) == len(boxes) > 3
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-3)
    masks = [
        postprocess.paste_torchvision(m, b, (61, 87)) > 0.5
        for m, b in zip(out.masks, boxes, strict=True)
    ]
    assert (found.masks == masks).mean() > 0.999


def test_boxes_are_in_pixels_of_the_picture(predictor):
    """The same picture twice as large: resized to the same canvas, boxes twice as large."""
    small = photo(64, 96)
    large = small.repeat(2, 0).repeat(2, 1)
    a, b = predictor([small, large])
    assert len(a) == len(b)
    np.testing.assert_allclose(2 * a.boxes[:3], b.boxes[:3], atol=2)
    assert b.masks.shape[1:] == (128, 192)


def test_a_batch_equals_single_pictures(predictor, workdir):
    pictures = [*(photo(64, 96, i) for i in range(3)), photo(96, 64), photo(50, 75)]
    batched = maskrcnn_jax.load(workdir, batch_size=2)
    for a, b in zip(batched(pictures), predictor(pictures), strict=True):
        assert a.image_hw == b.image_hw
        assert_same(a, b, 1e-2)
    assert batched.num_programs == 2
    assert batched([]) == []


def test_a_stream_tells_errors_and_yields_every_picture_once(workdir):
    predictor = maskrcnn_jax.load(workdir, batch_size=2)
    sources = [photo(64, 96), b"broken", photo(96, 64), photo(64, 96, 1), 7, photo(64, 64)]
    items = list(predictor.stream(iter(sources)))
    assert sorted(item.index for item in items) == list(range(6))
    for item in items:
        if item.index in (1, 4):
            assert item.error is not None and item.prediction is None
        else:
            np.testing.assert_array_equal(item.image, sources[item.index])
            assert item.prediction.image_hw == item.image.shape[:2]


def test_score_thresholds_above_and_below_the_model_s(predictor, workdir):
    pixels = photo(64, 96)
    everything = predictor(pixels)
    cut = float(np.median(everything.scores))
    high = maskrcnn_jax.load(workdir, score_thresh=cut)(pixels)
    assert 0 < len(high) < len(everything) and (high.scores >= cut).all()
    np.testing.assert_array_equal(high.boxes, everything.boxes[: len(high)])
    weak = tiny_checkpoint.make(workdir.parent / "strict", score_thresh=0.99)
    assert len(maskrcnn_jax.load(weak)(pixels)) == 0
    assert len(maskrcnn_jax.load(weak, score_thresh=0.05)(pixels)) == len(everything)


def test_nothing_found(workdir, tmp_path):
    found = maskrcnn_jax.load(workdir, score_thresh=1.0)(photo(40, 60))
    assert len(found) == 0 and found.names == [] and found.rles == []
    assert found.boxes.shape == (0, 4) and found.masks.shape == (0, 40, 60)
    assert found.to_coco(1) == []
    np.testing.assert_array_equal(found.draw(photo(40, 60)), photo(40, 60))


def test_coco_rows_are_read_by_pycocotools(predictor):
    found = predictor(photo(50, 70))
    rows = json.loads(json.dumps(found.to_coco(42)))
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 42, "height": 50, "width": 70}],
        "categories": [{"id": i} for i in tiny_checkpoint.CATEGORY_IDS],
        "annotations": [],
    }
    truth.createIndex()
    loaded = truth.loadRes(rows)
    assert len(loaded.anns) == len(found)
    first = loaded.anns[1]
    assert first["category_id"] == tiny_checkpoint.CATEGORY_IDS[found.classes[0]]
    np.testing.assert_array_equal(loaded.annToMask(first).astype(bool), found.masks[0])
    x, y, w, h = first["bbox"]
    np.testing.assert_allclose([x, y, x + w, y + h], found.boxes[0], atol=2e-3)


def test_exif_turns_files_and_pillow_images(predictor, tmp_path):
    pixels = photo(60, 90)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(np.rot90(pixels)).save(buffer, "PNG", exif=exif)
    expected = predictor(pixels)
    for source in (buffer.getvalue(), Image.open(buffer)):
        found = predictor(source)
        assert found.image_hw == (60, 90)
        assert_same(found, expected, 0)


def test_draw_takes_what_the_predictor_takes(predictor, tmp_path):
    pixels, path = photo(50, 70), tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    found = predictor(path)
    drawn = found.draw(path)
    assert drawn.shape == pixels.shape and (drawn != pixels).any()
    np.testing.assert_array_equal(drawn, found.draw(pixels))
    with pytest.raises(UserError, match="same picture"):
        found.draw(photo(50, 71))


def test_class_names_can_be_replaced(workdir):
    names = ["a", "b", "c", "d", "e"]
    found = maskrcnn_jax.load(workdir, class_names=names)(photo(64, 96))
    assert set(found.names) <= set(names)
    with pytest.raises(UserError, match="4 are given.*5 classes"):
        maskrcnn_jax.load(workdir, class_names=names[:4])


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ({"score_thresh": 1.5}, "score_thresh=1.5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"canvases": "exakt"}, "exact, bucketed"),
        ({"max_programs": 0}, "max_programs=0"),
    ],
)
def test_wrong_arguments(workdir, arguments, reason):
    with pytest.raises(UserError, match=reason):
        maskrcnn_jax.load(workdir, **arguments)


def test_wrong_pictures(predictor, tmp_path):
    for source in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), 7):
        with pytest.raises(UserError, match="uint8 array"):
            predictor(source)
    with pytest.raises(UserError, match="gone.png"):
        predictor([photo(10, 10), tmp_path / "gone.png"])


def test_weights_of_another_architecture_are_refused(workdir, tmp_path):
    meta = json.loads((workdir / "checkpoints/0/meta/metadata").read_text())
    meta["config"]["model"]["box_fc_dim"] = 48
    copy = tiny_checkpoint.make(tmp_path / "run")
    (copy / "checkpoints/0/meta/metadata").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="box_head"):
        maskrcnn_jax.load(copy)


def test_few_programs_for_many_sizes(tmp_path):
    lines, workdir = [], tiny_checkpoint.make(tmp_path / "run", size=(64, 192))
    predictor = maskrcnn_jax.load(workdir, max_programs=4, say=lines.append)
    sizes = [(64, 64 + 6 * i) for i in range(20)]
    assert len({-(-w // 32) for _, w in sizes}) > 4
    found = predictor([photo(h, w) for h, w in sizes])
    assert [p.image_hw for p in found] == sizes
    assert predictor.num_programs <= 4
    assert sum("compiled the prediction" in line for line in lines) == predictor.num_programs
    assert any("max_programs 4" in line for line in lines)
    # A picture on a larger canvas than its own has almost the same detections.
    exact = maskrcnn_jax.load(workdir)
    a, b = exact(photo(*sizes[-1])), found[-1]
    assert exact.num_programs == 1
    np.testing.assert_allclose(a.scores[:5], b.scores[:5], atol=0.02)


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), max_size=40),
    st.integers(1, 12),
    st.sampled_from(canvases.MODES),
)
def test_the_plan_keeps_its_limit_and_holds_every_picture(sizes, limit, mode):
    resize = ("pillow", 160, 224)
    plan = canvases.CanvasPlan(mode, limit, *resize, lambda text: None)
    chosen = []
    for hw in sizes:
        placement = conventions.place(hw, *resize)
        canvas = plan.choose(placement)
        assert canvas[0] >= placement.image_hw[0] and canvas[1] >= placement.image_hw[1]
        assert canvas[0] % 32 == canvas[1] % 32 == 0
        chosen.append((placement.canvas, canvas))
    assert len({canvas for _, canvas in chosen}) <= limit
    buckets = preprocess.derive_canvases(160, 224)
    if mode == "exact" and len({*buckets, *(own for own, _ in chosen)}) <= limit:
        assert all(own == canvas for own, canvas in chosen)
