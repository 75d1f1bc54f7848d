"""What was found in one picture, and the forms it is wanted in."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from maskrcnn_jax import conventions, postprocess, preprocess, results, visualize
from maskrcnn_jax.errors import UserError

HW = tuple[int, int]


@dataclass(frozen=True)
class Prediction:
    """The n objects of a picture, best first. Masks are pasted when they are first asked for."""

    boxes: Float[np.ndarray, "n 4"]  # x0, y0, x1, y1 in pixels of the picture, continuous
    scores: Float[np.ndarray, " n"]
    classes: Int[np.ndarray, " n"]  # indices into class_names
    # Probabilities in the frame of the box; None of a model without masks.
    box_masks: Float[np.ndarray, "n S S"] | None
    image_hw: HW  # height and width of the picture
    class_names: tuple[str, ...]  # of all classes of the model
    category_ids: tuple[int, ...]  # of all classes, in the data set that the model learnt
    paste_rule: str  # of conventions.PASTE_RULES
    mask_thresh: float
    keypoints: Float[np.ndarray, "n J 3"]  # x, y (as of boxes), score; J is 0 without keypoints

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.class_names[i] for i in self.classes]

    @cached_property
    def rles(self) -> list[dict] | None:
        """The masks as COCO's compressed RLE, `{"size": [H, W], "counts": str}`; or None."""
        if self.box_masks is None:
            return None
        return [
            conventions.mask_to_rle(mask, box, self.image_hw, self.paste_rule, self.mask_thresh)
            for mask, box in zip(self.box_masks, self.boxes, strict=True)
        ]

    @property
    def masks(self) -> Bool[np.ndarray, "n H W"] | None:
        """The masks of the whole picture, or None; made anew at each call, as they are large."""
        if self.rles is None:
            return None
        masks = np.zeros((len(self), *self.image_hw), bool)
        for i, rle in enumerate(self.rles):
            masks[i] = postprocess.rle_to_mask(rle)
        return masks

    def to_coco(
        self, image_id: Any, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """Rows of COCO's results JSON. category_ids: of all classes; by default the model's."""
        ids = self.category_ids if category_ids is None else category_ids
        return results.to_coco_results(
            self.boxes, self.scores, self.classes, self.rles, image_id, ids, self.keypoints
        )

    def draw(self, image: Any, min_side: int = 0) -> UInt8[np.ndarray, "h w 3"]:
        """The picture, RGB, with masks, boxes, labels and keypoints.

        image: the picture that was predicted, in any form that a predictor takes. min_side: as of
        `visualize.draw`.
        """
        pixels = preprocess.read_image(image)
        if pixels.shape[:2] != self.image_hw:
            raise UserError(
                f"draw: the prediction is of a picture of {self.image_hw} (height, width), this "
                f"one has {pixels.shape[:2]}; give the same picture"
            )
        # One mask at a time: a hundred of a large picture would take gigabytes.
        masks = _Decoded(self.rles or [])
        return visualize.draw(
            pixels,
            self.boxes,
            self.classes,
            self.scores,
            masks,
            self.class_names,
            min_side,
            keypoints=self.keypoints,
        )


class _Decoded(Sequence):
    """Masks that are decoded when they are looked at."""

    def __init__(self, rles: list[dict]):
        self._rles = rles

    def __len__(self) -> int:
        return len(self._rles)

    def __getitem__(self, i: Any) -> Bool[np.ndarray, "H W"]:
        return postprocess.rle_to_mask(self._rles[i])
