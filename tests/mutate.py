"""Spoils annotation files, and checks what a reader makes of them: the fuzz tests of all formats.

    @settings_for_fuzz
    @hypothesis.given(content=mutate.json_files(sample))
    def test_fuzz(content): ...
        mutate.outcome(lambda: registry.read(path, "via", Options()), forbidden=folder)

MASKRCNN_FUZZ=1000 runs that many examples of each test; the default is small.
"""

import contextlib
import copy
import json
import math
import os
import random
import re
import shutil
from pathlib import Path

import hypothesis
import numpy as np
from hypothesis import strategies as st

from maskrcnn_jax.data.formats import conversion, to_coco
from maskrcnn_jax.data.formats.draft import Draft, Picture
from maskrcnn_jax.errors import UserError

EXAMPLES = int(os.environ.get("MASKRCNN_FUZZ", "40"))
settings_for_fuzz = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.data_too_large,
        hypothesis.HealthCheck.large_base_example,
    ],
)

settings_for_writes = hypothesis.settings(settings_for_fuzz, max_examples=max(EXAMPLES // 4, 10))

# Names that must not be followed; a picture of the first name lies outside the folder.
DECOY = "outside.png"
_NAMES = [
    f"../{DECOY}",
    f"..\\{DECOY}",
    f"a/../../{DECOY}",
    f"images/../../{DECOY}",
    "/etc/passwd",
    "C:\\Windows\\win.ini",
    "\\\\server\\share\\a.jpg",
    f"file:///tmp/{DECOY}",
    "a\0b.jpg",
    "\ud800.jpg",
    "é" * 300 + ".jpg",
    "a/" * 3000,
    ".",
    "..",
    "%2e%2e/outside.png",
]
_NUMBERS = [math.nan, math.inf, -math.inf, 1e308, -1e308, 10**400, -(2**63), 2**53 + 1, 1e-320]
_NUMBERS += [-1, 0, 0.5, 1, 7, 1e6, 3e6, -5.5]
_OTHERS = [None, True, False, "", " ", "x", "1e5", "12", [], {}, [[]], [None], [{}], {"a": 1}]
_OTHERS += [[math.nan] * 8, ["1", "2", "3", "4", "5", "6"], [[1, 2], [3]], [[[[[1]]]]], [True] * 6]
_ENCODINGS = ["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp1252", "utf-7"]


@st.composite
def json_files(draw, content) -> bytes:
    """The content as JSON, with one to six mutations, maybe cut or in an odd encoding."""
    rng = random.Random(draw(st.integers(0, 2**32 - 1)))
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 6)):
        content = _mutate(content, rng)
    return _encode(json.dumps(content, ensure_ascii=rng.random() < 0.5), rng)


@st.composite
def text_files(draw, text) -> bytes:
    """A CSV, XML or plain text with numbers, words, lines and names spoilt, maybe cut."""
    rng = random.Random(draw(st.integers(0, 2**32 - 1)))
    for _ in range(rng.randint(1, 6)):
        text = rng.choice([_spoil_token, _spoil_token, _spoil_lines])(text, rng)
    return _encode(text, rng)


@st.composite
def byte_files(draw, content) -> bytes:
    """A binary file, such as a PNG of labels, with bytes exchanged, doubled or cut off."""
    rng = random.Random(draw(st.integers(0, 2**32 - 1)))
    return _spoil_bytes(bytes(content), rng)


def outcome(read, images: Path | None = None) -> Draft | None:
    """Runs a reader: the draft, checked, or None for a UserError; all else fails the test.

    images: the folder that no picture may lie outside of; the draft's own by default.
    """
    try:
        draft = read()
    except UserError as error:
        assert len(str(error)) > 10
        return None
    check(draft, images)
    return draft


def check(draft: Draft, images: Path | None = None) -> None:
    """Asserts what holds for every draft, whatever was read."""
    root = (images or draft.images).resolve()
    pictures: dict[str, Picture] = {}
    for p in draft.pictures:
        assert p.name not in pictures and "\\" not in p.name
        pictures[p.name] = p
        path = (draft.images / p.name).resolve()
        assert path.is_file() and root in path.parents, f"{p.name} is outside {root}"
        assert p.height > 0 and p.width > 0
    assert len(set(draft.classes)) == len(draft.classes)
    assert all(isinstance(name, str) and name for name in draft.classes)
    for item in draft.items:
        picture = pictures[item.picture]
        assert item.label in draft.classes
        if isinstance(item.segmentation, dict):
            assert item.segmentation["size"] == [picture.height, picture.width]
            assert isinstance(item.segmentation["counts"], str)
        else:
            assert item.segmentation
            for polygon in item.segmentation:
                xy = np.array(polygon, np.float64).reshape(-1, 2)
                assert len(xy) >= 3 and np.isfinite(xy).all()
                assert (xy >= 0).all() and (xy <= [picture.width, picture.height]).all()
    for finding in draft.findings:
        assert finding.grade in ("error", "warning", "note")
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", finding.code) and finding.message and finding.file
    try:
        coco = to_coco.finish(draft)
    except UserError:
        return
    json.dumps(coco, allow_nan=False)
    for a in coco["annotations"]:
        assert a["area"] > 0 and a["bbox"][2] > 0 and a["bbox"][3] > 0


def convert(source: Path, kind: str, sandbox: Path) -> None:
    """Converts into sandbox/out, or is refused; nothing in the sandbox may change but that."""
    before = snapshot(sandbox)
    out = sandbox / "out"
    output, extract = out / "coco.json", kind == "labelme"
    with contextlib.suppress(UserError):
        conversion.convert([source], output, kind=kind, extract_images=extract)
        assert json.loads(output.read_bytes())["annotations"]
    after = snapshot(sandbox)
    changed = {p for p in before | after if before.get(p) != after.get(p)}
    assert all(Path(p).is_relative_to(out) for p in changed), changed
    shutil.rmtree(out, ignore_errors=True)


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files below a folder, to see that none was changed or added."""
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _mutate(content, rng):
    """Changes one place, chosen by a walk from the root."""
    if not isinstance(content, dict | list) or not content or rng.random() < 0.03:
        return _other(content, rng)
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = rng.choice(keys)
    if rng.random() < 0.7:
        content[key] = _mutate(content[key], rng)
        return content
    action = rng.choice(("drop", "change", "everywhere", "rename", "double", "wrap"))
    if action == "drop":
        del content[key]
    elif action == "change":
        content[key] = _other(content[key], rng)
    elif action == "everywhere" and isinstance(content, dict):
        value = _other(content[key], rng)
        _replace_all(content, key, value)
    elif action == "rename" and isinstance(content, dict):
        content[f"{key}_x"] = content.pop(key)
    elif action == "double" and isinstance(content, list):
        content.append(copy.deepcopy(content[key]))
    else:
        content[key] = [content[key]]
    return content


def _replace_all(content, key, value) -> None:
    if isinstance(content, dict):
        if key in content:
            content[key] = value
        content = list(content.values())
    for inner in content if isinstance(content, list) else ():
        _replace_all(inner, key, value)


def _other(value, rng):
    """Something else in the place of a value, often of the same type."""
    if isinstance(value, str) and rng.random() < 0.6:
        return rng.choice(_NAMES)
    if isinstance(value, int | float) and rng.random() < 0.7:
        return rng.choice(_NUMBERS)
    return copy.deepcopy(rng.choice(_OTHERS + _NUMBERS + _NAMES))


def _spoil_token(text: str, rng) -> str:
    tokens = list(re.finditer(r"[-+.\w]+", text))
    if not tokens:
        return text
    token = rng.choice(tokens)
    new = rng.choice([*map(str, _NUMBERS), *_NAMES, "", "nan", "x", "<", '"', "&", "1_0", "٣"])
    return text[: token.start()] + new + text[token.end() :]


def _spoil_lines(text: str, rng) -> str:
    lines = text.splitlines(keepends=True) or [""]
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    action = rng.choice(("drop", "double", "swap", "join", "blank"))
    if action == "drop":
        del lines[i]
    elif action == "double":
        lines.insert(j, lines[i])
    elif action == "swap":
        lines[i], lines[j] = lines[j], lines[i]
    elif action == "join":
        lines[i] = lines[i].rstrip("\r\n")
    else:
        lines.insert(i, rng.choice(["\n", " \t\n", "\0\n", ",,,,,,\n", "#\n"]))
    return "".join(lines)


def _spoil_bytes(content: bytes, rng) -> bytes:
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content) + 1)
        action = rng.choice(("cut", "exchange", "insert", "double", "zero"))
        if action == "cut":
            content = content[:place]
        elif action == "exchange":
            content = content[:place] + rng.randbytes(1) + content[place + 1 :]
        elif action == "insert":
            content = content[:place] + rng.randbytes(rng.randint(1, 8)) + content[place:]
        elif action == "double":
            content = content[:place] + content[max(0, place - 16) :]
        else:
            content = content[:place] + bytes(4) + content[place + 4 :]
    return content


def _encode(text: str, rng) -> bytes:
    encoding = rng.choice(_ENCODINGS)
    try:
        content = text.encode(encoding)
    except UnicodeEncodeError:
        content = text.encode("utf-8", "surrogatepass")
    return _spoil_bytes(content, rng) if rng.random() < 0.2 else content
