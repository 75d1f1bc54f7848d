"""Pictures that a command line names, small text files beside them, files written whole."""

import glob
import json
import os
import uuid
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from maskrcnn_jax.errors import UserError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".tga", ".ico"),
)


class Picture(NamedTuple):
    """A file and the name that its results get."""

    name: str  # relative to the folder that was given, with "/"
    path: Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a name beside `path` to write to; then that file takes the place of `path`.

    So the file is whole or as it was, even where several processes of several hosts write it at
    once: the last one stays. If the block fails, what it has written is removed.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def find_images(sources: Iterable[str], leave_out: Path | None = None) -> list[Picture]:
    """The pictures that files, folders and patterns name, each once, in sorted order per source.

    A folder stands for all files below it whose suffix is one of SUFFIXES; a file is taken whatever
    its suffix. Pictures of several folders may have the same name.

    leave_out: a folder whose files are not taken (where the results go).
    Raises UserError for a source that names nothing.
    """
    found: dict[Path, Picture] = {}
    out = leave_out.resolve() if leave_out is not None else None
    for source in sources:
        pictures = _expand(source)
        if not pictures:
            raise UserError(
                f"{source}: no pictures here; give a file, a folder that holds some "
                "(.jpg, .png, .tif, .webp ...), or a pattern in quotes"
            )
        for picture in pictures:
            if out is None or out not in picture.path.resolve().parents:
                found.setdefault(picture.path, picture)
    return list(found.values())


def _expand(source: str) -> list[Picture]:
    path = Path(os.path.abspath(Path(source).expanduser()))
    if path.is_file():
        return [Picture(path.name, path)]
    if path.is_dir():
        return _below(path)
    pictures = []
    for match in sorted(Path(name) for name in glob.glob(str(path), recursive=True)):
        if match.is_dir():
            pictures += _below(match)
        elif match.suffix.lower() in SUFFIXES:
            pictures.append(Picture(match.name, match))
    return pictures


def _below(folder: Path) -> list[Picture]:
    pictures = []
    for base, _, names in os.walk(folder):
        for name in names:
            path = Path(base) / name
            # "._a.jpg" are not pictures: macOS keeps attributes in them.
            if path.suffix.lower() in SUFFIXES and not name.startswith("._"):
                pictures.append(Picture(path.relative_to(folder).as_posix(), path))
    return sorted(pictures)


def free_name(name: str, taken: Container[str]) -> str:
    """The name, or with "-2", "-3" ... before its suffix the first that is not taken.

    taken: in lower case (`casefold`), as some file systems know only one.
    """
    stem, suffix = os.path.splitext(name)
    number = 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}{suffix}"
    return name


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without surrounding blanks; empty lines are left out."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
    return [line.strip() for line in lines if line.strip()]


class ImageIds:
    """The images of a COCO JSON, looked up by file name."""

    def __init__(self, path: Path, entries: list[dict[str, Any]]):
        """entries: the list `images` of the file at `path`."""
        self.path = path
        self._by_path = {str(entry["file_name"]): entry for entry in entries}
        self._by_name: dict[str, list[dict]] = {}
        for entry in entries:
            self._by_name.setdefault(os.path.basename(str(entry["file_name"])), []).append(entry)

    def match(
        self, pictures: Iterable[Picture], claimed: Container[Any] = ()
    ) -> dict[Path, dict[str, Any]]:
        """The entries {"id", "height", "width", ...} of those pictures that have one.

        A picture has the entry whose file name is its relative name or the end of its path; else
        the one whose last part is its own, if no other picture has that. claimed: ids that are
        taken already. Raises UserError where two entries would do.
        """
        pictures = list(pictures)
        found = {}
        for name, path in pictures:
            parts = path.parts
            tails = ["/".join(parts[-n:]) for n in range(len(parts) - 1, 0, -1)]
            entry = next((self._by_path[t] for t in (name, *tails) if t in self._by_path), None)
            if entry is not None:
                found[path] = entry
        taken = {entry["id"] for entry in found.values()}
        for _, path in pictures:
            entries = [] if path in found else self._by_name.get(path.name, [])
            entries = [e for e in entries if e["id"] not in taken and e["id"] not in claimed]
            if len(entries) > 1:
                raise UserError(
                    f"{self.path}: {len(entries)} images end in {path.name!r}; give the folder "
                    "that their 'file_name' is relative to"
                )
            if entries:
                found[path] = entries[0]
                taken.add(entries[0]["id"])
        return found


def read_image_ids(path: Path) -> ImageIds:
    """Reads the images of a COCO JSON. Raises UserError if it is none."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["images"]
        for entry in entries:
            entry["id"], entry["file_name"]  # noqa: B018
        return ImageIds(path, entries)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no COCO JSON with 'images' that have 'id' and 'file_name' ({error!r})"
        ) from error
