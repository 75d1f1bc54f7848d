"""Pictures that are there twice: as the same file, saved anew, mirrored, turned or made noisy.

Each picture gets a hash of 63 bits, the signs of the lowest frequencies of its 32 x 32 thumbnail
(C. Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010, chapter 3:
"pHash"). Mirroring only changes signs of odd frequencies, and turning exchanges the axes, so that
the hashes of all eight poses come from one transform. Pairs with near hashes are then compared by
their thumbnails: as they are, and without their large forms (sky above grass is common to many), a
little moved against each other (copies that were cropped, frames of one scene).
"""

import collections
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8, UInt64

from maskrcnn_jax.data.doctor_pictures import Look
from maskrcnn_jax.data.doctor_read import RawData

Pose = tuple[int, int, int]  # transposed, mirrored up to down, mirrored left to right
POSES: tuple[Pose, ...] = tuple(
    (turned, up, over) for turned in (0, 1) for up in (0, 1) for over in (0, 1)
)
_LOW = 8  # frequencies along each side
_MOST_BITS = 16  # by which hashes of one picture may differ
_LEAST_CORRELATION = 0.8  # of thumbnails
_SURE = 0.98  # of thumbnails; no need to look at details
_LEAST_DETAIL_CORRELATION = 0.65  # without their large forms; of different photographs up to 0.4
_SHIFTS = range(-2, 3)  # px of thumbnails, by which details may be moved
_BLUR = 2  # px of thumbnails around each that its large forms are taken from
_SAME = 0.99  # of thumbnails of one picture that was only saved anew
_MOST = 4  # twins of each of two pictures, after which the two are not compared any more
_MOST_NAMES = 4  # in a message
_LEAST_DETAIL = 4.0  # standard deviation, gray levels, of a thumbnail that says something
_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Twin:
    """Two pictures that show the same."""

    first: int
    second: int
    same_file: bool  # byte by byte
    same_pose: bool  # else mirrored or turned
    correlation: float  # of the thumbnails


def find_twins(
    thumbs: Sequence[UInt8[np.ndarray, "32 32"]], digests: Sequence[bytes]
) -> list[Twin]:
    """Pairs of pictures that show the same, by their thumbnails and content hashes.

    Of pictures that all show the same (a fixed camera), enough pairs to connect them.
    """
    found: dict[tuple[int, int], Twin] = {}
    first_of: dict[bytes, int] = {}
    for index, digest in enumerate(digests):
        first = first_of.setdefault(digest, index)
        if first != index:
            found[first, index] = Twin(first, index, True, True, 1.0)
    if len(thumbs):
        _compare(np.stack(thumbs).astype(np.float32), found)
    return [found[pair] for pair in sorted(found)]


def _compare(thumbs: Float[np.ndarray, "n 32 32"], found: dict[tuple[int, int], Twin]) -> None:
    normal = thumbs - thumbs.mean((1, 2), keepdims=True)
    deviation = normal.std((1, 2))
    detailed = deviation >= _LEAST_DETAIL
    normal /= np.maximum(deviation, 1e-6)[:, None, None] * thumbs.shape[1]
    frequencies = _frequencies(normal)
    hashes = [_hash(_pose(frequencies, pose)) for pose in POSES]
    degree = np.zeros(len(thumbs), int)
    for start in range(0, len(thumbs), _ROWS):
        rows = hashes[0][start : start + _ROWS, None]
        for pose, posed in zip(POSES, hashes, strict=True):
            near = np.bitwise_count(rows ^ posed[None, start:]) <= _MOST_BITS
            i, j = np.nonzero(near)
            i, j = i + start, j + start
            keep = (i < j) & detailed[i] & detailed[j] & (np.minimum(degree[i], degree[j]) < _MOST)
            for a, b in zip(i[keep].tolist(), j[keep].tolist(), strict=True):
                if min(degree[a], degree[b]) >= _MOST:
                    continue
                best = found.get((a, b))
                twin = _judge(a, b, pose, normal[a], _turn(normal[b], pose), best)
                if twin is not None:
                    degree[[a, b]] += best is None
                    found[a, b] = twin


def _judge(
    a: int, b: int, pose: Pose, first: np.ndarray, second: np.ndarray, best: Twin | None
) -> Twin | None:
    """The twin that two normalised thumbnails are; None if they are none, or less than `best`."""
    correlation = float(np.sum(first * second))
    if correlation < (best.correlation if best else _LEAST_CORRELATION):
        return None
    sure = correlation >= _SURE
    if not sure and _detail_correlation(first, second) < _LEAST_DETAIL_CORRELATION:
        return None
    return Twin(a, b, best is not None and best.same_file, not any(pose), correlation)


def _detail_correlation(a: Float[np.ndarray, "s s"], b: Float[np.ndarray, "s s"]) -> float:
    """The correlation of the details of two thumbnails, at the shift where it is greatest."""
    a, b, best = _detail(a), _detail(b), -1.0
    for dy, dx in itertools.product(_SHIFTS, _SHIFTS):
        u = _overlap(_overlap(a, dy).T, dx)
        v = _overlap(_overlap(b, -dy).T, -dx)
        u, v = u - u.mean(), v - v.mean()
        scale = float(np.sqrt((u * u).sum() * (v * v).sum()))
        best = max(best, float((u * v).sum()) / max(scale, 1e-9))
    return best


def _overlap(image: np.ndarray, shift: int) -> np.ndarray:
    """The lines of an image that lie on another one moved by so many."""
    return image[max(shift, 0) : len(image) + min(shift, 0)]


def _detail(image: Float[np.ndarray, "s s"]) -> Float[np.ndarray, "s s"]:
    """What an image differs from the mean of the square around each pixel."""
    size = 2 * _BLUR + 1
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(image, _BLUR, "edge"), (size, size))
    return image - windows.mean((2, 3))


def _frequencies(images: Float[np.ndarray, "n s s"]) -> Float[np.ndarray, "n 8 8"]:
    """The lowest frequencies of the cosine transform (type II), vertical by horizontal."""
    side = images.shape[1]
    centres = (np.arange(side) + 0.5) * (np.pi / side)
    basis = np.cos(np.arange(_LOW)[:, None] * centres[None]).astype(np.float32)
    return np.einsum("fy,nyx,gx->nfg", basis, images, basis, optimize=True)


def _turn(image: np.ndarray, pose: Pose) -> np.ndarray:
    """The image transposed, then mirrored along its vertical and horizontal axes."""
    turned, up, over = pose
    image = np.swapaxes(image, -1, -2) if turned else image
    return image[..., :: -1 if up else 1, :: -1 if over else 1]


def _pose(frequencies: np.ndarray, pose: Pose) -> np.ndarray:
    """The frequencies of the image in that pose."""
    turned, up, over = pose
    if turned:
        frequencies = np.swapaxes(frequencies, -1, -2)
    signs = np.where(np.arange(_LOW) % 2, -1, 1)
    vertical, horizontal = signs if up else 1, signs if over else 1
    return frequencies * np.reshape(vertical, (-1, 1)) * np.reshape(horizontal, (1, -1))


def _hash(frequencies: Float[np.ndarray, "n 8 8"]) -> UInt64[np.ndarray, " n"]:
    bits = frequencies.reshape(len(frequencies), -1) > 0
    bits[:, 0] = False  # the mean says nothing
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def groups(twins: Sequence[Twin], count: int) -> list[list[int]]:
    """Sets of two or more pictures, each joined to another of its set by a twin."""
    leader = list(range(count))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for twin in twins:
        a, b = sorted((find(twin.first), find(twin.second)))
        leader[b] = a
    sets: dict[int, list[int]] = {}
    for i in range(count):
        sets.setdefault(find(i), []).append(i)
    return [members for members in sets.values() if len(members) > 1]


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a picture is used: a photo of a split, or a file of no split."""

    look: Look
    split: int  # -1: of none
    photo: int

    def call(self, splits: Sequence[RawData]) -> str:
        if self.split < 0:
            return str(self.look.path)
        return splits[self.split].call_photo(self.photo)


def check(splits: Sequence[RawData], looks: dict[Path, Look]) -> None:
    """Tells of pictures that a split has twice, and of those that several splits share.

    looks: by file; those of files that no split names are looked at for leaks, too.
    """
    places: dict[Path, _Place] = {}
    for k, raw in enumerate(splits):
        for index, photo in enumerate(raw.photos):
            if photo.file is not None and not looks[photo.file].problem:
                places.setdefault(photo.file, _Place(looks[photo.file], k, index))
    for path, seen in looks.items():
        if not seen.problem:
            places.setdefault(path, _Place(seen, -1, -1))
    known = list(places.values())
    twins = find_twins([p.look.thumb for p in known], [p.look.digest for p in known])
    counts = [collections.Counter(t.photo for t in raw.things) for raw in splits]
    for members in groups(twins, len(known)):
        group = [known[i] for i in members]
        own = [p for p in group if p.split >= 0]
        if own and len({p.split for p in group}) > 1:
            _tell_leak(splits, own[0], [p for p in group if p.split != own[0].split])
    near: dict[int, list[Twin]] = {k: [] for k in range(len(splits))}
    for twin in twins:
        a, b = known[twin.first], known[twin.second]
        if a.split != b.split or a.split < 0:
            continue
        objects = counts[a.split][a.photo], counts[b.split][b.photo]
        # Noisy copies have the objects of their photo; who labels one anew finds others.
        anew = twin.same_pose and twin.correlation >= _SAME and objects[0] != objects[1]
        if twin.same_file or anew:
            _tell_same(splits, a, b, objects, twin.same_file)
        else:
            near[a.split].append(twin)
    for k, pairs in near.items():
        for members in groups(pairs, len(known)):
            _tell_near(splits[k], [known[i] for i in members])


def _tell_leak(splits: Sequence[RawData], place: _Place, others: list[_Place]) -> None:
    names = [
        f"{other.call(splits)} of {splits[other.split].path}"
        if other.split >= 0
        else other.call(splits)
        for other in others[:_MOST_NAMES]
    ]
    message = f"the same picture is in another split: {_list(names, len(others))}; what is "
    message += "measured there is too good: remove one, and split near-duplicates together"
    raw = splits[place.split]
    raw.tell("warning", "leak", message, raw.call_photo(place.photo), place.photo)


def _tell_same(
    splits: Sequence[RawData], a: _Place, b: _Place, objects: tuple[int, int], same_file: bool
) -> None:
    raw, how = splits[a.split], "the same file" if same_file else "the same picture"
    where, other = raw.call_photo(b.photo), raw.call_photo(a.photo)
    if all(objects):
        message = f"is {how} as {other}, annotated twice: {objects[1]} objects here, {objects[0]} "
        raw.tell("warning", "annotated-twice", message + "there; keep the better", where, b.photo)
    else:
        message = f"is {how} as {other}; remove one"
        raw.tell("warning", "duplicate-picture", message, where, b.photo)


def _tell_near(raw: RawData, group: list[_Place]) -> None:
    names = [raw.call_photo(p.photo) for p in group[1 : _MOST_NAMES + 1]]
    message = f"nearly the same picture is there {len(group)} times (augmented copies or frames of "
    message += f"one scene): {_list(names, len(group) - 1)}; keep them together when splitting"
    where = raw.call_photo(group[0].photo)
    raw.tell("warning", "near-duplicate", message, where, group[0].photo)


def _list(names: Sequence[str], count: int) -> str:
    rest = f" and {count - len(names)} more" if count > len(names) else ""
    return ", ".join(names) + rest
