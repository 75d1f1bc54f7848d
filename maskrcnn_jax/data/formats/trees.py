"""Folders of pictures: which there are, and which belongs to a label or mask of the same name."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from maskrcnn_jax.data.formats import headers
from maskrcnn_jax.data.formats.draft import Draft

SUFFIXES = frozenset(suffix for suffixes in headers.SUFFIXES.values() for suffix in suffixes)
_HIDDEN = "."  # macOS keeps attributes in "._a.jpg"


def files_below(folder: Path, suffixes: frozenset[str] = SUFFIXES) -> list[str]:
    """Names of the files with these suffixes below a folder, sorted, with "/"; links are followed.

    suffixes: in lower case.
    """
    found, seen = [], set()
    for base, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(base)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        prefix = "" if Path(base) == folder else f"{Path(base).relative_to(folder).as_posix()}/"
        for name in names:
            if os.path.splitext(name)[1].lower() in suffixes and not name.startswith(_HIDDEN):
                found.append(prefix + name)
    return sorted(found)


def by_stem(names: list[str]) -> dict[str, list[str]]:
    """Names by what they are without their suffix: {"train/a": ["train/a.jpg", "train/a.png"]}."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(os.path.splitext(name)[0], []).append(name)
    return stems


def one_of(draft: Draft, names: list[str], where: str) -> str:
    """The first of several pictures with one stem, and a warning if there are more."""
    if len(names) > 1:
        message = f"{' and '.join(names)} have the same stem; {names[0]} is taken"
        draft.find("warning", "same-stem", where, message)
    return names[0]


def folders_below(folder: Path, depth: int) -> Iterator[Path]:
    """A folder and those below it, `depth` levels down, in sorted order; the nearest first."""
    level = [folder]
    for remaining in range(depth, -1, -1):
        yield from level
        level = [child for parent in level for child in subfolders(parent)] if remaining else []


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if not e.name.startswith(_HIDDEN) and e.is_dir()]
    except OSError:
        return []
    return [folder / name for name in sorted(names)]


def child(folder: Path, name: str) -> Path | None:
    """The folder of that name in a folder, in any case of letters; None if there is none."""
    exact = folder / name
    if exact.is_dir():
        return exact
    return next((f for f in subfolders(folder) if f.name.lower() == name.lower()), None)


def stem(name: str) -> str:
    """The last part of a name without its suffix: "a" of "train/a.jpg"."""
    return PurePosixPath(name).stem
