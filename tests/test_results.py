"""Average precision against pycocotools run by hand, and the figures that need a reason."""

import contextlib
import io
import json
import re

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_jax.data import shapes
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.results import engines, evaluate_coco, to_coco_results

# pycocotools adds 2.2e-16 to the denominator of the precision, which moves its last bit.
_RTOL = {"pycocotools": 0.0, "faster-coco-eval": 1e-14}
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def _load(path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def _truth_as_results(coco: COCO, rng=None) -> list[dict]:
    """All objects through the results writer; with `rng` moved, doubled, dropped and relabelled."""
    category_ids = sorted(coco.cats)
    results = []
    for image_id in sorted(coco.imgs):
        rows = [r for r in coco.imgToAnns[image_id] if not r["iscrowd"]]
        if rng is not None:
            rows = [r for r in rows if rng.random() < 0.9] + rows[:2]
        if not rows:
            continue
        boxes = np.array([r["bbox"] for r in rows], np.float32)
        boxes[:, 2:] += boxes[:, :2]
        classes = np.array([category_ids.index(r["category_id"]) for r in rows])
        masks = [coco.annToMask(r) for r in rows]
        scores = np.ones(len(rows), np.float32)
        if rng is not None:
            shift = rng.integers(-3, 4, (len(rows), 2))
            boxes = boxes + np.tile(shift, 2).astype(np.float32)
            masks = [np.roll(m, s[::-1], (0, 1)) for m, s in zip(masks, shift, strict=True)]
            wrong = rng.random(len(rows)) < 0.1
            classes = np.where(wrong, rng.integers(len(category_ids), size=len(rows)), classes)
            scores = rng.random(len(rows)).astype(np.float32)
        rles = [coco_mask.encode(np.asfortranarray(m)) for m in masks]
        rles = [{"size": r["size"], "counts": r["counts"].decode()} for r in rles]
        results += to_coco_results(boxes, scores, classes, rles, image_id, category_ids)
    return results


def _by_hand(annotations, results: list[dict], iou_type: str, tmp_path) -> np.ndarray:
    # Mask results in COCO's own format hold no box.
    if iou_type == "segm":
        results = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
    path = tmp_path / f"{iou_type}.json"
    path.write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluator = COCOeval(truth, truth.loadRes(str(path)), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats[:6]


@pytest.fixture(scope="module")
def shapes_val(tmp_path_factory):
    return shapes.generate(tmp_path_factory.mktemp("shapes"), 1, 10)["val"][0]


@pytest.fixture(params=["shapes", "coco_tiny"])
def annotations(request, shapes_val):
    if request.param == "shapes":
        return shapes_val
    data = request.getfixturevalue("shared_data")
    return str(data / "coco_tiny" / "annotations" / "instances_val2017.json")


def test_ground_truth_as_predictions_is_perfect(annotations):
    coco = _load(annotations)
    evaluation = evaluate_coco(annotations, json.loads(json.dumps(_truth_as_results(coco))))
    assert set(evaluation.metrics) == {f"{t}/{n}" for t in ("bbox", "segm") for n in NAMES}
    for key, value in evaluation.metrics.items():
        assert value == pytest.approx(1.0, abs=5e-4) or key in evaluation.reasons
    for key in ("bbox/AP", "segm/AP", "bbox/AP75", "segm/AP75"):
        assert evaluation.metrics[key] == pytest.approx(1.0, abs=5e-4)
    rows = [r for r in coco.anns.values() if not r["iscrowd"]]
    assert sum(r.num_objects for r in evaluation.per_class) == len(rows)
    assert sum(r.num_detections for r in evaluation.per_class) == len(rows)


@pytest.fixture(params=["pycocotools", "faster-coco-eval"])
def engine(request):
    if request.param not in engines():
        pytest.skip(f"{request.param} is not installed: pip install maskrcnn_jax[fast-eval]")
    return request.param


def test_equals_pycocotools_by_hand(annotations, engine, tmp_path):
    results = _truth_as_results(_load(annotations), np.random.default_rng(0))
    evaluation = evaluate_coco(annotations, results, engine=engine)
    for iou_type in ("bbox", "segm"):
        expected = _by_hand(annotations, results, iou_type, tmp_path)
        found = [evaluation.metrics[f"{iou_type}/{n}"] for n in NAMES]
        np.testing.assert_allclose(found, expected, rtol=_RTOL[engine], atol=0)
        per_class = [getattr(r, f"{iou_type}_ap") for r in evaluation.per_class]
        per_class = [v for v in per_class if v >= 0]
        assert 0.1 < found[0] < 0.9
        np.testing.assert_allclose(np.mean(per_class), found[0])


def test_engines_agree_in_everything_told(annotations, engine):
    found = _truth_as_results(_load(annotations), np.random.default_rng(1))
    some_ids = sorted({row["image_id"] for row in found})[::2]
    for results, image_ids in ((found, None), (found, some_ids), ([], None)):
        asked, expected = (
            evaluate_coco(annotations, [dict(r) for r in results], image_ids=image_ids, engine=e)
            for e in (engine, "pycocotools")
        )
        close = {"rel": _RTOL[engine], "abs": 0}
        assert asked.metrics == pytest.approx(expected.metrics, **close)
        assert asked.reasons == expected.reasons
        for row, other in zip(asked.per_class, expected.per_class, strict=True):
            assert row[0] == other[0] and row[3:] == other[3:]
            assert row[1:3] == pytest.approx(other[1:3], **close)


def test_writer_rounds_without_loss():
    boxes = np.array([[1.25, 2.5, 11.3333333, 22.5]], np.float32)
    scores = np.array([0.123456789], np.float32)
    (row,) = to_coco_results(boxes, scores, np.array([1]), None, np.int64(42), (3, 7))
    assert row == {
        "image_id": 42,
        "category_id": 7,
        "bbox": [1.25, 2.5, 10.083, 20.0],
        "score": row["score"],
    }
    assert np.float32(json.loads(json.dumps(row))["score"]) == scores[0]


def _truth(**changes) -> dict:
    """One image with one object of 20 x 20 px, one crowd, one class of three with objects."""
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    crowd = {"size": [64, 64], "counts": [0, 64, 4032]}
    content = {
        "images": [{"id": 0, "height": 64, "width": 64}, {"id": 5, "height": 64, "width": 64}],
        "categories": [{"id": i, "name": n} for i, n in ((0, "cat"), (7, "dog"), (90, "owl"))],
        "annotations": [
            {
                "id": 0,
                "image_id": 0,
                "category_id": 7,
                "bbox": [10, 10, 20, 20],
                "area": 400,
                "segmentation": square,
            },
            {
                "id": 9,
                "image_id": 5,
                "category_id": 90,
                "bbox": [0, 0, 1, 64],
                "area": 64,
                "iscrowd": 1,
                "segmentation": crowd,
            },
        ],
    }
    return {**content, **changes}


def _result(**changes) -> dict:
    mask = np.zeros((64, 64), np.uint8, order="F")
    mask[10:30, 10:30] = 1
    row = {
        "image_id": 0,
        "category_id": 7,
        "bbox": [10.0, 10.0, 20.0, 20.0],
        "score": 0.9,
        "segmentation": coco_mask.encode(mask),
    }
    return {**row, **changes}


def test_ids_from_zero_and_missing_iscrowd_count():
    """pycocotools alone takes annotation 0 for unmatched and fails without 'iscrowd'."""
    truth = _truth()
    before = json.dumps(truth)
    evaluation = evaluate_coco(truth, [_result()])
    assert json.dumps(truth) == before
    assert evaluation.metrics["bbox/AP"] == evaluation.metrics["segm/AP"] == pytest.approx(1)
    assert [tuple(r) for r in evaluation.per_class] == [
        ("cat", -1.0, -1.0, 0, 0, None),
        ("dog", pytest.approx(1), pytest.approx(1), 1, 1, None),
        ("owl", -1.0, -1.0, 0, 0, None),
    ]
    assert evaluation.metrics["segm/APm"] == evaluation.metrics["bbox/APl"] == -1
    assert evaluation.reasons == {
        f"{t}/AP{s[0]}": f"no {s} objects in the annotations"
        for t in ("bbox", "segm")
        for s in ("medium", "large")
    }


def test_one_class():
    truth = _truth(categories=[{"id": 7, "name": "dog"}])
    truth["annotations"] = truth["annotations"][:1]
    evaluation = evaluate_coco(truth, [_result()], iou_types=("bbox",))
    assert evaluation.metrics["bbox/AP"] == pytest.approx(1)
    assert evaluation.per_class == [("dog", pytest.approx(1), None, 1, 1, None)]
    assert not any(key.startswith("segm") for key in evaluation.metrics)


def test_a_mask_without_its_box_counts_by_the_area_of_the_mask():
    """A diagonal stroke: its box is of medium, its mask of small area."""
    mask = np.asfortranarray(np.eye(64, dtype=np.uint8))
    stroke = _result(bbox=[0.0, 0.0, 64.0, 64.0], segmentation=coco_mask.encode(mask), score=0.99)
    metrics = evaluate_coco(_truth(), [_result(), stroke]).metrics
    assert metrics["bbox/APs"] == pytest.approx(1)  # the stroke's box is ignored as too large
    assert metrics["segm/APs"] == pytest.approx(0.5)  # its mask is a false positive


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ([], "no predictions"),
        ([_result(category_id=3)], "no predicted id is in the annotations: category ids \\[3\\]"),
        ([_result(image_id=77)], "no predicted id is in the annotations: image ids \\[77\\]"),
        ([_result(category_id=0)], "no prediction overlaps a .*object of its class by IoU >= 0.50"),
    ],
)
def test_zero_has_a_reason(results, reason):
    evaluation = evaluate_coco(_truth(), results)
    for key in ("bbox/AP", "segm/AP50", "segm/APs"):
        assert evaluation.metrics[key] == 0
        assert re.match(reason, evaluation.reasons[key])
    assert evaluation.reasons["segm/APl"] == "no large objects in the annotations"


def test_partly_foreign_ids_are_left_out_with_a_warning(caplog):
    evaluation = evaluate_coco(_truth(), [_result(), _result(category_id=3), _result(image_id=8)])
    assert evaluation.metrics["bbox/AP"] == pytest.approx(1)
    assert "unknown category" in caplog.text and "unknown image" in caplog.text


def test_only_the_wanted_images():
    evaluation = evaluate_coco(_truth(), [_result()], image_ids=[5])
    assert set(evaluation.metrics.values()) == {-1.0}
    assert "no objects" in evaluation.reasons["bbox/AP"]
    evaluation = evaluate_coco(_truth(), [_result(), _result(image_id=5)], image_ids=np.array([0]))
    assert evaluation.metrics["bbox/AP"] == pytest.approx(1)
    assert sum(row.num_detections for row in evaluation.per_class) == 1


def test_nothing_is_printed(capsys):
    evaluate_coco(_truth(), [_result()])
    assert capsys.readouterr().out == ""


def test_bad_annotations(tmp_path):
    with pytest.raises(UserError, match="gone.json"):
        evaluate_coco(tmp_path / "gone.json", [])
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(UserError, match="cut.json.*not valid JSON"):
        evaluate_coco(tmp_path / "cut.json", [])
    with pytest.raises(UserError, match="not COCO annotations.*annotations"):
        evaluate_coco({"images": [], "categories": []}, [])
    boxes_only = _truth()
    boxes_only["annotations"][0]["segmentation"] = []
    with pytest.raises(UserError, match="annotation 0 has no 'segmentation'"):
        evaluate_coco(boxes_only, [])
    assert evaluate_coco(boxes_only, [_result()], iou_types=("bbox",)).metrics["bbox/AP"] > 0.99
