"""Pictures of detections and of ground truth, drawn with Pillow."""

import colorsys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
_MASK_OPACITY = 0.45
_GOLDEN_RATIO = 0.618034
_GAP = 4  # px between two pictures
_SURE_KEYPOINT = 0.05  # score from which a keypoint is drawn (Detectron2's)


def draw(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[np.ndarray, "n 4"],
    classes: Int[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"] | None,
    masks: Bool[np.ndarray, "n H W"] | Sequence[Bool[np.ndarray, "H W"]],
    names: Sequence[str],
    min_side: int = 0,
    labels: bool = True,
    keypoints: Float[np.ndarray, "n J 3"] | None = None,
    skeleton: Sequence[tuple[int, int]] = (),
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws masks, boxes and labels on a copy of the image; every instance has its own color.

    Args:
      image: RGB.
      boxes: (x0, y0, x1, y1) in pixels of the image.
      classes: contiguous, indices into `names`.
      scores: written behind the names; None for ground truth.
      masks: of the whole image; an empty list draws boxes alone.
      names: of all classes.
      min_side: a small picture is first enlarged by the least whole factor that brings its longer
        side to this many pixels, so that labels remain legible. 0: the size stays.
      labels: False leaves out the names, which would hide hundreds of small objects.
      keypoints: x, y and score or visibility of each; those below 0.05 are not drawn.
      skeleton: pairs of keypoints, counted from 0, that a line joins.
    """
    factor = max(1, -(-min_side // max(image.shape[:2])))
    image = _enlarge(image, factor)
    colors = [_color(i) for i in range(len(boxes))]
    # Large ones first: small ones in front of them stay visible.
    order = np.argsort(-_areas(boxes), kind="stable")
    for i in order:
        if len(masks):
            _blend(image, _enlarge(np.asarray(masks[i]), factor), colors[i])

    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    line = max(1, max(image.shape[:2]) // 500)
    for i in order:
        x0, y0, x1, y1 = (float(v) * factor for v in boxes[i])
        pen.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=colors[i], width=line)
    for i in order if keypoints is not None else ():
        points = keypoints[i] * (factor, factor, 1)
        _draw_keypoints(pen, points, skeleton, colors[i], line)
    taken: list[tuple[float, ...]] = []
    font = ImageFont.load_default(size=min(max(10, max(image.shape[:2]) // 50), 28))
    # Labels of the small ones first: they have the fewest places to go to.
    for i in order[::-1] if labels else ():
        text = names[int(classes[i])]
        if scores is not None:
            text += f" {float(scores[i]):.2f}"
        _label(pen, text, [float(v) * factor for v in boxes[i]], colors[i], font, taken)
    return np.array(picture)


def side_by_side(
    gt_image: UInt8[np.ndarray, "h w 3"], pred_image: UInt8[np.ndarray, "h2 w2 3"]
) -> UInt8[np.ndarray, "h3 w3 3"]:
    """Returns ground truth (left) and prediction (right) in one picture, with captions."""
    font = ImageFont.load_default(size=min(max(11, max(gt_image.shape[:2]) // 40), 28))
    caption = int(font.size * 1.6)
    height = max(gt_image.shape[0], pred_image.shape[0]) + caption
    width = gt_image.shape[1] + _GAP + pred_image.shape[1]
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    for text, part, left in (
        ("ground truth", gt_image, 0),
        ("prediction", pred_image, gt_image.shape[1] + _GAP),
    ):
        picture.paste(Image.fromarray(part), (left, caption))
        pen.text((left + 3, caption // 2), text, fill="black", font=font, anchor="lm")
    return np.array(picture)


def _color(index: int) -> Color:
    """A bright color; successive ones lie far apart on the circle of hues."""
    hue = (0.02 + index * _GOLDEN_RATIO) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.95, 0.65, 0.8)[index % 3], 1.0)
    return int(red * 255), int(green * 255), int(blue * 255)


def _areas(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _enlarge(array: np.ndarray, factor: int) -> np.ndarray:
    """A copy in which every pixel of the first two axes is `factor` x `factor` pixels."""
    return array.repeat(factor, axis=0).repeat(factor, axis=1)


def _blend(image: np.ndarray, mask: np.ndarray, color: Color) -> None:
    """Tints the mask and draws its contour, in place."""
    mask = mask.astype(bool)
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    tint = np.asarray(color, np.float32) * _MASK_OPACITY
    image[mask] = (image[mask] * (1 - _MASK_OPACITY) + tint).astype(np.uint8)
    image[mask & ~inner] = color


def _draw_keypoints(
    pen: ImageDraw.ImageDraw,
    keypoints: Float[np.ndarray, "J 3"],
    skeleton: Sequence[tuple[int, int]],
    color: Color,
    line: int,
) -> None:
    """Lines of the skeleton, and a dot with a dark rim on each keypoint."""
    sure = keypoints[:, 2] >= _SURE_KEYPOINT
    for a, b in skeleton:
        if sure[a] and sure[b]:
            pen.line([*map(float, (*keypoints[a, :2], *keypoints[b, :2]))], fill=color, width=line)
    radius = line + 1
    for x, y, _ in keypoints[sure].tolist():
        corners = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(corners, fill=color, outline="black")


def _label(
    pen: ImageDraw.ImageDraw,
    text: str,
    box: Sequence[float],
    color: Color,
    font: ImageFont.FreeTypeFont,
    taken: list[tuple[float, ...]],
) -> None:
    """Writes the text at the first place at the box that no other label has, inside the picture."""
    canvas_w, canvas_h = pen.im.size
    left, top, right, bottom = (float(v) for v in pen.textbbox((0, 0), text, font=font))
    width, height = right - left + 4, bottom - top + 4
    x0, y0, x1, y1 = box
    places = [
        (x, y)
        for x in (x0, x1 - width)
        for y in (y0 - height, y1, y0, y1 - height)
    ]  # fmt: skip
    spots = []
    for x, y in places:
        x = min(max(x, 0.0), max(canvas_w - width, 0.0))
        y = min(max(y, 0.0), max(canvas_h - height, 0.0))
        spots.append((x, y, x + width, y + height))
    spot = next((s for s in spots if not any(_overlap(s, t) for t in taken)), spots[0])
    taken.append(spot)
    pen.rectangle(spot, fill=color)
    ink = "black" if 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 110 else "white"
    pen.text((spot[0] + 2 - left, spot[1] + 2 - top), text, fill=ink, font=font)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
