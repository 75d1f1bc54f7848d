"""The host side of an image before the model, without TensorFlow: decode, resize, pad.

Training, evaluation and prediction read pictures through `load_image`, so that a picture looks the
same to all of them. Sizes are (height, width) in pixels; images are uint8 RGB.
"""

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num, UInt8
from PIL import Image, ImageOps

from maskrcnn_jax.errors import UserError

HW = tuple[int, int]

# What Pillow raises on damaged files; the decoders are not uniform about it.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
_ORIENTATION_TAG = 0x0112
# Orientations 5 to 8 exchange height and width.
_FIRST_TRANSPOSING = 5


def load_image(
    source: str | Path | bytes, hw: HW | None = None, name: str = ""
) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes a picture of any common kind to RGB.

    Gray, palette, CMYK and 16-bit pictures are converted, alpha is dropped (as Detectron2 does),
    of an animation the first frame is taken.

    Args:
      source: path of the file, or its content.
      hw: the size that the annotations name. Annotations are drawn either on the picture as it is
        stored or as EXIF rotates it; the size tells which. Without it EXIF is applied.
      name: what to call the picture in messages; the path by default.

    Raises:
      UserError: the file is missing, damaged, not an image, or of another size than `hw`.
    """
    name = name or ("the picture" if isinstance(source, bytes) else str(source))
    if not isinstance(source, bytes):
        source = _read(Path(source), name)
    try:
        with Image.open(io.BytesIO(source)) as image:
            image.load()
            image = _orient(image, hw)
            pixels = _to_rgb(image)
    except Image.UnidentifiedImageError as error:
        raise UserError(
            f"{name}: not an image of a known format ({_describe(source)}); "
            "replace the file or remove it from the data set"
        ) from error
    except _DECODE_ERRORS as error:
        raise UserError(
            f"{name}: the image is damaged or truncated ({error}); "
            "get a good copy of the file or remove it from the data set"
        ) from error
    if hw is not None and pixels.shape[:2] != tuple(hw):
        raise UserError(
            f"{name}: the picture is {pixels.shape[0]} high and {pixels.shape[1]} wide, but its "
            f"entry says height {hw[0]} and width {hw[1]}; correct 'height' and 'width' of this "
            "image in the annotations, or use the picture that was annotated"
        )
    return pixels


def read_image(source: Any) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of a path, bytes, Pillow image or uint8 RGB array [H, W, 3], in RGB and upright.

    Raises:
      UserError: it is none of these, or cannot be read.
    """
    if isinstance(source, str | Path | bytes):
        return load_image(source)
    if isinstance(source, Image.Image):
        try:
            return _to_rgb(_orient(source, None))
        except _DECODE_ERRORS as error:
            raise UserError(f"the picture: the image is damaged or truncated ({error})") from error
    pixels = np.asarray(source)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UserError(
            f"a picture of type {type(source).__name__}, {pixels.dtype} {list(pixels.shape)}: "
            "give a path, bytes, a Pillow image, or a uint8 array [height, width, 3] in RGB"
        )
    return pixels


def shortest_edge_size(hw: HW, short: int, long: int) -> HW:
    """Returns the size with the shorter side `short`, or less if the longer one exceeds `long`.

    Rounds half up, as Detectron2's ResizeShortestEdge.
    """
    height, width = hw
    scale = short / min(height, width)
    new_h, new_w = (float(short), scale * width) if height < width else (scale * height, short)
    if max(new_h, new_w) > long:
        scale = long / max(new_h, new_w)
        new_h, new_w = new_h * scale, new_w * scale
    # A strip of 5000 x 2 px must not vanish.
    return max(int(new_h + 0.5), 1), max(int(new_w + 0.5), 1)


def resize_image(image: UInt8[np.ndarray, "H W 3"], hw: HW) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes with Pillow's bilinear filter (antialiased when shrinking), as Detectron2."""
    height, width = hw
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def torchvision_size(hw: HW, short: int, long: int) -> HW:
    """Returns the size with the shorter side `short`, or less if the longer one exceeds `long`.

    Rounded down. Source: torchvision `GeneralizedRCNNTransform`.
    """
    height, width = hw
    scale = min(short / min(height, width), long / max(height, width))
    # Rounded down even where only the product's rounding lies below: 47 * (96 / 47) gives 95.
    return max(int(height * scale), 1), max(int(width * scale), 1)


def resize_torchvision(
    image: UInt8[np.ndarray, "H W 3"], short: int, long: int
) -> Float[np.ndarray, "h w 3"]:
    """Resizes as torchvision's detectors do: size rounded down, no antialias, values stay floats.

    Returns float32 on the scale 0..255. torchvision normalises before it resizes; a weighted mean
    commutes with that, up to float rounding. Source: torchvision `GeneralizedRCNNTransform`.
    """
    size = torchvision_size(image.shape[:2], short, long)
    return resize_bilinear(image.astype(np.float32), size)


def resize_bilinear(image: Float[np.ndarray, "H W *c"], hw: HW) -> Float[np.ndarray, "h w *c"]:
    """Reads a float32 image bilinearly at the centres of a grid of size `hw`; no antialias.

    Beyond the outermost centres the border value holds. The same as torch's `interpolate` with
    align_corners=False.
    """
    for axis, length in enumerate(hw):
        low, high, share = _bilinear_lines(image.shape[axis], length)
        share = share.reshape([-1 if i == axis else 1 for i in range(image.ndim)])
        image = np.take(image, low, axis) * (1 - share) + np.take(image, high, axis) * share
    return image


def derive_canvases(short_max: int, long: int, divisor: int = 32) -> tuple[HW, ...]:
    """Returns the canvases that hold every image resized to at most `short_max` and `long`.

    One for pictures up to 4:3, one for longer ones, and both upright; multiples of `divisor`.
    """
    short = min(short_max, long)
    longer_sides = (min(-(-short * 4 // 3), long), long)
    landscape = [(_ceil_to(short, divisor), _ceil_to(side, divisor)) for side in longer_sides]
    upright = [(w, h) for h, w in landscape]
    return tuple(dict.fromkeys(landscape + upright))


def choose_canvas(hw: HW, canvases: Sequence[HW]) -> HW:
    """Returns the canvas of least area that holds an image of size `hw`.

    Raises:
      UserError: no canvas holds it.
    """
    fitting = [c for c in canvases if c[0] >= hw[0] and c[1] >= hw[1]]
    if not fitting:
        raise UserError(
            f"data.canvases: no canvas of {[tuple(c) for c in canvases]} (height, width) holds an "
            f"image of {hw[0]}x{hw[1]}; add a larger one or leave data.canvases empty"
        )
    height, width = min(fitting, key=lambda c: c[0] * c[1])
    return height, width


def pad_image(image: Num[np.ndarray, "h w 3"], canvas: HW) -> Num[np.ndarray, "H W 3"]:
    """Puts the image into the upper left corner of a black canvas at least as large."""
    padded = np.zeros((*canvas, 3), image.dtype)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def _bilinear_lines(
    length: int, target: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """For each of `target` lines the two of `length` lines around it, and the second's share."""
    step = np.float32(length) / np.float32(target)
    position = np.maximum((np.arange(target, dtype=np.float32) + np.float32(0.5)) * step - 0.5, 0)
    low = np.minimum(position.astype(np.int64), length - 1)
    return (
        low,
        np.minimum(low + 1, length - 1),
        position.astype(np.float32) - low.astype(np.float32),
    )


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{name}: there is no such image file; correct the images folder or the 'file_name'"
        ) from error
    except OSError as error:
        raise UserError(f"{name}: the image file cannot be read ({error.strerror})") from error


def _describe(content: bytes) -> str:
    if not content:
        return "the file is empty"
    if content.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer: run `git lfs pull`"
    return f"it begins with {content[:8]!r}"


def _orient(image: Image.Image, hw: HW | None) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODE_ERRORS:
        return image  # the pixels are sound, whatever the metadata say
    turns = isinstance(orientation, int) and _FIRST_TRANSPOSING <= orientation <= 8
    stored = (image.height, image.width)
    rotated = (image.width, image.height) if turns else stored
    if hw is None or (tuple(hw) == rotated and tuple(hw) != stored):
        return ImageOps.exif_transpose(image)
    return image


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion clips at 255; of 16 bits it is the higher byte that is wanted.
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"mode {image.mode}: only 8 and 16 bits a channel are supported")
        gray = (values >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def _ceil_to(value: int, divisor: int) -> int:
    return -(-value // divisor) * divisor
