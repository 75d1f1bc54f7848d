"""Well-known pretrained weights by name, fetched once into a cache.

The downloader is our own, because what users miss on a slow line is resuming, which pooch and its
like do not offer: a cut download goes on where it stopped.
"""

import difflib
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from maskrcnn_jax.errors import UserError

_D2 = "https://dl.fbaipublicfiles.com/detectron2"
_TORCH = "https://download.pytorch.org/models"
_MMDET = "https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn"

# Name -> address.
ZOO = {
    f"detectron2/{name}": f"{_D2}/COCO-InstanceSegmentation/{name}/{rest}"
    for name, rest in {
        "mask_rcnn_R_50_FPN_1x": "137260431/model_final_a54504.pkl",
        "mask_rcnn_R_50_FPN_3x": "137849600/model_final_f10217.pkl",
        "mask_rcnn_R_50_C4_1x": "137259246/model_final_9243eb.pkl",
        "mask_rcnn_R_50_C4_3x": "137849525/model_final_4ce675.pkl",
        "mask_rcnn_R_101_C4_3x": "138363239/model_final_a2914c.pkl",
        "mask_rcnn_R_50_DC5_1x": "137260150/model_final_4f86c3.pkl",
        "mask_rcnn_R_50_DC5_3x": "137849551/model_final_84107b.pkl",
        "mask_rcnn_R_101_DC5_3x": "138363294/model_final_0464b7.pkl",
        "mask_rcnn_R_101_FPN_3x": "138205316/model_final_a3ec72.pkl",
        "mask_rcnn_X_101_32x8d_FPN_3x": "139653917/model_final_2d9806.pkl",
    }.items()
}
ZOO |= {
    f"detectron2/{name}": f"{_D2}/COCO-Keypoints/{name}/{rest}"
    for name, rest in {
        "keypoint_rcnn_R_50_FPN_1x": "137261548/model_final_04e291.pkl",
        "keypoint_rcnn_R_50_FPN_3x": "137849621/model_final_a6e10b.pkl",
        "keypoint_rcnn_R_101_FPN_3x": "138363331/model_final_997cc7.pkl",
        "keypoint_rcnn_X_101_32x8d_FPN_3x": "139686956/model_final_5ad38f.pkl",
    }.items()
}
ZOO |= {
    "detectron2/R-50": f"{_D2}/ImageNetPretrained/MSRA/R-50.pkl",
    "detectron2/R-101": f"{_D2}/ImageNetPretrained/MSRA/R-101.pkl",
    "detectron2/X-101-32x8d": f"{_D2}/ImageNetPretrained/FAIR/X-101-32x8d.pkl",
    "torchvision/maskrcnn_resnet50_fpn": f"{_TORCH}/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
    "torchvision/maskrcnn_resnet50_fpn_v2": f"{_TORCH}/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
    "torchvision/resnet50": f"{_TORCH}/resnet50-0676ba61.pth",
    "torchvision/resnet101": f"{_TORCH}/resnet101-63fe2227.pth",
    "mmdetection/mask_rcnn_r50_fpn_1x": (
        f"{_MMDET}/mask_rcnn_r50_fpn_1x_coco/mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth"
    ),
    "mmdetection/mask_rcnn_r101_fpn_1x": (
        f"{_MMDET}/mask_rcnn_r101_fpn_1x_coco/mask_rcnn_r101_fpn_1x_coco_20200204-1efe0ed5.pth"
    ),
}
ZOO |= {
    f"matterport/{name}": f"https://github.com/matterport/Mask_RCNN/releases/download/{rest}"
    for name, rest in {
        "coco": "v2.0/mask_rcnn_coco.h5",
        "balloon": "v2.1/mask_rcnn_balloon.h5",
    }.items()
}

# SHA-256 of what an address gives, where it is known from more than one source.
SHA256 = {
    "detectron2/mask_rcnn_R_50_FPN_3x": (
        "9a737e290372f1f70994ebcbd89d8004dbb3ae30a605fd915a190fa4a782dd66"
    ),
    "torchvision/maskrcnn_resnet50_fpn_v2": (
        "73cbd0190fcbe3ba339921fbce2c3a0b6bb9126c9a133c85e43a2a8e060a109e"
    ),
    "torchvision/resnet50": "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
}


def fetch(name: str, folder: Path) -> Path:
    """The file of a name of ZOO, downloaded into `folder` unless it is there already.

    A cut download goes on at the next call. The SHA-256 is checked where it is known: of SHA256,
    and by its first digits, which torchvision's and MMDetection's file names end in.

    Raises:
      UserError: unknown name (the nearest are named), no connection, a file of another content.
    """
    if name not in ZOO:
        near = difflib.get_close_matches(name, ZOO, n=3, cutoff=0.0)
        raise UserError(f"{name!r}: no such weights; near are {', '.join(near)}")
    url = ZOO[name]
    path = folder / name.replace("/", "-") / url.rsplit("/", 1)[1]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        download(url, path, SHA256.get(name, ""))
    return path


def download(url: str, path: Path, sha256: str = "") -> None:
    """Fetches an address into a file, through `path` + ".part", going on where that ends.

    It goes on only while the server's file is the same, by its ETag or date; else from the start.
    sha256: the digits that the file's must begin with; "": those in its name, if any.

    Raises UserError when it cannot be completed; what has come stays for the next attempt.
    """
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "maskrcnn_jax"})
    version = part.with_name(f"{part.name}.version")
    if have:
        request.add_header("Range", f"bytes={have}-")
        if version.exists():
            request.add_header("If-Range", version.read_text())
    by_hand = f"fetch {url} by other means and put it at {path}, or try again to go on"
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            resumed = answer.status == http.client.PARTIAL_CONTENT
            have = have if resumed else 0
            _keep(version, answer.headers)
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length else None
            have += _copy(answer, part, "ab" if resumed else "wb", have, total, path.name)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise UserError(f"{url}: the server answers {error.code}; {by_hand}") from error
        total = have  # all of it had come before
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{url}: the download broke off ({error}); {by_hand}") from error
    if total is not None and have != total:
        raise UserError(f"{url}: the download broke off at {have} of {total} bytes; {by_hand}")
    version.unlink(missing_ok=True)
    _check(part, sha256 or _digits(path.name), url)
    os.replace(part, path)


def _keep(version: Path, headers: http.client.HTTPMessage) -> None:
    """Notes which version of the file is coming: a strong ETag, else the date."""
    etag = headers.get("ETag", "")
    known = headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag
    if known:
        version.write_text(known)
    else:
        version.unlink(missing_ok=True)


def _copy(
    answer: http.client.HTTPResponse, part: Path, mode: str, have: int, total: int | None, name: str
) -> int:
    """Appends what comes to the file; returns its length."""
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    came = 0
    with part.open(mode) as file, Progress(*columns, transient=True) as bar:
        task = bar.add_task(name, total=total, completed=have)
        while block := answer.read1(2**20):
            file.write(block)
            came += len(block)
            bar.advance(task, len(block))
    return came


def _digits(name: str) -> str:
    found = re.search(r"-([0-9a-f]{8})\.pth$", name)
    return found[1] if found else ""


def _check(part: Path, digits: str, url: str) -> None:
    if not digits:
        return
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(digits):
        part.unlink()
        raise UserError(
            f"{url}: what came is not that file (its SHA-256 begins with {found[:8]}, not "
            f"{digits[:8]}); it was removed, try again"
        )
