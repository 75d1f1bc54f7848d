"""Masks kept as picture files: which pixel belongs to which object."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Shaped
from PIL import Image

from maskrcnn_jax.errors import UserError

MOST_PIXELS = 100_000_000  # of a mask; more is a damaged or hostile header
LOSSY = ("JPEG", "MPO")

Ids = Int[np.ndarray, "H W"]

_INDEXED = ("1", "L", "P")


def read_mask(
    file: Path | bytes, hw: tuple[int, int] | None = None, formats: tuple[str, ...] | None = None
) -> tuple[Shaped[np.ndarray, "..."], str]:
    """The pixels of a mask and the kind of its file ("PNG").

    Args:
      file: its path or content.
      hw: the largest size that is read.
      formats: the kinds that are read; None: every one.

    Returns:
      Palette numbers, grey levels or 16-bit numbers [H, W], or colours uint8 [H, W, 3 or 4].

    Raises:
      UserError: it is no picture, too large, or has fractions.
    """
    name = file if isinstance(file, Path) else "the mask"
    try:
        source = file if isinstance(file, Path) else io.BytesIO(file)
        with Image.open(source, formats=formats) as image:
            kind, (width, height) = image.format or "", image.size
            most = hw or (MOST_PIXELS, MOST_PIXELS)
            if width * height > MOST_PIXELS or height > most[0] or width > most[1]:
                raise ValueError(f"it is {width} wide and {height} high, which is too large")
            return _pixels(image), kind
    except Exception as error:  # Pillow's readers raise many kinds on damaged files
        raise UserError(f"{name}: cannot be read as a mask ({error}); export it again") from error


def _pixels(image: Image.Image) -> Shaped[np.ndarray, "..."]:
    if image.mode in _INDEXED or image.mode.startswith("I"):
        pixels = np.asarray(image)
        return pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    if image.mode == "F":
        raise ValueError("it has fractions instead of whole numbers")
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def colour_numbers(pixels: Shaped[np.ndarray, "H W _"]) -> Ids:
    """One number per colour: the level if all pixels are grey, else 0xRRGGBB.

    Transparent pixels are 0; if all others are black, they are 255.
    """
    red, green, blue = (pixels[:, :, channel].astype(np.int64) for channel in range(3))
    grey = np.array_equal(red, green) and np.array_equal(red, blue)
    found = red if grey else (red << 16) | (green << 8) | blue
    if pixels.shape[2] == 4:
        opaque = pixels[:, :, 3] > 0
        if not opaque.all():
            found = np.where(opaque, found if found[opaque].any() else 255, 0)
    return found


def numbers(pixels: Shaped[np.ndarray, "..."]) -> Ids:
    """One number per pixel of what `read_mask` returns; 0 is black or the first of the palette."""
    return colour_numbers(pixels) if pixels.ndim == 3 else pixels.astype(np.int64)


def object_counts(ids: Ids) -> dict[int, Int[np.ndarray, " n"]]:
    """For each number but 0 the counts of its mask's column-wise run-length code, background first.

    One pass over the mask, however many objects it has.
    """
    flat = ids.ravel(order="F")
    if not flat.size:
        return {}
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    ends = np.concatenate([starts[1:], [flat.size]])
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    bounds = np.flatnonzero(np.diff(values[order])) + 1
    found = {}
    for runs in np.split(order, bounds):
        if value := int(values[runs[0]]):
            # Background up to the first run, its length, background up to the next, ...
            edges = np.stack([starts[runs], ends[runs]], axis=1).ravel()
            counts = np.diff(edges, prepend=0)
            rest = flat.size - edges[-1]
            found[value] = np.append(counts, rest) if rest else counts
    return found


def threshold(levels: Ids) -> tuple[Bool[np.ndarray, "H W"], bool]:
    """Where the levels are above 127, and whether nearly all of them are near 0 or 255."""
    near = (levels <= 32) | (levels >= 223)
    return levels > 127, bool(near.mean() >= 0.97) if levels.size else True


def is_blurred(ids: Ids) -> bool:
    """Whether an 8-bit mask of one thing has grey edges: 0 and 255, and a few of many levels."""
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < 5 or values[0] != 0 or values[-1] != 255:
        return False
    return bool((counts[0] + counts[-1]) / counts.sum() >= 0.9)
