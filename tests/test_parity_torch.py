"""Whole models against Detectron2 and torchvision: same weights, same image, same detections.

Every e2e_*.npz of the golden set is run once; each of its arrays is compared. The worst value of
each is printed, and written to the file that MASKRCNN_PARITY_TABLE names.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

import golden_sets
import numpy as np
import peer_model
import pytest
from pycocotools import mask as coco_mask

from maskrcnn_jax import postprocess
from maskrcnn_jax.weights import importer

pytestmark = pytest.mark.optimized

MAPS = 1e-4  # of the map's standard deviation
BOXES = 0.003  # pixels
SCORES = 1e-4
OVERLAP = 0.01  # 1 - IoU of masks

CASES = [path.stem.removeprefix("e2e_") for path in golden_sets.find("torch", "e2e_*.npz")]
# Compared with others, or only tell about them; the eps1e-5 ones are what a wrong importer gives.
NOT_OUTPUTS = r"image|\w+_shape|eps1e-5_\w+"

found: dict[str, dict[str, np.ndarray]] = {}


@pytest.fixture(params=CASES or [pytest.param("", marks=pytest.mark.skip("no e2e_*.npz"))])
def case(request):
    """(name, golden arrays, our arrays, what was imported); each model runs once."""
    name = request.param
    golden = golden_sets.load("torch", f"e2e_{name}")
    imported = importer.import_weights(peer_model.source(peer_model.tensors(name)))
    if name not in found:
        found.clear()
        found[name] = peer_model.run(imported, golden["image"])
    return name, golden, found[name], imported


def test_whole_model(case):
    name, golden, ours, imported = case
    rows = [
        (key, *_compare(key, golden, ours, imported.spec.family))
        for key in golden
        if not re.fullmatch(NOT_OUTPUTS, key)
    ]
    lines = [
        f"{name:8} {key:30} {value:10.3g} of {bound:g} {unit}" for key, value, bound, unit in rows
    ]
    print("\n" + "\n".join(lines))
    if table := os.environ.get("MASKRCNN_PARITY_TABLE"):
        with Path(table).open("a") as file:
            file.write("\n".join(lines) + "\n")
    failed = [
        line for line, (_, value, bound, _) in zip(lines, rows, strict=True) if not value <= bound
    ]
    assert not failed, "\n".join(failed)
    for key in golden:
        if key.endswith("_shape"):
            map_shape = ours[key.removesuffix("_shape")].shape
            assert tuple(golden[key]) == (1, map_shape[2], *map_shape[:2]), key


def test_the_bounds_see_a_wrong_epsilon(case):
    name, golden, ours, _ = case
    if "eps1e-5_boxes" not in golden:
        pytest.skip(f"{name}: no numbers of a wrong epsilon")
    boxes = np.abs(golden["eps1e-5_boxes"] - ours["boxes"][: len(golden["boxes"])]).max()
    scores = np.abs(golden["eps1e-5_scores"] - ours["scores"][: len(golden["boxes"])]).max()
    assert boxes > BOXES and scores > SCORES


def _compare(key: str, golden: dict, ours: dict, family: str) -> tuple[float, float, str]:
    """(worst difference, its bound, what it is) of one array; an unknown one raises KeyError."""
    theirs = golden[key]
    if family == "torchvision" and key in BACKGROUND:  # deltas and masks that nobody uses
        theirs = theirs[BACKGROUND[key]]
    if key.endswith("_mean_std"):
        x = np.asarray(ours[key.removesuffix("_mean_std")], np.float64)
        return np.abs([x.mean(), x.std()] - theirs).max() / theirs[1], MAPS, "of the std"
    if f"{key}_mean_std" in golden:
        return _map_difference(ours[key], theirs, golden[f"{key}_mean_std"][1]), MAPS, "of the std"
    if key in HEADS:
        x = HEADS[key](ours[HEAD_OUTPUTS.get(key, key)], family)[tuple(map(slice, theirs.shape))]
        return np.abs(x - theirs).max() / theirs.std(), MAPS, "of the std"
    count = len(theirs) if theirs.ndim else 0
    if key in ("proposals", "boxes"):
        return np.abs(ours[key][:count] - theirs).max(), BOXES, "px"
    if key == "proposal_logits":
        return np.abs(ours[key][:count] - theirs).max() / theirs.std(), MAPS, "of the std"
    if key == "proposal_probabilities":
        return np.abs(_sigmoid(ours["proposal_logits"][:count]) - theirs).max(), SCORES, ""
    if key == "scores":
        return np.abs(ours[key][:count] - theirs).max(), SCORES, ""
    if key == "num_proposals":
        return abs(int(ours[key]) - int(theirs)), 0, "proposals"
    if key == "classes":
        first = 1 if family == "torchvision" else 0
        wrong = (ours[key][:count] + first != theirs).sum() + abs(int(ours["valid"].sum()) - count)
        return wrong, 0, "detections"
    return _compare_masks(key, golden, ours, family)


def _compare_masks(key: str, golden: dict, ours: dict, family: str) -> tuple[float, float, str]:
    theirs, hw = golden[key], golden["image"].shape[:2]

    def soft(i: int) -> np.ndarray:
        return postprocess.paste_torchvision(ours["masks"][i], ours["boxes"][i], hw)

    if key == "soft_masks_first4":
        pasted = np.stack([soft(i)[::4, ::4] for i in range(len(theirs))])
        return np.abs(pasted - theirs).max(), SCORES, ""
    worst = 0.0
    for i, expected in enumerate(theirs):
        if family == "torchvision":
            mask = soft(i) > 0.5
        else:
            mask = postprocess.paste_binary(ours["masks"][i], ours["boxes"][i], hw)
        if key == "mask_area":
            worst = max(worst, abs(int(mask.sum()) - int(expected)) / max(int(expected), 1))
            continue
        assert key == "mask_rle", f"{key}: no test knows this array"
        rle = {"size": list(hw), "counts": str(expected).encode()}
        peer = coco_mask.decode(rle).astype(bool)
        union = (mask | peer).sum()
        worst = max(worst, 1 - (mask & peer).sum() / union if union else 0.0)
    return worst, OVERLAP, "of the area" if key == "mask_area" else "1 - IoU"


def _map_difference(x: np.ndarray, theirs: np.ndarray, std: float) -> float:
    """Of a map [h, w, F] and what is stored of it: every fourth cell, or all of a small one."""
    x = x.transpose(2, 0, 1)
    stored = x if theirs.shape == x.shape else x[:, ::4, ::4]
    return np.abs(stored - theirs).max() / std


def _background_first(logits: np.ndarray, family: str) -> np.ndarray:
    return np.roll(logits, 1, -1) if family == "torchvision" else logits


def _flat_deltas(deltas: np.ndarray, family: str) -> np.ndarray:
    return deltas.reshape(len(deltas), -1)


HEADS: dict[str, Callable[[np.ndarray, str], np.ndarray]] = {
    "box_rois_first4": lambda x, family: x.transpose(0, 3, 1, 2),
    "cls_score": _background_first,
    "box_deltas": _flat_deltas,
    "mask_logits": lambda x, family: x,
    "mask_logits_all_classes_first": lambda x, family: x,
}
BACKGROUND = {
    "box_deltas": np.s_[:, 4:],
    "mask_logits_all_classes_first": np.s_[1:],
}
HEAD_OUTPUTS = {"box_rois_first4": "box_rois"}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))
