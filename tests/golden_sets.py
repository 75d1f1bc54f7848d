"""The golden sets: numbers of the peers, by family, in the folder that MASKRCNN_GOLDEN names.

Its sub-folders torch/ and matterport/ are laid out as their READMEs tell. Tests list the files and
the arrays that are there; what is missing is skipped, with the name of it.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(os.environ.get("MASKRCNN_GOLDEN") or Path(__file__).parent / "golden")


def find(family: str, pattern: str) -> list[Path]:
    """The files of a family that match a glob pattern, sorted; [] without any."""
    return sorted((FOLDER / family).glob(pattern))


def names(family: str, file: str) -> list[str]:
    """The arrays of the archive `file`.npz; [] if it is missing."""
    path = FOLDER / family / f"{file}.npz"
    if not path.is_file():
        return []
    with np.load(path) as archive:
        return list(archive.files)


def load(family: str, file: str) -> dict[str, np.ndarray]:
    """All arrays of the archive `file`.npz; skips the test if it is missing."""
    path = FOLDER / family / f"{file}.npz"
    if not path.is_file():
        pytest.skip(f"no file {path}")
    with np.load(path) as archive:
        return dict(archive)


def section(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The arrays under `name`/, or those under no name for ''."""
    if not name:
        return {k: v for k, v in arrays.items() if "/" not in k}
    return {k.removeprefix(f"{name}/"): v for k, v in arrays.items() if k.startswith(f"{name}/")}


def sections(arrays: list[str] | dict[str, np.ndarray]) -> list[str]:
    """The names before a '/' in the order of the file; '' for arrays without one."""
    return list(dict.fromkeys(name.rpartition("/")[0] for name in arrays))


def each(family: str, file: str, inputs: str) -> Callable:
    """Runs a test once for each array of `file`.npz that is no input, as its argument `name`.

    inputs: a pattern for whole names, after the '/'. All other arrays are numbers to agree with, so
    that a test which does not know one of them fails.
    """
    known = re.compile(inputs)
    found = [n for n in names(family, file) if not known.fullmatch(n.rpartition("/")[2])]
    if not found:
        reason = f"no numbers to agree with in {FOLDER / family / file}.npz"
        found = [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
    return pytest.mark.parametrize("name", found)
