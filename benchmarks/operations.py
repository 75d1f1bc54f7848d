"""Single operations: ROIAlign, NMS, matching anchors, pasting masks; against torchvision's."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from pycocotools import mask as coco_mask

from benchmarks import torch_peer
from benchmarks.timing import Case
from maskrcnn_jax import postprocess
from maskrcnn_jax.ops import anchors as anchor_ops
from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.ops import matching
from maskrcnn_jax.ops.nms import nms
from maskrcnn_jax.ops.roi_align import multilevel_roi_align

STRIDES = (4, 8, 16, 32)


def cases(hw: tuple[int, int], device: str, peers: set[str], small: bool) -> Iterator[Case]:
    """Every operation at the sizes of an image of size `hw`."""
    has_torch = "torchvision" in peers
    for count, size in ((64, 7),) if small else ((1000, 7), (512, 14)):
        yield from _roi_align(hw, count, size, device, has_torch)
    for count in (200,) if small else (1000, 2000, 5000):
        yield _nms(hw, count, device, has_torch)
    yield _matching(hw, 20, device, has_torch)
    yield _paste(hw, 10 if small else 100, has_torch)


def random_boxes(rng: np.random.Generator, count: int, hw: tuple[int, int]) -> np.ndarray:
    """Boxes of log-uniform sides from 16 px to most of the image, float32 xyxy."""
    extent = np.exp(rng.uniform(np.log(16), np.log(0.8 * min(hw)), (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * ([hw[1], hw[0]] - extent)
    return np.concatenate([corner, corner + extent], 1).astype(np.float32)


def _ready(function: Callable, *args: object) -> Callable[[], object]:
    run = jax.jit(function)
    placed = jax.device_put(args)
    return lambda: jax.block_until_ready(run(*placed))


def _roi_align(
    hw: tuple[int, int], count: int, size: int, device: str, has_torch: bool
) -> Iterator[Case]:
    """torchvision's rule, two samples a bin and axis, over P2..P5 of 256 channels."""
    rng = np.random.default_rng(0)
    maps = {
        f"p{i + 2}": rng.standard_normal((1, hw[0] // s, hw[1] // s, 256), np.float32)
        for i, s in enumerate(STRIDES)
    }
    rois = random_boxes(rng, count, hw)[None]
    pool = lambda maps, rois: multilevel_roi_align(  # noqa: E731
        maps, rois, size, sampling_ratio=2, aligned=False, level_eps=1e-6
    )
    grad = jax.grad(lambda maps, rois: (pool(maps, rois) ** 2).sum())
    forward, backward = {}, {}
    if has_torch:
        forward["torchvision"], backward["torchvision"] = _torch_roi_align(
            maps, rois[0], hw, size, device
        )
    name = f"ROIAlign {count} rois to {size}x{size}x256"
    yield Case(f"{name}, forward", _ready(pool, maps, rois), forward)
    yield Case(f"{name}, forward and backward", _ready(grad, maps, rois), backward)


def _torch_roi_align(
    maps: dict, rois: np.ndarray, hw: tuple[int, int], size: int, device: str
) -> tuple[Callable, Callable]:
    import torch
    from torchvision.ops import MultiScaleRoIAlign

    pooler = MultiScaleRoIAlign(list(maps), size, 2)
    features = {
        k: torch.from_numpy(np.ascontiguousarray(v.transpose(0, 3, 1, 2))).to(device)
        for k, v in maps.items()
    }
    boxes = [torch.from_numpy(rois).to(device)]

    def forward() -> None:
        with torch.no_grad():
            pooler(features, boxes, [hw])
        torch_peer.synchronise(device)

    def backward() -> None:
        leaves = {k: v.requires_grad_() for k, v in features.items()}
        total = (pooler(leaves, boxes, [hw]) ** 2).sum()
        torch.autograd.grad(total, list(leaves.values()))
        torch_peer.synchronise(device)

    return forward, backward


def _nms(hw: tuple[int, int], count: int, device: str, has_torch: bool) -> Case:
    """Clusters of boxes around objects, as proposals are."""
    rng = np.random.default_rng(0)
    objects = random_boxes(rng, max(count // 25, 1), hw)
    boxes = objects[rng.integers(0, len(objects), count)]
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    boxes = (boxes + rng.normal(0, 0.1, boxes.shape) * sides).astype(np.float32)
    scores = rng.uniform(0, 1, count).astype(np.float32)
    ours = _ready(lambda b, s: nms(b, s, jnp.ones(count, bool), 0.7), boxes, scores)
    peers = {}
    if has_torch:
        import torch
        import torchvision

        b, s = (torch.from_numpy(x).to(device) for x in (boxes, scores))

        def theirs() -> None:
            torchvision.ops.nms(b, s, 0.7)
            torch_peer.synchronise(device)

        peers["torchvision"] = theirs
    return Case(f"NMS of {count} boxes at 0.7", ours, peers)


def _matching(hw: tuple[int, int], count: int, device: str, has_torch: bool) -> Case:
    strides, sizes = (*STRIDES, 64), (32, 64, 128, 256, 512)
    levels = anchor_ops.grid_anchors(hw, strides, sizes, (0.5, 1.0, 2.0))
    anchors = np.concatenate(levels).astype(np.float32)
    gt = random_boxes(np.random.default_rng(0), count, hw)

    def match(gt: jax.Array, anchors: jax.Array) -> tuple:
        iou = box_ops.pairwise_iou(gt, anchors)
        valid = jnp.ones(len(gt), bool)
        return matching.match(iou, valid, (0.3, 0.7), (0, -1, 1), allow_low_quality=True)

    peers = {}
    if has_torch:
        import torch
        from torchvision.models.detection._utils import Matcher
        from torchvision.ops import box_iou

        a, g = (torch.from_numpy(x).to(device) for x in (anchors, gt))
        matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)

        def theirs() -> None:
            matcher(box_iou(g, a))
            torch_peer.synchronise(device)

        peers["torchvision"] = theirs
    name = f"matching {len(anchors)} anchors with {count} objects"
    return Case(name, _ready(match, gt, anchors), peers)


def _paste(hw: tuple[int, int], count: int, has_torch: bool) -> Case:
    """To the compressed RLE of the results: what evaluation and prediction need of a mask."""
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, count, hw)
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    masks = (1 / (1 + np.exp(6 * (x**2 + y**2 - rng.uniform(0.4, 0.9, (count, 1, 1)))))).astype(
        np.float32
    )

    def ours() -> list:
        return [postprocess.mask_to_rle(m, b, hw) for m, b in zip(masks, boxes, strict=True)]

    peers = {}
    if has_torch:
        import torch
        from torchvision.models.detection.roi_heads import paste_masks_in_image

        m, b = torch.from_numpy(masks)[:, None], torch.from_numpy(boxes)

        def theirs() -> list:
            pasted = (paste_masks_in_image(m, b, hw) > 0.5)[:, 0].numpy().astype(np.uint8)
            return [coco_mask.encode(np.asfortranarray(x)) for x in pasted]

        peers["torchvision"] = theirs
    return Case(f"pasting {count} masks to RLE", ours, peers)
