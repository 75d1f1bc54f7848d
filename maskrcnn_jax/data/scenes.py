"""Pictures of textured shapes that hide one another: what the embedded data set shows.

An object cannot be told by colour or texture: the background and all classes draw theirs from the
same distribution. Every picture is a function of (seed, split, index) alone, and the splits share
no random stream.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from pycocotools import mask as coco_mask

# Category id -> name. The ids have gaps, like COCO's own.
CATEGORIES = {1: "circle", 3: "square", 4: "triangle", 7: "star", 8: "cross", 12: "ring"}
SPLITS = ("train", "val")

IMAGE_SIDES = (128, 192)
NUM_OBJECTS = (3, 12)
OBJECT_SIDES = (12, 96)  # of the visible box as well
MIN_VISIBLE = 0.5  # of the object's area; less is not placed, for it could hardly be told
MIN_VISIBLE_AREA = 60
HIDING = 0.1  # a partner hides at least this share of the object it is laid upon
_PARTNER_PROBABILITY = 0.3
_TRIES_PER_OBJECT = 12


class Scene(NamedTuple):
    """A picture and its objects, those painted later in front of the earlier ones."""

    image: UInt8[np.ndarray, "H W 3"]
    categories: list[int]
    polygons: list[list[float]]  # outer outline, x0, y0, x1, y1, ... in pixels
    full: Bool[np.ndarray, "n H W"]  # masks as if nothing lay in front
    visible: Bool[np.ndarray, "n H W"]


class _Object(NamedTuple):
    category: int
    outline: Float[np.ndarray, "v 2"]
    mask: Bool[np.ndarray, "H W"]
    area: int


def draw_scene(seed: int, split: str, index: int) -> Scene:
    """Draws picture `index` of a split."""
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    while True:
        height, width = (int(side) for side in rng.integers(*IMAGE_SIDES, 2, endpoint=True))
        objects, owner = _arrange(rng, height, width)
        if len(objects) >= NUM_OBJECTS[0]:
            break
    return Scene(
        image=_paint(rng, objects, height, width),
        categories=[o.category for o in objects],
        polygons=[_flat(o.outline) for o in objects],
        full=np.stack([o.mask for o in objects]),
        visible=np.arange(len(objects))[:, None, None] == owner,
    )


def _arrange(rng: np.random.Generator, height: int, width: int) -> tuple[list[_Object], Any]:
    """Places objects one upon the other; `owner` holds the front object of each pixel, or -1."""
    number = int(rng.integers(*NUM_OBJECTS, endpoint=True))
    median = math.sqrt(height * width / (number + 6))
    objects: list[_Object] = []
    owner = np.full((height, width), -1, np.int8)
    for _ in range(number * _TRIES_PER_OBJECT):
        if len(objects) == number:
            break
        side = float(np.clip(median * math.exp(rng.normal(0, 0.35)), *OBJECT_SIDES))
        partner = None
        if objects and rng.random() < _PARTNER_PROBABILITY:
            partner = int(rng.integers(len(objects)))
        new = _draw_object(
            rng, side, height, width, objects[partner] if partner is not None else None
        )
        if new is not None and _may_cover(new, objects, owner, partner):
            owner[new.mask] = len(objects)
            objects.append(new)
    return objects, owner


def _draw_object(
    rng: np.random.Generator, side: float, height: int, width: int, partner: _Object | None
) -> _Object | None:
    """An object wholly inside the picture, by chance or partly over `partner`; None: no room."""
    category = int(rng.choice(list(CATEGORIES)))
    outline = _unit_outline(CATEGORIES[category])
    outline = outline * (1, rng.uniform(0.75, 1.33))
    angle = math.radians(rng.uniform(-30, 30))
    cos, sin = math.cos(angle), math.sin(angle)
    outline = outline @ np.array([[cos, sin], [-sin, cos]])
    low, high = outline.min(0), outline.max(0)
    outline = (outline - (low + high) / 2) * (side / (high - low).max())
    half = np.ptp(outline, axis=0) / 2
    room = np.array([width, height]) - half
    if np.any(room <= half):
        return None
    centre = rng.uniform(half, room)
    if partner is not None:
        direction = rng.uniform(0, 2 * math.pi)
        reach = (side + np.ptp(partner.outline, axis=0).max()) / 2 * rng.uniform(0.4, 0.8)
        shift = reach * np.array([math.cos(direction), math.sin(direction)])
        centre = np.clip(partner.outline.mean(0) + shift, half, room)
    # What the JSON says is what is drawn.
    outline = np.clip(np.round(outline + centre, 2), 0, (width, height))
    mask = _rasterise(outline, height, width)
    if CATEGORIES[category] == "ring":
        mask &= ~_rasterise(centre + (outline - centre) * 0.5, height, width)
    return _Object(category, outline, mask, int(mask.sum()))


def _unit_outline(name: str) -> Float[np.ndarray, "v 2"]:
    if name in ("circle", "ring"):
        return _star_points(40, 1.0)
    if name == "square":
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    if name == "triangle":
        return _star_points(3, 1.0)
    if name == "star":
        return _star_points(10, 0.45)
    arm = 0.36
    quarter = np.array([(arm, -1), (arm, -arm), (1, -arm)])
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


def _star_points(number: int, inner_radius: float) -> Float[np.ndarray, "v 2"]:
    """Points around the origin from the top; every second one at `inner_radius`."""
    angle = np.arange(number) * (2 * math.pi / number) - math.pi / 2
    radius = np.where(np.arange(number) % 2, inner_radius, 1.0)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)


def _rasterise(
    outline: Float[np.ndarray, "v 2"], height: int, width: int
) -> Bool[np.ndarray, "H W"]:
    rles = coco_mask.frPyObjects([_flat(outline)], height, width)
    return coco_mask.decode(rles[0]).astype(bool)


def _flat(outline: Float[np.ndarray, "v 2"]) -> list[float]:
    return outline.ravel().tolist()


def _may_cover(new: _Object, objects: list[_Object], owner: Any, partner: int | None) -> bool:
    """Whether all objects, the hidden ones too, stay large and visible enough."""
    if not _sides_allowed(new.mask) or new.area < MIN_VISIBLE_AREA:
        return False
    touched = np.unique(owner[new.mask])
    if partner is not None:
        target = objects[partner].mask
        if (target & new.mask).sum() < HIDING * objects[partner].area:
            return False
    for i in touched[touched >= 0]:
        rest = (owner == i) & ~new.mask
        area = rest.sum()
        if area < max(MIN_VISIBLE * objects[i].area, MIN_VISIBLE_AREA) or not _sides_allowed(rest):
            return False
    return True


def _sides_allowed(mask: Bool[np.ndarray, "H W"]) -> bool:
    _, _, width, height = tight_box(mask)
    return OBJECT_SIDES[0] <= min(width, height) and max(width, height) <= OBJECT_SIDES[1]


def tight_box(mask: Bool[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
    """(x, y, width, height), as COCO writes it; zeros for an empty mask."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not columns.size:
        return 0, 0, 0, 0
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def _paint(
    rng: np.random.Generator, objects: list[_Object], height: int, width: int
) -> UInt8[np.ndarray, "H W 3"]:
    bases = [rng.uniform(40, 215, 3)]
    canvas = _texture(rng, height, width, bases[0])
    for item in objects:
        # An object must be seen at all: of some colours, the one farthest from those in use.
        options = rng.uniform(40, 215, (6, 3))
        distance = np.linalg.norm(options[:, None] - np.array(bases), axis=-1).min(1)
        bases.append(options[distance.argmax()])
        x, y, w, h = tight_box(item.mask)
        window, mask = canvas[y : y + h, x : x + w], item.mask[y : y + h, x : x + w]
        skin = _texture(rng, h, w, bases[-1])
        # A rim, darker or lighter than the object.
        skin[~_erode(mask)] = np.clip(bases[-1] + rng.choice([-75, 75]), 0, 255)
        window[mask] = skin[mask]
    canvas += rng.integers(-6, 7, canvas.shape, np.int8)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _texture(
    rng: np.random.Generator, height: int, width: int, base: Float[np.ndarray, " 3"]
) -> Float[np.ndarray, "h w 3"]:
    """Plain, stripes, checks, dots or blots about a colour; finer than the smallest object."""
    angle, period = rng.uniform(0, math.pi), rng.uniform(4, 9)
    x = np.arange(width, dtype=np.float32) * (2 * math.pi / period)
    y = np.arange(height, dtype=np.float32)[:, None] * (2 * math.pi / period)
    u = np.sin(x * math.cos(angle) + y * math.sin(angle))
    v = np.sin(y * math.cos(angle) - x * math.sin(angle))
    kind = rng.integers(5)
    if kind == 0:
        weave = np.zeros_like(u)
    elif kind == 1:
        weave = u
    elif kind == 2:
        weave = np.sign(u * v)
    elif kind == 3:
        weave = np.maximum(u + v, 0) - 0.5
    else:
        coarse = rng.uniform(-1, 1, (height // 4 + 1, width // 4 + 1)).astype(np.float32)
        weave = coarse.repeat(4, 0).repeat(4, 1)[:height, :width]
    strength = rng.uniform(12, 40) * rng.uniform(0.4, 1, 3) * rng.choice([-1, 1])
    light = rng.uniform(-20, 20) * np.linspace(-1, 1, width)[None, :, None]
    return (base + weave[..., None] * strength + light).astype(np.float32)


def _erode(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    padded = np.pad(mask, 1)
    return (
        padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2]
        & padded[1:-1, 2:]
    )  # fmt: skip
