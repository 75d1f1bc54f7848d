"""Single operations: ROIAlign, NMS, matching anchors, pasting masks; against the peers'."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import peers_torch
from benchmarks.timing import Case, Setting
from maskrcnn_jax.ops import anchors as anchor_ops
from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.ops import matching as matching_ops
from maskrcnn_jax.ops.nms import nms as nms_op
from maskrcnn_jax.ops.roi_align import multilevel_roi_align

STRIDES = (4, 8, 16, 32)
_THRESH = 0.7


def roi_align(setting: Setting) -> Iterator[Case]:
    """torchvision's rule over P2..P5 of 256 channels: two samples a bin and axis, or adaptive."""
    for count, size, samples in (
        ((64, 7, 2),) if setting.small else ((1000, 7, 2), (512, 14, 2), (1000, 7, 0))
    ):
        yield from _roi_align(setting, count, size, samples)


def nms(setting: Setting) -> Iterator[Case]:
    """One set of boxes; and the five levels of an image, as proposals are made of."""
    for count in (200,) if setting.small else (1000, 2000, 5000):
        boxes, scores = _clusters(setting.hw, count)
        ours = _ready(_keep, boxes, scores)
        peers = {}
        if setting.has("torchvision"):
            peers["torchvision"] = _torch_nms(setting, boxes, scores)
        yield Case(f"NMS of {count} boxes at {_THRESH}", ours, peers)
    for count in (100,) if setting.small else (1000, 2000):
        levels = [_clusters(setting.hw, count, seed) for seed in range(5)]
        ours = _ready(lambda levels: [_keep(*level) for level in levels], levels)
        peers = {}
        if setting.has("torchvision"):
            boxes, scores = (np.concatenate(x) for x in zip(*levels, strict=True))
            level = np.repeat(np.arange(5), count)
            peers["torchvision"] = _torch_nms(setting, boxes, scores, level)
        yield Case(f"NMS of 5 levels of {count} boxes at {_THRESH}", ours, peers)


def matching(setting: Setting) -> Iterator[Case]:
    """The anchors of an image with the objects in it."""
    levels = anchor_ops.grid_anchors(
        setting.hw, (*STRIDES, 64), (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
    )
    anchors = np.concatenate(levels).astype(np.float32)
    for count in (20,) if setting.small else (20, 100):
        gt = random_boxes(np.random.default_rng(0), count, setting.hw)
        peers = {}
        if setting.has("torchvision"):
            peers["torchvision"] = _torch_matching(setting, gt, anchors)
        name = f"matching {len(anchors)} anchors with {count} objects"
        yield Case(name, _ready(_match, gt, anchors), peers)


def paste(setting: Setting) -> Iterator[Case]:
    """To the compressed RLE of the results: what evaluation and prediction need of a mask."""
    from maskrcnn_jax import conventions

    count, hw = 10 if setting.small else 100, setting.hw
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, count, hw)
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    masks = (1 / (1 + np.exp(6 * (x**2 + y**2 - rng.uniform(0.4, 0.9, (count, 1, 1)))))).astype(
        np.float32
    )
    for rule in ("detectron2", "torchvision"):

        def ours(rule: str = rule) -> list:
            return [
                conventions.mask_to_rle(m, b, hw, rule, 0.5)
                for m, b in zip(masks, boxes, strict=True)
            ]

        peers = {}
        if setting.has(rule):
            peers[rule] = _torch_paste(rule, masks, boxes, hw)
        elif setting.has("torchvision"):
            peers["torchvision"] = _torch_paste("torchvision", masks, boxes, hw)
        yield Case(f"pasting {count} masks to RLE, rule of {rule}", ours, peers)


def random_boxes(rng: np.random.Generator, count: int, hw: tuple[int, int]) -> np.ndarray:
    """Boxes of log-uniform sides from 16 px to most of the image, float32 xyxy."""
    extent = np.exp(rng.uniform(np.log(16), np.log(0.8 * min(hw)), (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * ([hw[1], hw[0]] - extent)
    return np.concatenate([corner, corner + extent], 1).astype(np.float32)


def _ready(function: Callable, *args: Any) -> Callable[[], Any]:
    run = jax.jit(function)
    placed = jax.device_put(args)
    return lambda: jax.block_until_ready(run(*placed))


def _roi_align(setting: Setting, count: int, size: int, samples: int) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    hw = setting.hw
    maps = {
        f"p{i + 2}": rng.standard_normal((1, hw[0] // s, hw[1] // s, 256), np.float32)
        for i, s in enumerate(STRIDES)
    }
    maps = {name: np.asarray(jnp.asarray(x, setting.dtype)) for name, x in maps.items()}
    rois = random_boxes(rng, count, hw)[None]
    pool = lambda maps, rois: multilevel_roi_align(  # noqa: E731
        maps, rois, size, sampling_ratio=samples, aligned=False, level_eps=1e-6
    )
    grad = jax.grad(lambda maps, rois: (pool(maps, rois).astype(jnp.float32) ** 2).sum())
    forward, backward = {}, {}
    if setting.has("torchvision"):
        forward["torchvision"], backward["torchvision"] = _torch_roi_align(
            setting, maps, rois[0], size, samples
        )
    name = f"ROIAlign {count} rois to {size}x{size}x256" + ("" if samples else ", adaptive samples")
    yield Case(f"{name}, forward", _ready(pool, maps, rois), forward)
    yield Case(f"{name}, forward and backward", _ready(grad, maps, rois), backward)


def _torch_roi_align(
    setting: Setting, maps: dict, rois: np.ndarray, size: int, samples: int
) -> tuple[Callable, Callable]:
    import torch
    from torchvision.ops import MultiScaleRoIAlign

    hw, device = setting.hw, setting.device
    pooler = MultiScaleRoIAlign(list(maps), size, samples or -1)
    dtype = getattr(torch, setting.dtype)
    features = {
        # Its kernel wants channels first, and float32 on CPUs.
        k: torch.from_numpy(np.ascontiguousarray(v.astype(np.float32).transpose(0, 3, 1, 2))).to(
            device, dtype if device == "cuda" else None
        )
        for k, v in maps.items()
    }
    boxes = [torch.from_numpy(rois).to(device, next(iter(features.values())).dtype)]

    def forward() -> Any:
        with torch.no_grad():
            return pooler(features, boxes, [hw])

    def backward() -> Any:
        leaves = {k: v.requires_grad_() for k, v in features.items()}
        total = (pooler(leaves, boxes, [hw]).float() ** 2).sum()
        return torch.autograd.grad(total, list(leaves.values()))

    return peers_torch.waiting(forward, device), peers_torch.waiting(backward, device)


def _keep(boxes: jax.Array, scores: jax.Array) -> jax.Array:
    return nms_op(boxes, scores, jnp.ones(len(scores), bool), _THRESH)


def _clusters(hw: tuple[int, int], count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Boxes around objects, as proposals are, and scores."""
    rng = np.random.default_rng(seed)
    objects = random_boxes(rng, max(count // 25, 1), hw)
    boxes = objects[rng.integers(0, len(objects), count)]
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    boxes = (boxes + rng.normal(0, 0.1, boxes.shape) * sides).astype(np.float32)
    return boxes, rng.uniform(0, 1, count).astype(np.float32)


def _torch_nms(
    setting: Setting, boxes: np.ndarray, scores: np.ndarray, levels: np.ndarray | None = None
) -> Callable:
    import torch
    from torchvision.ops import batched_nms
    from torchvision.ops import nms as one_nms

    b, s = (torch.from_numpy(x).to(setting.device) for x in (boxes, scores))
    if levels is None:
        return peers_torch.waiting(lambda: one_nms(b, s, _THRESH), setting.device)
    of = torch.from_numpy(levels).to(setting.device)
    return peers_torch.waiting(lambda: batched_nms(b, s, of, _THRESH), setting.device)


def _match(gt: jax.Array, anchors: jax.Array) -> tuple:
    iou = box_ops.pairwise_iou(gt, anchors)
    valid = jnp.ones(len(gt), bool)
    return matching_ops.match(iou, valid, (0.3, 0.7), (0, -1, 1), allow_low_quality=True)


def _torch_matching(setting: Setting, gt: np.ndarray, anchors: np.ndarray) -> Callable:
    import torch
    from torchvision.models.detection._utils import Matcher
    from torchvision.ops import box_iou

    g, a = (torch.from_numpy(x).to(setting.device) for x in (gt, anchors))
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    return peers_torch.waiting(lambda: matcher(box_iou(g, a)), setting.device)


def _torch_paste(rule: str, masks: np.ndarray, boxes: np.ndarray, hw: tuple[int, int]) -> Callable:
    import torch
    from pycocotools import mask as coco_mask

    m, b = torch.from_numpy(masks), torch.from_numpy(boxes)
    if rule == "detectron2":
        from detectron2.layers import paste_masks_in_image

        pasted = lambda: paste_masks_in_image(m, b, hw, 0.5)  # noqa: E731
    else:
        from torchvision.models.detection.roi_heads import paste_masks_in_image

        pasted = lambda: (paste_masks_in_image(m[:, None], b, hw) > 0.5)[:, 0]  # noqa: E731

    def run() -> list:
        return [coco_mask.encode(np.asfortranarray(x)) for x in pasted().numpy().astype(np.uint8)]

    return run
