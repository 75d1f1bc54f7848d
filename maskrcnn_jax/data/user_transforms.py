"""The user's own list of Albumentations transforms, on pictures and masks.

The list is JSON: `[["ImageCompression", {"quality_range": [40, 90]}], ["RandomRain", {}]]`; a
composition holds a list of its own: `["OneOf", [["Blur", {}], ["RandomFog", {}]], {"p": 0.3}]`. The
list may be written in Python, too, with tuples.

Albumentations 2.0.8, the last release under the MIT licence, is imported where it is used;
its heir AlbumentationsX, which has the same module name, is under the AGPL and is refused.
"""

import ast
import difflib
import importlib.metadata
import inspect
import json
import os
import random
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from maskrcnn_jax.data.bitmaps import frame_bitmap
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.postprocess import paste_binary

_FIELD = "data.albumentations"
_EXTRA = "pip install 'maskrcnn_jax[albumentations]'"
_RELEASE = "2.0.8"  # the last under the MIT licence; earlier ones differ in their arguments
_COMPOSITIONS = ("OneOf", "OneOrOther", "RandomOrder", "Sequential", "SomeOf")
# What the model does itself, on the device.
_NUMERIC = ("FromFloat", "Normalize", "ToFloat", "ToTensor3D", "ToTensorV2")


class Objects(NamedTuple):
    """An example of the pipeline in NumPy, see `augment`."""

    image: UInt8[np.ndarray, "h w 3"]
    boxes: Float32[np.ndarray, "n 4"]
    frames: Float32[np.ndarray, "n 4"]
    masks: UInt8[np.ndarray, "n S s"]
    classes: Int32[np.ndarray, " n"]


class Transforms(NamedTuple):
    """A list that is ready for use."""

    compose: Any  # albumentations.Compose
    pixels_only: bool  # masks and boxes stay as they are


def build(text: str | list | tuple) -> Transforms:
    """Makes the transforms of the field `data.albumentations`.

    text: the list, as it stands, as JSON or as a Python literal; or the name of a file of that.

    Raises:
      UserError: Albumentations is missing or not the MIT one; the text is no list of transforms; a
        name or an argument is unknown, or a value is refused.
    """
    entries = _read_list(text)
    library = _library()
    transforms = [_transform(library, entry, f"[{i}]") for i, entry in enumerate(entries)]
    pixels_only = all(_changes_pixels_only(library, t) for t in transforms)
    return Transforms(library.Compose(transforms), pixels_only)


def apply(transforms: Transforms, example: Objects, seed: int) -> Objects:
    """Transforms an example; the same seed gives the same result.

    Masks are drawn at the size of the picture, and made bitmaps again; objects of which no pixel is
    left are dropped. A list that changes pixels only leaves masks and boxes exactly as they are.

    Raises:
      ValueError: the result is not a picture of 8 bits and three channels.
    """
    # Both generators are shared by all transforms. Compose.set_random_seed would give each its own
    # of the same seed, and a list of p=0.5 would be applied as a whole or not at all.
    transforms.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
    if transforms.pixels_only or not len(example.boxes):
        return example._replace(image=_picture(transforms.compose(image=example.image)))
    hw = example.image.shape[:2]
    whole = np.empty((len(example.frames), *hw), np.uint8)
    for mask, bits, frame in zip(whole, example.masks, example.frames, strict=True):
        mask[:] = paste_binary(np.unpackbits(bits, axis=-1).astype(np.float32), frame, hw)
    result = transforms.compose(image=example.image, masks=whole)
    return _objects(example, _picture(result), result["masks"])


def _objects(
    example: Objects, image: UInt8[np.ndarray, "h w 3"], masks: UInt8[np.ndarray, "n h w"]
) -> Objects:
    """The example with these masks, those that are not empty, in place of its own."""
    side = example.masks.shape[1]
    rows = [i for i, mask in enumerate(masks) if mask.any()]
    made = [frame_bitmap(masks[i] > 0, side) for i in rows]
    frames = np.array([frame for frame, _ in made], np.float32).reshape(-1, 4)
    bitmaps = np.array([np.packbits(bitmap, axis=-1) for _, bitmap in made], np.uint8)
    bitmaps = bitmaps.reshape(-1, side, side // 8)
    return Objects(image, frames, frames, bitmaps, example.classes[rows])


def _picture(result: dict[str, Any]) -> UInt8[np.ndarray, "h w 3"]:
    image = result["image"]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"the transforms return {image.dtype} {list(image.shape)}; they must leave pictures of "
            "8 bits and three channels"
        )
    return np.ascontiguousarray(image)


def _read_list(text: str | list | tuple) -> list:
    source = _FIELD
    if not isinstance(text, str):
        text = repr(list(text))
    if not text.lstrip().startswith("["):
        path = Path(text).expanduser()
        source = f"{_FIELD}: {path}"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{source}: cannot be read ({error}); give the name of a JSON file, or JSON text "
                'such as [["RandomRain", {"p": 0.3}]]'
            ) from error
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        entries = _read_literal(text)
        if entries is None:
            raise UserError(
                f'{source}: not valid JSON ({error}); write it as [["RandomRain", {{"p": 0.3}}]]'
            ) from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f'{source}: give a list of transforms, as [["RandomRain", {{"p": 0.3}}]]')
    return entries


def _read_literal(text: str) -> Any:
    """What a Python literal would be in JSON; None: it is none, or holds what JSON cannot."""
    try:
        return json.loads(json.dumps(ast.literal_eval(text.strip())))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _library() -> Any:
    """Imports Albumentations, if it is one of the MIT releases."""
    try:
        importlib.metadata.distribution("albumentationsx")
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        raise UserError(
            f"{_FIELD}: the package albumentationsx is installed; it is under the AGPL and is not "
            f"used here. `pip uninstall albumentationsx albumentations`, then {_EXTRA}"
        )
    # Else its import asks the network for newer releases.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    try:
        import albumentations
    except ImportError as error:
        raise UserError(f"{_FIELD} needs Albumentations ({error}): {_EXTRA}") from error
    if albumentations.__version__ != _RELEASE:
        raise UserError(
            f"{_FIELD}: Albumentations {albumentations.__version__} is installed; what is used is "
            f"{_RELEASE}, the last release under the MIT licence: {_EXTRA}"
        )
    return albumentations


def _transform(library: Any, entry: Any, place: str) -> Any:
    """Makes one transform, or a composition of some, of its entry in the list."""
    name, *more = entry if isinstance(entry, list) and entry else [entry]
    where = f"{_FIELD}{place}"
    if not isinstance(name, str):
        raise UserError(f'{where} is {entry!r}; write ["Name", {{"argument": value}}]')
    kind = _class_of(library, name, where)
    inner = []
    if name in _COMPOSITIONS:
        if not more or not isinstance(more[0], list) or not more[0]:
            raise UserError(f'{where}: write ["{name}", [transforms], {{"p": 0.5}}]')
        entries, *more = more
        inner = [[_transform(library, e, f"{place}[{i}]") for i, e in enumerate(entries)]]
    arguments = more[0] if more else {}
    if len(more) > 1 or not isinstance(arguments, dict):
        raise UserError(f'{where}: write ["{name}", {{"argument": value}}], not {entry!r}')
    _check_arguments(kind, arguments, where)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            made = kind(*inner, **arguments)
    except Exception as error:  # each transform checks its arguments in its own way
        reason = " ".join(str(error).split())[:400]
        raise UserError(f"{where}: {name} refuses {arguments!r}: {reason}") from error
    refused = [str(w.message) for w in told if "not valid" in str(w.message)]
    if refused:
        raise UserError(f"{where}: {name} refuses {arguments!r}: {refused[0]}")
    return made


def _class_of(library: Any, name: str, where: str) -> Any:
    if name in _NUMERIC:
        raise UserError(
            f"{where}: {name} would change the kind of numbers; pictures are normalised by "
            "model.pixel_mean and model.pixel_std; leave it out"
        )
    base = library.BasicTransform
    known = [
        n
        for n, value in vars(library).items()
        if n not in _NUMERIC and inspect.isclass(value) and issubclass(value, base)
    ]
    known += _COMPOSITIONS
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0) or ["RandomRain"]
        raise UserError(
            f"{where}: Albumentations {library.__version__} has no transform {name!r}; "
            f"the nearest is {near[0]!r}"
        )
    return getattr(library, name)


def _check_arguments(kind: Any, arguments: dict[str, Any], where: str) -> None:
    known = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    for name in arguments:
        if name not in known:
            raise UserError(
                f"{where}: {kind.__name__} has no argument {name!r}; it has {', '.join(known)}"
            )


def _changes_pixels_only(library: Any, transform: Any) -> bool:
    inner = getattr(transform, "transforms", None)
    if inner is not None:
        return all(_changes_pixels_only(library, t) for t in inner)
    return isinstance(transform, library.ImageOnlyTransform | library.NoOp)
