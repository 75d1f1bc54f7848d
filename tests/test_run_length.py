"""train.epochs: the steps of a run from the number of its training images."""

import numpy as np
import pytest
import tiny_coco

from configs import common
from maskrcnn_jax import run_length
from maskrcnn_jax.data.coco import load_coco


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven images: four with an object or two, two without any, one with a crowd alone."""
    folder = tmp_path_factory.mktemp("data")
    crowd = tiny_coco.rle_annotation(9, 7, 3, np.eye(16, dtype=bool), True, iscrowd=1)
    polygon = [tiny_coco.rectangle(1, 1, 9, 9)]
    objects = [
        tiny_coco.annotation(i, image, 3, polygon) for i, image in enumerate((1, 1, 3, 4, 6))
    ]
    sizes = dict.fromkeys(range(1, 8), (16, 16))
    return load_coco(*tiny_coco.write(folder, sizes, [*objects, crowd]))


def settings(**fields):
    config = common.get_config()
    for name, value in fields.items():
        group, _, field = name.partition("_")
        config[group][field] = value
    config.lock()
    return config


@pytest.mark.parametrize(
    ("limit", "filter_empty", "expected"),
    [(0, False, 7), (0, True, 4), (5, False, 5), (5, True, 3)],
)
def test_images_that_are_drawn_from(data, limit, filter_empty, expected):
    config = settings(data_limit=limit, data_filter_empty=filter_empty)
    assert run_length.count_images(config, data) == expected


def test_epochs_set_the_steps_and_bound_what_happens_every_so_many(data):
    config = settings(train_epochs=30.0, train_batch_size=4, eval_every=1000)
    lines = run_length.derive(config, data)
    t = config.train
    # 30 x 7 / 4 = 52.5 steps; a tenth is 5.3.
    assert t.num_steps == 53 and t.checkpoint_every == config.eval.every == 6
    assert config.optim.warmup_steps == 6 and t.epochs == 30
    assert lines == [
        "train.epochs 30 x 7 images / batch 4: 53 steps",
        "config.train.num_steps: 90000 -> 53, by train.epochs",
        "config.optim.warmup_steps: 1000 -> 6, by train.epochs",
        "config.eval.every: 1000 -> 6, by train.epochs",
        "config.train.checkpoint_every: 5000 -> 6, by train.epochs",
    ]
    before = config.to_dict()
    assert len(run_length.derive(config, data)) == 1  # as a run that goes on
    assert config.to_dict() == before


def test_the_floor_and_fields_that_are_small_already(data):
    config = settings(train_epochs=0.5, train_min_steps=500, optim_warmup_steps=20)
    lines = run_length.derive(config, data)
    assert lines[0] == "train.epochs 0.5 x 7 images / batch 16, train.min_steps 500: 500 steps"
    assert config.train.num_steps == 500 and config.train.checkpoint_every == 50
    assert config.optim.warmup_steps == 20 and config.eval.every == 0  # 0: only at the end


def test_without_epochs_nothing_changes(data):
    config = settings(train_min_steps=500)
    assert run_length.derive(config, data) == []
    assert config.to_dict() == settings(train_min_steps=500).to_dict()
