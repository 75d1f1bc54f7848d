"""The doctor's look at the pictures: are they there, sound, of the size told, and there once."""

import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from maskrcnn_jax.data.doctor_read import RawData
from maskrcnn_jax.data.formats.headers import FIRST_TRANSPOSING, SUFFIXES, read_header
from maskrcnn_jax.data.formats.reading import is_file, safe_join
from maskrcnn_jax.errors import UserError

THUMB = 32  # side of the gray thumbnails that are compared
_REDUCED = 128  # px; a JPEG is decoded at the least scale that keeps more
_THREADS = 2


@dataclasses.dataclass(frozen=True)
class Look:
    """What one look at a file gave."""

    path: Path
    problem: str = ""  # why it cannot be used
    kind: str = ""  # "JPEG"
    stored: tuple[int, int] = (0, 0)  # height, width
    orientation: int = 1  # of EXIF
    digest: bytes = b""  # of the content
    thumb: UInt8[np.ndarray, "32 32"] | None = None  # gray, as stored


def look(path: Path) -> Look:
    """Opens a picture and decodes it to the end."""
    try:
        kind, stored, orientation = read_header(path)
        content = path.read_bytes()
        thumb = _thumb(content)
    except UserError as error:
        return Look(path, problem=str(error))
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        problem = f"{path}: the picture is damaged or cut off ({error}); get a good copy of it"
        return Look(path, problem=problem)
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return Look(path, "", kind, stored, orientation, digest, thumb)


def look_at_all(paths: Sequence[Path], advance: Callable[[], None]) -> list[Look]:
    """Looks at files, in two threads; calls `advance` after each."""
    found = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for result in _bounded(pool, look, paths):
            found.append(result)
            advance()
    return found


def _bounded(pool: ThreadPoolExecutor, action: Callable, items: Sequence) -> Iterator:
    """As pool.map; but after a Ctrl-C no more than a few items are still begun."""
    waiting = []
    for item in items:
        waiting.append(pool.submit(action, item))
        if len(waiting) > 4 * _THREADS:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


def _thumb(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        image.draft("L", (_REDUCED, _REDUCED))
        image.load()
        gray = np.asarray(image)
        if image.mode.startswith("I") or image.mode == "F":  # 16 bits a channel
            gray = np.nan_to_num(gray.astype(np.float64))
            span = np.ptp(gray) or 1.0
            image = Image.fromarray(((gray - gray.min()) * (255 / span)).astype(np.uint8))
        image = image.convert("L")
        # Averages first, so that single pixels of noise weigh little, then medians of what is left.
        reduced = image.resize((_REDUCED, _REDUCED), Image.Resampling.BOX)
        reduced = reduced.filter(ImageFilter.MedianFilter(3))
        return np.asarray(reduced.resize((THUMB, THUMB), Image.Resampling.BOX))


def guess_folders(path: Path, names: Sequence[str]) -> list[Path]:
    """Where the pictures of an annotation file likely are: the folder that has most of the names.

    Looked at are the file's folder and those in it; if they have none, the one above and those in
    it. Of folders with as many, that named as the file (instances_train2017.json) comes first.
    """
    sample = names[:: max(1, len(names) // 50)][:50]
    for near in (path.parent, path.parent.parent):
        below = [*_subfolders(near), *_subfolders(near / "images")]
        below.sort(key=lambda folder: folder.name not in path.stem)
        folders = [near, *below]
        counts = [sum(find(name, [f]) is not None for name in sample) for f in folders]
        if any(counts):
            return [folders[counts.index(max(counts))]]
    return [path.parent]


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(f for f in folder.iterdir() if f.is_dir())
    except OSError:
        return []


def find(name: str, folders: Sequence[Path]) -> Path | None:
    """The picture of that name in one of the folders, never outside them.

    Exports often carry the folders of the machine that they were made on: the last part of the
    name will do, too, as it does for training.
    """
    for folder in folders:
        for candidate in dict.fromkeys((name, PurePosixPath(name).name)):
            file = safe_join(folder, candidate)
            if is_file(file):
                return file
    return None


def locate(raw: RawData) -> None:
    """Fills in the file of every picture; tells of missing ones, and of a file for two entries."""
    owners: dict[Path, int] = {}
    where = ":".join(str(f) for f in raw.folders)
    for index, photo in enumerate(raw.photos):
        photo.file = find(photo.name, raw.folders) if photo.name else None
        if not photo.name:
            continue
        if photo.file is None:
            message = (
                f"{photo.name} is not in {where}; add the picture or name its folder: --images"
            )
            raw.tell("error", "missing-image", message, raw.call_photo(index), index)
        elif photo.file in owners and raw.photos[owners[photo.file]].name != photo.name:
            message = f"{raw.call_photo(owners[photo.file])} is read from the same file"
            raw.tell("warning", "duplicate-file", message, raw.call_photo(index), index)
        if photo.file is not None:
            owners.setdefault(photo.file, index)


def check(raw: RawData, looks: dict[Path, Look]) -> None:
    """Tells what is wrong with single pictures.

    looks: by file, of all that `locate` found.
    """
    for index, photo in enumerate(raw.photos):
        if photo.file is None:
            continue
        seen = looks[photo.file]
        where = raw.call_photo(index)
        if seen.problem:
            raw.tell("error", "unreadable-image", seen.problem, where, index)
        if seen.problem or raw.foreign:
            continue
        right = SUFFIXES.get(seen.kind)
        if right and PurePosixPath(photo.name).suffix.lower() not in right:
            raw.tell("note", "wrong-suffix", f"is a {seen.kind} file by its content", where, index)
        turns = seen.orientation >= FIRST_TRANSPOSING
        shown = seen.stored[::-1] if turns else seen.stored
        if seen.orientation != 1:
            _tell_orientation(raw, index, seen, shown)
        if photo.hw is not None and photo.hw not in (seen.stored, shown):
            message = f"'height' and 'width' are {photo.hw[0]} and {photo.hw[1]}, the picture has "
            message += f"{shown[0]} and {shown[1]}; use the picture that was labelled, or correct "
            raw.tell("error", "size-mismatch", message + "the size", where, index)


def _tell_orientation(raw: RawData, index: int, seen: Look, shown: tuple[int, int]) -> None:
    message = f"EXIF orientation {seen.orientation}"
    where = raw.call_photo(index)
    if shown == seen.stored:
        message += ": its size cannot tell whether it was labelled as stored or as shown, and it "
        message += "is used as stored: look, or save it upright and label that"
        raw.tell("warning", "exif", message, where, index)
    elif raw.photos[index].hw == seen.stored:
        raw.tell("warning", "exif", f"{message}, but labelled as stored: look", where, index)
    else:
        raw.tell("note", "exif", f"{message}: it is turned upright for training", where, index)
