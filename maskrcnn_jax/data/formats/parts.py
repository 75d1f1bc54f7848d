"""Objects of several parts, of which some are polygons and some are masks."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as mask_utils

from maskrcnn_jax.data.formats import objects, outlines
from maskrcnn_jax.data.formats.draft import Draft, Picture

# Polygons, or a mask of the whole picture; None for a polygon whose points are no numbers.
Part = list[Float[np.ndarray, "_ 2"] | None] | Bool[np.ndarray, "H W"]


def add(
    draft: Draft,
    picture: Picture,
    label: str,
    parts: Sequence[Part],
    where: str,
    *,
    id: int | None = None,
) -> None:
    """Adds an object that is the union of its parts: polygons if all are, else an exact mask."""
    if all(isinstance(part, list) for part in parts):
        polygons = [polygon for part in parts for polygon in part]
        objects.add_polygons(draft, picture, label, polygons, where, id=id)
        return
    mask = np.zeros((picture.height, picture.width), bool)
    for part in parts:
        mask |= rasterize(part, mask.shape) if isinstance(part, list) else part
    objects.add_mask(draft, picture, label, mask, where, id=id)


def rasterize(
    polygons: Sequence[Float[np.ndarray, "_ 2"] | None], hw: tuple[int, int]
) -> Bool[np.ndarray, "H W"]:
    """The union of polygons as pycocotools draws it; what is no polygon is left out."""
    # Clipped first: the rasteriser's memory grows with the length of the outline.
    clipped = [outlines.clip_polygon(p, hw) for p in polygons if p is not None and len(p) >= 3]
    flat = [p.ravel().tolist() for p in clipped if len(p) >= 3]
    if not flat:
        return np.zeros(hw, bool)
    return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(flat, *hw))).astype(bool)
