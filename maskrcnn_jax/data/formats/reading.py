"""Reading what people's tools wrote: text, JSON, names of pictures, numbers.

Nothing here trusts a file: names never lead out of the folder of the pictures, and what is wrong
is a UserError (the file is of no use) or a finding (one entry is).
"""

import functools
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float

from maskrcnn_jax.data.formats.draft import Draft, Options, Picture
from maskrcnn_jax.data.formats.headers import (
    FIRST_TRANSPOSING,
    SUFFIXES,
    read_header,
    tell_orientation,
)
from maskrcnn_jax.errors import UserError

LIMIT = 1e7  # no coordinate, side or count of a picture is larger
_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
# Sides of a scaled copy are rounded, which changes their ratio a little.
_RATIO_SLACK = 0.02


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, UTF-16 with a byte order mark, else Windows-1252.

    Raises:
      UserError: it cannot be read, or is no text.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; correct the name") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason})") from error
    encodings = [name for bom, name in _BOMS if content.startswith(bom)] or ["utf-8", "cp1252"]
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise UserError(f"{path}: is not a text file; name the file that the labelling tool exported")


def read_json(path: Path) -> Any:
    """The content of a JSON file. It is shared between callers: do not change it.

    NaN and Infinity are read as such, for `number` to refuse.

    Raises:
      UserError: it cannot be read, or is no JSON; names the line.
    """
    try:
        state = path.stat()
    except (OSError, ValueError):
        return _parse_json(path, 0, 0)  # says what is wrong
    return _parse_json(path, state.st_mtime_ns, state.st_size)


# Every format looks at the same file when the kind is found out: it is parsed once.
@functools.lru_cache(maxsize=1)
def _parse_json(path: Path, _time: int, _size: int) -> Any:
    return parse_json(read_text(path), path)


def forget() -> None:
    """Frees the JSON that was read last."""
    _parse_json.cache_clear()


def parse_json(text: str, path: Path) -> Any:
    """The content of a JSON text of the file at `path`.

    Raises:
      UserError: it is no JSON; names the line.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); "
            "the file may be cut off or edited by hand: export it again"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, lists 10,000 deep
        raise UserError(f"{path}: not usable as JSON ({error}); export it again") from error


def try_json(path: Path) -> Any:
    """The content of a JSON file, or None where there is none; to find out the kind of a file."""
    try:
        return read_json(path) if path.is_file() else None
    except (UserError, OSError):
        return None


def number(value: Any) -> float | None:
    """The value as a float if it is a finite number within LIMIT, no boolean and no text."""
    if type(value) not in (int, float) or not abs(value) <= LIMIT:
        return None
    return float(value)


def whole(value: Any) -> int | None:
    """The value if it is a whole number of any size; 3.0 is 3, a boolean is none."""
    if type(value) is float and math.isfinite(value) and value == int(value):
        return int(value)
    return value if type(value) is int else None


def parse_number(text: Any) -> float | None:
    """The number that a text holds, or None, by the rules of `number`; "1_0" is none."""
    if not isinstance(text, str) or "_" in text:
        return None
    try:
        return number(float(text))
    except ValueError:
        return None


def numbers(values: Any) -> Float[np.ndarray, " n"] | None:
    """The values as float64 if they are a list of what `number` takes; else None."""
    if not isinstance(values, list | tuple) or not set(map(type, values)) <= {int, float}:
        return None
    try:
        array = np.array(values, np.float64)
    except OverflowError:
        return None
    return array if np.all(np.abs(array) <= LIMIT) else None


def points(flat: Any) -> Float[np.ndarray, "n 2"] | None:
    """Numbers x, y, x, y, ... as points; None if they are no such numbers."""
    values = numbers(flat)
    return None if values is None or values.size % 2 else values.reshape(-1, 2)


def stack(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 2"]:
    """Columns x and y as points."""
    return np.stack([x, y], axis=1)


def point_pairs(pairs: Any) -> Float[np.ndarray, "n 2"] | None:
    """A list of [x, y] as points; None if it is no such list."""
    if not isinstance(pairs, list | tuple):
        return None
    if not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        return None
    return points([value for pair in pairs for value in pair])


def text(value: Any) -> str:
    """A name or class as text without blanks around it; "" for what is neither text nor number."""
    if type(value) in (int, float):
        return str(value) if abs(value) <= LIMIT else ""
    return value.strip() if isinstance(value, str) else ""


def safe_join(folder: Path, name: str) -> Path | None:
    """The file `name` below a folder; None if the name is absolute or leads out of it.

    Back-slashes are separators; "a/../b" is "b". Links in the folder are the user's own.
    """
    relative = clean_name(name)
    return None if relative is None else folder / relative


def clean_name(name: str) -> str | None:
    """A relative name with "/" and without "." and ".."; None if it is absolute or leads out."""
    name = name.replace("\\", "/")
    if not name or name.startswith("/") or re.match(r"[A-Za-z]:|\w+://", name):
        return None
    if any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in name):
        return None
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts) or None


def is_file(path: Path | None) -> bool:
    """Whether there is such a file; False, too, for names that no file can have."""
    try:
        return path is not None and path.is_file()
    except (OSError, ValueError):
        return False


def images_folder(options: Options, candidates: Sequence[Path], names: Iterable[Any] = ()) -> Path:
    """The folder of the pictures: the user's, else the candidate that has most of these names.

    Raises:
      UserError: the user's folder does not exist.
    """
    if options.images is not None:
        if not options.images.is_dir():
            raise UserError(f"{options.images}: no such folder; correct --images")
        return options.images
    folders = [folder for folder in dict.fromkeys(candidates) if folder.is_dir()]
    sample = [name for name, _ in zip(names, range(50), strict=False) if isinstance(name, str)]
    counts = [sum(is_file(safe_join(folder, name)) for name in sample) for folder in folders]
    if not folders:
        raise UserError(f"{candidates[0]}: no such folder; name the one of the pictures: --images")
    return folders[counts.index(max(counts))]


def picture(
    draft: Draft,
    name: Any,
    *,
    hw: tuple[Any, Any] | None = None,
    others: Sequence[str] = (),
    where: str = "",
    scales: bool = False,
    once: bool = False,
    group: str = "",
    id: int | None = None,
) -> Picture | None:
    """Adds the picture of that name to the draft, once; None and a finding if it is of no use.

    A picture that lies elsewhere in the export is looked for by the last part of its name, too,
    because exports often carry the folders of the machine that they were made on.

    Args:
      draft: gets the picture and what is odd about it.
      name: as the annotations write it.
      hw: the size that the annotations name, if they do.
      others: other names it may have, tried in order.
      where: what to call the entry in findings; its name by default.
      scales: the annotations are relative (percent), so that a scaled copy will do.
      once: this should be the only entry of the picture; a second one is a finding.
      group, id: see `Picture`.
    """
    if not isinstance(name, str) or not name.strip():
        draft.find("error", "no-name", where, f"the name of the picture is {name!r}; give it one")
        return None
    where = where or name
    if "\\" in name:
        draft.find("note", "back-slash", where, f"{name}: back-slashes are read as '/'")
    found = _find(draft, name, others, where)
    if found is None:
        return None
    if found not in draft.known:
        draft.known[found] = _open(draft, found, hw, where, scales)
        if draft.known[found] is not None:
            draft.known[found].group, draft.known[found].id = group, id
            draft.pictures.append(draft.known[found])
    elif once:
        message = f"{found} has several entries; their objects are put together"
        draft.find("warning", "duplicate-picture", where, message)
    return draft.known[found]


def locate(folder: Path, name: Any, others: Sequence[str] = ()) -> str | None:
    """The name below a folder of the first file that is there: name, others, name's last part."""
    if not isinstance(name, str):
        return None
    last = PurePosixPath(name.replace("\\", "/")).name
    for candidate in (name, *others, last):
        relative = clean_name(candidate)
        if relative is not None and is_file(folder / relative):
            return relative
    return None


def _find(draft: Draft, name: str, others: Sequence[str], where: str) -> str | None:
    found, asked = locate(draft.images, name, others), clean_name(name)
    if found is not None and asked is None:
        message = f"{name!r} leads out of {draft.images}; {found} in it is taken"
        draft.find("warning", "unsafe-name", where, message)
    elif found is not None and found != asked:
        draft.find("note", "other-name", where, f"{name} is read from {found}")
    elif found is None and asked is None:
        message = f"{name!r} leads out of {draft.images}; move the picture into it"
        draft.find("error", "unsafe-name", where, message)
    elif found is None:
        message = f"{name} is not in {draft.images}; add the picture or name its folder: --images"
        draft.find("error", "missing-image", where, message)
    return found


def _open(
    draft: Draft, name: str, hw: tuple[Any, Any] | None, where: str, scales: bool
) -> Picture | None:
    file = str(draft.images / name)
    try:
        kind, stored, orientation = read_header(draft.images / name)
    except UserError as error:
        draft.find("error", "unreadable-image", where, str(error), file)
        return None
    right = SUFFIXES.get(kind)
    if right and PurePosixPath(name).suffix.lower() not in right:
        draft.find("note", "wrong-suffix", where, f"{name} is a {kind} file", file)
    shown = stored[::-1] if orientation >= FIRST_TRANSPOSING else stored
    size = shown
    if hw is not None and (whole(hw[0]), whole(hw[1])) == stored:
        size = stored
    if orientation != 1:
        tell_orientation(draft, where, file, orientation, stored, size)
    fits = hw is None or (whole(hw[0]), whole(hw[1])) == size
    if not fits and not _tell_mismatch(draft, where, file, hw, size, scales):
        return None
    return Picture(name, *size)


def _tell_mismatch(
    draft: Draft, where: str, file: str, hw: tuple[Any, Any], size: tuple[int, int], scales: bool
) -> bool:
    """Tells that the size is another one; whether the picture can be used all the same."""
    told = [number(side) for side in hw]
    message = (
        f"the annotations say height {hw[0]!r:.20} and width {hw[1]!r:.20}, "
        f"the picture has {size[0]} and {size[1]}"
    )
    if all(side is not None and side > 0 for side in told) and scales:
        ratio = told[1] * size[0] / (told[0] * size[1])
        if abs(ratio - 1) <= _RATIO_SLACK:
            draft.find("warning", "size-mismatch", where, f"{message}: scaled with it", file)
            return True
    remedy = "use the picture that was labelled, or correct the size"
    draft.find("error", "size-mismatch", where, f"{message}; {remedy}", file)
    return False


def relative_name(path: Path, folder: Path) -> str:
    """The path of a file relative to a folder, with "/"; for names of pictures and findings."""
    return Path(os.path.relpath(path, folder)).as_posix()
