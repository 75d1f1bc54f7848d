"""The usual input of PyTorch detectors: COCO pictures through a DataLoader with worker processes.

As torchvision's detection references: Pillow decodes, pycocotools rasterises every object at full
size, image and masks are resized and flipped. No import of JAX: workers are spawned.
"""

import json
import random
from pathlib import Path
from typing import Any

STAGES = ("decoded", "with masks", "resized", "flipped and padded")


class CocoPictures:
    """One example an index: image uint8 [3, h, w], boxes [n, 4], labels [n], masks [n, h, w].

    stage: how far to go, of STAGES.
    """

    def __init__(
        self, annotations: str, images: str, short: int, long: int, stage: str = STAGES[-1]
    ):
        content = json.loads(Path(annotations).read_text())
        self._pictures = sorted(content["images"], key=lambda picture: picture["id"])
        self._objects: dict[int, list] = {picture["id"]: [] for picture in self._pictures}
        for row in content["annotations"]:
            if not row.get("iscrowd"):
                self._objects[row["image_id"]].append(row)
        self._folder, self._short, self._long = Path(images), short, long
        self._last = STAGES.index(stage)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import numpy as np
        import torch
        from PIL import Image
        from torchvision.transforms.v2 import functional

        picture = self._pictures[index]
        with Image.open(self._folder / picture["file_name"]) as file:
            pixels = np.array(file.convert("RGB"))
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        found = {"image": image}
        if self._last == 0:
            return found
        rows = self._objects[picture["id"]]
        found |= self._targets(rows, picture)
        if self._last == 1:
            return found
        height, width = image.shape[1:]
        scale = min(self._short / min(height, width), self._long / max(height, width))
        size = [int(height * scale), int(width * scale)]
        found["image"] = functional.resize(image, size, antialias=True)
        nearest = functional.InterpolationMode.NEAREST
        found["masks"] = functional.resize(found["masks"], size, nearest)
        found["boxes"] = found["boxes"] * scale
        if self._last > 2 and random.random() < 0.5:
            found["image"] = found["image"].flip(-1)
            found["masks"] = found["masks"].flip(-1)
            x0, y0, x1, y1 = found["boxes"].unbind(1)
            found["boxes"] = torch.stack([size[1] - x1, y0, size[1] - x0, y1], 1)
        return found

    def _targets(self, rows: list, picture: dict) -> dict[str, Any]:
        import numpy as np
        import torch
        from pycocotools import mask as coco_mask

        height, width = picture["height"], picture["width"]
        masks = np.zeros((len(rows), height, width), np.uint8)
        for mask, row in zip(masks, rows, strict=True):
            outline = row["segmentation"]
            if isinstance(outline, list):
                rle = coco_mask.merge(coco_mask.frPyObjects(outline, height, width))
            elif isinstance(outline["counts"], list):
                rle = coco_mask.frPyObjects(outline, height, width)
            else:
                rle = outline
            mask[:] = coco_mask.decode(rle)
        boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([row["category_id"] for row in rows])
        return {
            "boxes": torch.from_numpy(boxes),
            "labels": labels,
            "masks": torch.from_numpy(masks),
        }


def pad_and_stack(examples: list[dict]) -> tuple[Any, list[dict]]:
    """A batch as torchvision's models make it: images in one tensor, targets in a list."""
    import torch

    sides = torch.tensor([example["image"].shape[1:] for example in examples]).amax(0)
    height, width = (-(-int(side) // 32) * 32 for side in sides)
    images = torch.zeros((len(examples), 3, height, width), dtype=torch.uint8)
    for slot, example in zip(images, examples, strict=True):
        image = example.pop("image")
        slot[:, : image.shape[1], : image.shape[2]] = image
    return images, examples


def one_thread(worker: int) -> None:
    """Start of a worker: the workers are what runs side by side."""
    import torch

    torch.set_num_threads(1)
    random.seed(worker)
