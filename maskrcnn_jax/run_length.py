"""How long a run is: train.epochs passes over its training images, in steps."""

import math

import numpy as np
from ml_collections import ConfigDict

from maskrcnn_jax.data.coco import CocoData

# What happens "every n steps" should happen in a short run, too: n is at most a tenth of it.
BOUNDED = (
    ("optim", "warmup_steps"),
    ("eval", "every"),
    ("train", "checkpoint_every"),
)


def derive(config: ConfigDict, data: CocoData) -> list[str]:
    """Puts the steps that train.epochs means into the config; returns lines that tell them.

    num_steps becomes epochs x images / batch_size, and at least min_steps; BOUNDED fields above a
    tenth of it become that. Nothing happens where train.epochs is 0. The same data give the same
    numbers, so that a run that goes on stays as long as it was.
    """
    t = config.train
    if not t.epochs:
        return []
    images = count_images(config, data)
    steps = max(math.ceil(t.epochs * images / t.batch_size), t.min_steps, 1)
    floor = f", train.min_steps {t.min_steps}" if steps == t.min_steps else ""
    lines = [
        f"train.epochs {t.epochs:g} x {images} images / batch {t.batch_size}{floor}: {steps} steps"
    ]
    tenth = math.ceil(steps / 10)
    wanted = {("train", "num_steps"): steps}
    wanted |= {(group, field): min(config[group][field], tenth) for group, field in BOUNDED}
    for (group, field), value in wanted.items():
        before = config[group][field]
        if value != before:
            lines.append(f"config.{group}.{field}: {before} -> {value}, by train.epochs")
            config[group][field] = value
    return lines


def count_images(config: ConfigDict, data: CocoData) -> int:
    """The images that training draws from, by data.limit and data.filter_empty."""
    rows = np.arange(len(data.image_ids))[: config.data.limit or None]
    if config.data.filter_empty:
        rows = np.intersect1d(rows, data.inst_image[~data.inst_crowd])
    return len(rows)
