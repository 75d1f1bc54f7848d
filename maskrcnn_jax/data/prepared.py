"""Where the records of a data set lie, known without TensorFlow."""

import hashlib
import json
import os
from pathlib import Path

from maskrcnn_jax.data.coco import CocoData, OnBad

VERSION = "1.0.1"  # of the record layout; part of the content hash


def folder(data: CocoData, cache_dir: str | Path, mask_side: int, on_bad_image: OnBad) -> Path:
    """The folder of these records in the cache; it exists when they are complete.

    Its name has a hash of all that goes into them; of a picture its path, size and time.
    """
    digest = hashlib.sha256(data.annotations.read_bytes())
    for path in data.file_paths:
        stat = os.stat(path)
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    keypoints = data.inst_keypoints.shape[1]
    layout = [VERSION, mask_side, on_bad_image, *([keypoints] if keypoints else [])]
    digest.update(json.dumps(layout).encode())
    name = f"{data.annotations.stem}-{digest.hexdigest()[:16]}"
    return Path(cache_dir).expanduser() / name
