"""A checkpoint of the smallest Mask R-CNN, random and untrained, as a run would leave it."""

import json
from pathlib import Path

import numpy as np
import tiny_model
from PIL import Image

from maskrcnn_jax import checkpoint
from maskrcnn_jax.weights import importer

NAMES = ["cat", "dog", "owl", "big fox", "a/b"]
CATEGORY_IDS = [3, 7, 90, 4, 1]


def make(
    workdir: Path,
    size: tuple[int, int] = (64, 96),
    rules: tuple[str, str] = ("pillow", "detectron2"),
    is_noise: bool = False,
    **fields,
) -> Path:
    """Saves the checkpoint of step 0 in a new workdir.

    size: short_test and long_test. rules: of resizing and pasting. is_noise: variables of the right
    shapes for the price of no compilation, to look at and not to run. Keyword arguments are model
    fields.
    """
    config = tiny_model.config(**fields)
    config.data.short_test, config.data.long_test = size
    config.data.resize_rule, config.eval.paste_rule = rules
    if is_noise:
        variables = noise(config.model)
    else:
        variables = tiny_model.variables(tiny_model.model(**fields))
    meta = {
        "step": 0,
        "score": None,
        "window": [],
        "classes": {"names": NAMES, "category_ids": CATEGORY_IDS},
        "config": json.loads(json.dumps(config.to_dict())),
    }
    store = checkpoint.Checkpoints(workdir, 1)
    store.save(0, variables, meta)
    store.close()
    return workdir


def noise(model_config) -> dict:
    """Normal numbers around 1 in place of a model's variables."""
    shapes = importer.model_shapes(model_config.to_dict(), tiny_model.CLASSES)
    rng = np.random.default_rng(0)
    flat = {path: np.float32(1 + rng.standard_normal(shape)) for path, shape in shapes.items()}
    return importer.unflatten(flat)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random picture, so that resizing and JPEG keep what is in it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
