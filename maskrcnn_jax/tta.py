"""Detections of pictures seen once, or at several sizes and mirrored (test-time augmentation).

    each view -> boxes, carried to the frame of the first view           (one program per canvas)
    boxes of all views -> class-wise NMS -> the max_detections best      (one program)
    these boxes in each view -> masks, whose mean is the result          (one program per canvas)

The frame does not matter: IoU is the same in all of them. The features of a view are computed
twice, for boxes and for masks, as those of many views would not fit into memory together.
Source: Detectron2 `GeneralizedRCNNWithTTA`; arXiv 1703.06870, appendix A.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from maskrcnn_jax import config_rules_tta, preprocess, runtime, selection, views
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.families import forward_boxes, forward_predict
from maskrcnn_jax.models.mask_rcnn import MaskRCNN, forward_masks, per_device
from maskrcnn_jax.settings import mask_size
from maskrcnn_jax.traces import Traces
from maskrcnn_jax.types import Detections
from maskrcnn_jax.views import View

HW = tuple[int, int]
Say = Callable[[str], None]
Detector = Callable[[dict[str, Any], Sequence[View]], Detections]


class Size(NamedTuple):
    """The shorter side becomes `short`, or less if the longer one would exceed `long`; canvases:
    those that pictures of this size are put on."""

    short: int
    long: int
    canvases: tuple[HW, ...]


def sizes(config: Any) -> tuple[Size, ...]:
    """The sizes at which pictures are seen: eval.tta_short, or else data.short_test alone."""
    d, e = config.data, config.eval
    if not e.tta_short:
        canvases = d.canvases or preprocess.derive_canvases(d.short_test, d.long_test)
        return (Size(d.short_test, d.long_test, tuple(canvases)),)
    return tuple(Size(short, e.tta_long, _canvases(short, e.tta_long)) for short in e.tta_short)


def make_detector(
    model: MaskRCNN, config: Any, mesh: Mesh, say: Say, traces: Traces | None = None
) -> Detector:
    """What finds the objects of a batch, sharded over the mesh, by the config's `eval` group.

    The detector takes variables and the batch at each of `sizes`; it returns Detections in pixels
    of the first one's canvas. say: gets a line for each program that is compiled. traces: of
    earlier processes, told the model.

    Raises UserError where a model with keypoints is to be augmented.
    """
    if not config.eval.tta_short:
        return _Plain(model, mesh, say, traces or Traces())
    if model.settings.keypoints:
        raise UserError(config_rules_tta.no_keypoints(model.settings.keypoints))
    number, flips = len(config.eval.tta_short), config.eval.tta_flip
    return _Augmented(model, number, flips, mesh, say, traces or Traces())


class _Plain:
    def __init__(self, model: MaskRCNN, mesh: Mesh, say: Say, traces: Traces):
        step = jax.jit(
            lambda v, view: forward_predict(model, v, *view, mesh),
            out_shardings=NamedSharding(mesh, P("data")),
        )
        self._programs = runtime.Programs(step, "prediction", say, traces)

    def __call__(self, variables: dict[str, Any], seen: Sequence[View]) -> Detections:
        (view,) = seen
        return _run(self._programs, view, variables, view)


class _Augmented:
    def __init__(
        self,
        model: MaskRCNN,
        num_sizes: int,
        flips: bool,
        mesh: Mesh,
        say: Say,
        traces: Traces,
    ):
        jit = partial(jax.jit, out_shardings=NamedSharding(mesh, P("data")))
        self._flags = runtime.replicate([False, True][: 1 + flips], mesh)
        num_views = num_sizes * len(self._flags)
        traces = traces.about(num_views)
        find, add = partial(find_boxes, model, mesh), partial(add_masks, model, mesh, num_views)
        self._boxes = runtime.Programs(jit(find), "prediction of boxes", say, traces)
        self._masks = runtime.Programs(jit(add), "prediction of masks", say, traces)
        self._merge = jit(partial(merge, model, mesh))
        self._has_masks = model.mask_head is not None

    def __call__(self, variables: dict[str, Any], seen: Sequence[View]) -> Detections:
        frame = seen[0].window
        augmented = [(view, flag) for view in seen for flag in self._flags]
        found = [_run(self._boxes, view, variables, view, flag, frame) for view, flag in augmented]
        merged = self._merge(found, frame)
        if self._has_masks:
            for view, flag in augmented:
                merged = _run(self._masks, view, variables, view, flag, frame, merged)
        return merged


def _run(programs: runtime.Programs, view: View, *args: Any) -> Detections:
    height, width = view.images.shape[1:3]
    return programs.get((height, width), *args)(*args)


def find_boxes(
    model: MaskRCNN,
    mesh: Mesh | None,
    variables: dict[str, Any],
    view: View,
    mirrored: Bool[Array, ""],
    frame: Float[Array, "B 4"],
) -> Detections:
    """What is found in a view, or in its mirror image, without masks.

    Boxes lie on a canvas where the picture fills `frame`.
    """
    found = forward_boxes(model, variables, *views.mirror(view, mirrored), mesh)
    boxes = views.mirror_boxes(found.boxes, view.image_hw, mirrored)
    return found._replace(boxes=views.carry(boxes, view.window, frame))


def merge(
    model: MaskRCNN, mesh: Mesh | None, found: Sequence[Detections], frame: Float[Array, "B 4"]
) -> Detections:
    """The detections of all views as those of one, with masks of zeros for `add_masks`.

    Boxes end where the picture does, at `frame`.
    """
    s = model.settings
    boxes, scores, classes, valid = (
        jnp.concatenate([getattr(one, name) for one in found], 1)
        for name in ("boxes", "scores", "classes", "valid")
    )
    corner, far = frame[:, None, :2], frame[:, None, 2:]
    boxes = jnp.clip(boxes, jnp.tile(corner, 2), jnp.tile(far, 2))
    # The views' own score_thresh has been applied; the peer's 1e-8 is what `valid` tells here.
    select = per_device(jax.vmap(partial(selection.merge, s)), mesh)
    boxes, scores, classes, valid = select(boxes, scores, classes, valid)
    side = mask_size(s)
    masks = None if model.mask_head is None else jnp.zeros((*scores.shape, side, side))
    no_keypoints = jnp.zeros((*scores.shape, 0, 1, 1))
    num_dropped = sum(one.num_dropped for one in found)
    return Detections(boxes, scores, classes, valid, masks, num_dropped, no_keypoints)


def add_masks(
    model: MaskRCNN,
    mesh: Mesh | None,
    num_views: int,
    variables: dict[str, Any],
    view: View,
    mirrored: Bool[Array, ""],
    frame: Float[Array, "B 4"],
    found: Detections,
) -> Detections:
    """Adds to the masks this view's share of their mean over `num_views`.

    found: of the merged views, boxes where the picture fills `frame`.
    """
    boxes = views.carry(found.boxes, frame, view.window)
    boxes = views.mirror_boxes(boxes, view.image_hw, mirrored)
    images, image_hw, _ = views.mirror(view, mirrored)
    masks = forward_masks(
        model, variables, images, image_hw, boxes, found.classes, found.valid, mesh
    )
    return found._replace(masks=found.masks + views.mirror_masks(masks, mirrored) / num_views)


def _canvases(short: int, long: int) -> tuple[HW, ...]:
    # 5:3 between 4:3 and the longest, as `long` leaves room for pictures far longer than most.
    usual = preprocess.derive_canvases(short, min(long, -(-short * 5 // 3)))
    return tuple(dict.fromkeys(usual + preprocess.derive_canvases(short, long)))
