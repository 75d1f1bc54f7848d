"""Anchors: the boxes at every cell of the pyramid that the RPN's deltas start from.

Flat order everywhere: level, row, column, anchor; the anchors of a cell by size, then by aspect
ratio.
Source: arXiv 1506.01497 section 3.1.1, 1612.03144 section 4.1; Detectron2
`DefaultAnchorGenerator`.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def cell_anchors(
    size: float | int, ratios: Sequence[float | int], rounded: bool = False
) -> Float[np.ndarray, "A 4"]:
    """Anchors of area `size`² px around the origin, one per ratio = height / width.

    rounded: corners to whole pixels, halves to even ones, as torchvision's `AnchorGenerator`.
    """
    ratios = np.asarray(ratios, np.float64)
    width = np.sqrt(size**2 / ratios)
    height = ratios * width
    cells = np.stack([-width, -height, width, height], -1).astype(np.float32) / np.float32(2)
    return np.round(cells) if rounded else cells


def grid_anchors(
    canvas_hw: tuple[int, int],
    strides: Sequence[int],
    sizes: Sequence[float | int | Sequence[float | int]],
    ratios: Sequence[float | int],
    offset: float = 0.0,
    rounded: bool = False,
    fitted_hw: tuple[int, int] | Int[Array, "2"] | None = None,
) -> list[Float[np.ndarray, "_ 4"] | Float[Array, "_ 4"]]:
    """All anchors of a canvas (height, width), one array [h * w * A, 4] per level, in pixels.

    sizes: the anchor size of each stride, or all of its sizes. offset: of the first centre from the
    corner, in strides. The grid of a level has ceil(canvas / stride) cells.
    rounded: see `cell_anchors`. fitted_hw: the part of the canvas (it may be traced) that cells
    are fitted to, as torchvision's: they stand fitted // grid pixels apart, by axis; where this is
    no multiple of a stride, it is less than the stride.
    """
    levels = []
    for stride, size in zip(strides, sizes, strict=True):
        grid = _grid(canvas_hw, stride)
        steps = [stride] * 2 if fitted_hw is None else [s // -(-s // stride) for s in fitted_hw]
        xp = np if all(isinstance(step, int) for step in steps) else jnp
        y, x = (
            (np.arange(n, dtype=np.float32) + np.float32(offset)) * xp.float32(step)
            for n, step in zip(grid, steps, strict=True)
        )
        y, x = xp.meshgrid(y, x, indexing="ij")
        centers = xp.stack([x, y, x, y], -1)[:, :, None]
        several = size if isinstance(size, Sequence) else (size,)
        cells = np.concatenate([cell_anchors(side, ratios, rounded) for side in several])
        levels.append((centers + cells).reshape(-1, 4))
    return levels


def padded(
    image_hw: Int[Array, "2"] | Int[np.ndarray, "2"], divisor: int = 32
) -> Int[Array, "2"] | Int[np.ndarray, "2"]:
    """The size of the least canvas that holds an image, with sides that are multiples."""
    return -(-image_hw // divisor) * divisor


def in_padded_image(
    canvas_hw: tuple[int, int],
    strides: Sequence[int],
    num_anchors: int,
    image_hw: Int[Array, "2"],
    divisor: int = 32,
) -> Bool[Array, "N"]:
    """Which anchors exist if the image is padded only to a multiple of `divisor`, as by the peers.

    A canvas may be larger; its other anchors must not compete. num_anchors: of a cell. image_hw may
    be traced.
    """
    levels = []
    for stride in strides:
        h, w = _grid(canvas_hw, stride)
        rows, cols = -(-padded(image_hw, divisor) // stride)
        inside = (jnp.arange(h)[:, None] < rows) & (jnp.arange(w) < cols)
        levels.append(jnp.repeat(inside.reshape(-1), num_anchors))
    return jnp.concatenate(levels)


def _grid(canvas_hw: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-canvas_hw[0] // stride), -(-canvas_hw[1] // stride)
