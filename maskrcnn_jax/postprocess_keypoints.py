"""From heatmaps in the frames of boxes to keypoints in the picture. Host side, NumPy.

Source: Detectron2 `heatmaps_to_keypoints` and `detector_postprocess`.
"""

import numpy as np
from jaxtyping import Float, Int

_BICUBIC = -0.75  # PyTorch's parameter of the cubic kernel


def heatmaps_to_keypoints(
    heatmaps: Float[np.ndarray, "n J T T"], boxes: Float[np.ndarray, "n 4"]
) -> Float[np.ndarray, "n J 3"]:
    """The place and score of each keypoint: the highest pixel of its heatmap over the box.

    A heatmap is enlarged (bicubic) to the whole pixels that the box takes up. The score is the
    softmax at the place, normalised by the heatmap's own cells, so that it does not depend on the
    size of the box; it may exceed 1.

    Args:
      heatmaps: logits in the frames of the boxes.
      boxes: x0, y0, x1, y1, in the pixels that the model saw.

    Returns:
      x, y, score; x and y continuous, in the same pixels.
    """
    found = np.zeros((*heatmaps.shape[:2], 3), np.float32)
    if not heatmaps.shape[1]:
        return found
    for maps, box, row in zip(heatmaps.astype(np.float32), boxes, found, strict=True):
        sides = np.maximum(box[2:] - box[:2], 1).astype(np.float32)
        pixels = np.ceil(sides)
        width, height = (int(side) for side in pixels)
        for heatmap, place in zip(maps, row, strict=True):
            fine = resize_bicubic(heatmap, (height, width))
            y, x = divmod(int(fine.argmax()), width)
            place[:2] = (np.array([x, y]) + 0.5) * (sides / pixels) + box[:2]
            place[2] = 1 / np.exp(heatmap - fine[y, x]).sum()
    return found


def keypoints_to_image(
    keypoints: Float[np.ndarray, "n J 3"],
    window: tuple[float, float, float, float],
    hw: tuple[int, int],
) -> Float[np.ndarray, "n J 3"]:
    """Carries keypoints from the canvas to the picture of size `hw` that fills `window` of it."""
    x0, y0, x1, y1 = window
    scale = np.array([hw[1] / (x1 - x0), hw[0] / (y1 - y0), 1.0])
    return ((keypoints - [x0, y0, 0.0]) * scale).astype(np.float32)


def resize_bicubic(
    image: Float[np.ndarray, "h w"], size: tuple[int, int]
) -> Float[np.ndarray, "H W"]:
    """Bicubic, half-pixel centres, borders repeated, not antialiased.

    As PyTorch's `interpolate(mode="bicubic", align_corners=False)`.
    """
    rows, row_shares = _cubic_taps(image.shape[0], size[0])
    columns, column_shares = _cubic_taps(image.shape[1], size[1])
    tall = sum(share[:, None] * image[row] for row, share in zip(rows, row_shares, strict=True))
    # Rows of memory, which are faster to gather than columns.
    turned = np.ascontiguousarray(tall.T)
    taps = zip(columns, column_shares, strict=True)
    return sum(share[:, None] * turned[column] for column, share in taps).T


def _cubic_taps(cells: int, pixels: int) -> tuple[Int[np.ndarray, "4 n"], Float[np.ndarray, "4 n"]]:
    """For each pixel of an axis the four cells around its centre, and their shares."""
    position = (np.arange(pixels, dtype=np.float64) + 0.5) * (cells / pixels) - 0.5
    first = np.floor(position)
    taps = first[None] + np.arange(-1, 3)[:, None]
    distance = np.abs(position - taps)
    near = ((_BICUBIC + 2) * distance - (_BICUBIC + 3)) * distance**2 + 1
    far = _BICUBIC * (((distance - 5) * distance + 8) * distance - 4)
    shares = np.where(distance <= 1, near, far).astype(np.float32)
    return np.clip(taps, 0, cells - 1).astype(np.int64), shares
