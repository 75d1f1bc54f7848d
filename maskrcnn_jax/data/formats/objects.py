"""Objects on their way into a draft: checked, clipped to their picture, never approximated."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from maskrcnn_jax.data.formats import outlines
from maskrcnn_jax.data.formats.draft import Draft, Item, Picture

# Tools let outlines stick out by this many pixels or this share of the side.
OUTSIDE_PX = 4.0
OUTSIDE_SHARE = 0.02
_DECIMALS = 4  # of coordinates; the rasteriser knows fifths of a pixel


def add_polygons(
    draft: Draft,
    picture: Picture,
    label: str,
    polygons: Sequence[Float[np.ndarray, "_ 2"] | None],
    where: str,
    *,
    crowd: bool = False,
    id: int | None = None,
    pixels: bool = False,
) -> None:
    """Adds an object with these parts; what is odd or cannot be used becomes a finding.

    polygons: points x, y in pixels; None for a part whose points are no numbers.
    where: what to call the object in findings.
    pixels: the tool writes numbers of pixels, of which the last is width - 1, so that a point at
      x = width is outside; it is told, and used as it is.
    """
    good = [p for p in polygons if p is not None and len(p) >= 3]
    if len(good) < len(polygons):
        bad = "is not at least three points x, y of finite numbers"
        draft.find("error", "bad-points", where, f"a polygon {bad}; correct or remove it")
    if not good:
        if not polygons:
            draft.find("error", "bad-points", where, "the object has no polygon; remove it")
        return
    parts = _clip(draft, picture, good, where, pixels)
    if parts:
        rounded = [np.round(part, _DECIMALS).ravel().tolist() for part in parts]
        draft.items.append(Item(picture.name, label, rounded, crowd, id))


def add_stroke(
    draft: Draft,
    picture: Picture,
    label: str,
    polyline: Float[np.ndarray, "_ 2"] | None,
    width: float,
    where: str,
    *,
    id: int | None = None,
) -> None:
    """Adds what a round pen covers along a line, and notes the width that was taken."""
    if polyline is None or not len(polyline):
        add_polygons(draft, picture, label, [None], where)
        return
    message = f"a line is drawn {width:g} px wide; choose with --line-width"
    draft.find("note", "line", where, message)
    add_polygons(draft, picture, label, outlines.stroke(polyline, width), where, id=id)


def _clip(
    draft: Draft,
    picture: Picture,
    polygons: list[Float[np.ndarray, "_ 2"]],
    where: str,
    pixels: bool,
) -> list[Float[np.ndarray, "_ 2"]]:
    hw = picture.height, picture.width
    low = np.min([p.min(0) for p in polygons], axis=0)
    high = np.max([p.max(0) for p in polygons], axis=0)
    side = np.array(hw[::-1], np.float64)
    excess = np.maximum(np.maximum(-low, high - side + pixels), 0)
    if not excess.any():
        return polygons
    parts = [outlines.clip_polygon(p, hw) for p in polygons]
    parts = [p for p in parts if len(p) >= 3]
    by = f"{excess.max():.1f} px outside the picture of width {hw[1]} and height {hw[0]}"
    if not parts:
        draft.find("error", "wholly-outside", where, f"{by}, all of it; correct or remove it")
    elif np.any(excess > np.maximum(OUTSIDE_PX, OUTSIDE_SHARE * side)):
        look = "look whether x and y are exchanged, or the picture is another one"
        draft.find("warning", "far-outside", where, f"{by}, cut off at the border; {look}")
    else:
        draft.find("warning", "outside", where, f"{by}, cut off at the border")
    return parts


def add_rle(
    draft: Draft,
    picture: Picture,
    label: str,
    rle: Any,
    where: str,
    *,
    crowd: bool = False,
    id: int | None = None,
) -> None:
    """Adds an object given by a COCO RLE of either kind, exactly."""
    hw = [picture.height, picture.width]
    size, counts = (rle.get("size"), rle.get("counts")) if isinstance(rle, dict) else (None, None)
    if size != hw or any(type(side) is not int for side in size):
        message = f"the RLE has the 'size' {size!r:.40}, the picture {hw}; export it again"
        draft.find("error", "bad-rle", where, message)
        return
    values = outlines.rle_counts(counts)
    if values is None or values.sum() != hw[0] * hw[1]:
        message = f"the 'counts' of the RLE do not cover the {hw[0] * hw[1]} pixels; export again"
        draft.find("error", "bad-rle", where, message)
    elif not values[1::2].any():
        draft.find("error", "no-area", where, "the mask is empty; remove the object")
    else:
        if not isinstance(counts, str):
            rle = outlines.counts_to_rle(values, (hw[0], hw[1]))
        kept = {"size": hw, "counts": rle["counts"]}
        draft.items.append(Item(picture.name, label, kept, crowd, id))


def add_mask(
    draft: Draft,
    picture: Picture,
    label: str,
    mask: Bool[np.ndarray, "H W"],
    where: str,
    *,
    crowd: bool = False,
    id: int | None = None,
) -> None:
    """Adds an object given by its mask, exactly."""
    if mask.shape != (picture.height, picture.width):
        message = (
            f"the mask is {mask.shape[0]} high and {mask.shape[1]} wide, the picture "
            f"{picture.height} and {picture.width}; export the masks again"
        )
        draft.find("error", "size-mismatch", where, message)
    elif not mask.any():
        draft.find("error", "no-area", where, "the mask is empty; remove the object")
    else:
        draft.items.append(Item(picture.name, label, outlines.mask_to_rle(mask), crowd, id))
