"""Which pictures of a set belong together, so that no split parts them."""

import collections
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_jax.data import doctor_pictures, doctor_twins
from maskrcnn_jax.errors import UserError

# Roboflow names the augmented copies of a picture alike: "street_jpg.rf.<32 hex digits>.jpg".
_ROBOFLOW = re.compile(r"(.+)\.rf\.[0-9A-Za-z]{20,}\.\w+$")


def group_keys(coco: dict[str, Any], pattern: str = "", images: Path | None = None) -> list[str]:
    """For each picture the key of its group; pictures of one group stay together.

    Args:
      coco: a COCO JSON.
      pattern: regular expression searched for in the file name; the key is its first group, or
        the whole match. Pictures without a match are on their own. Without a pattern: the key that
        the format gave, else the original of Roboflow's augmented copies, else the picture.
      images: folder of the pictures; if given, files with the same content are one group, too.

    Raises:
      UserError: the pattern is no regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--group {pattern!r}: not a regular expression ({error})") from error
    keys = []
    for entry in coco["images"]:
        name = entry["file_name"]
        if pattern:
            match = compiled.search(name)
            key = match and (match.group(1) if compiled.groups else match.group())
        else:
            copy = _ROBOFLOW.match(name.rpartition("/")[2])
            key = entry.get("group") or (copy and copy.group(1))
        keys.append(f"group {key}" if key else f"picture {name}")
    return keys if images is None else _join(keys, _equal(coco["images"], images))


def join_twins(
    coco: dict[str, Any],
    keys: Sequence[str],
    images: Path,
    advance: Callable[[], None] = lambda: None,
) -> list[str]:
    """The keys, one for all groups that share pictures that show the same.

    Such are copies that were saved anew, scaled, mirrored, turned, cropped a little or made noisy,
    and frames of one scene (`doctor_twins`). Every picture is opened once, at the least scale that
    its format gives; files that cannot be read are left as they are.

    Args:
      coco: a COCO JSON.
      keys: one per picture, of `group_keys`.
      images: folder of the pictures.
      advance: called after each picture.
    """
    paths = [images / entry["file_name"] for entry in coco["images"]]
    looks = doctor_pictures.look_at_all(paths, advance)
    sound = [i for i, seen in enumerate(looks) if not seen.problem]
    twins = doctor_twins.find_twins(
        [looks[i].thumb for i in sound], [looks[i].digest for i in sound]
    )
    return _join(keys, ((sound[twin.first], sound[twin.second]) for twin in twins))


def _equal(entries: Sequence[dict[str, Any]], images: Path) -> Iterable[tuple[int, int]]:
    """Pairs of pictures whose files are the same, byte by byte."""
    sizes = collections.defaultdict(list)
    for index, entry in enumerate(entries):
        path = images / entry["file_name"]
        sizes[path.stat().st_size].append((index, path))
    for same_size in sizes.values():
        first: dict[bytes, int] = {}
        for index, path in same_size if len(same_size) > 1 else ():
            digest = hashlib.sha256(path.read_bytes()).digest()
            yield first.setdefault(digest, index), index


def _join(keys: Sequence[str], pairs: Iterable[tuple[int, int]]) -> list[str]:
    """Gives one key to all groups that a pair of pictures connects."""
    leader = {key: key for key in keys}

    def head(key: str) -> str:
        while leader[key] != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    for first, second in pairs:
        leader[head(keys[second])] = head(keys[first])
    return [head(key) for key in keys]
