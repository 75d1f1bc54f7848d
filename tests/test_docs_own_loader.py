"""The Python and the fields of docs/your_data.md about own loaders and augmentation, run."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import common
from maskrcnn_jax import config as config_lib
from maskrcnn_jax.datasets import load_data

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your_data.md").read_text()
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    shlex.split(block.replace("\\\n", " "))
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
]
SMALL = ("data.short=64", "data.long=96", "data.short_test=64", "data.long_test=96")


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The page's folder, with two objects in each photograph."""
    rng = np.random.default_rng(0)
    for split, number in {"train": 4, "val": 2}.items():
        folder = tmp_path / "parts" / split
        folder.mkdir(parents=True)
        for i in range(number):
            pixels = rng.integers(0, 256, (60, 80, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.jpg")
            masks = np.zeros((60, 80, 2), bool)
            masks[5 : 25 + i, 5:30, 0] = masks[30:50, 20 : 60 + i, 1] = True
            np.savez(folder / f"{i}.npz", masks=masks, classes=[1, 2])
    (tmp_path / "my_parts.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def _config(words, folder, *more):
    fields = [w.removeprefix("--config.") for w in words if w.startswith("--config.")]
    config = config_lib.load(
        ROOT / words[words.index("--config") + 1],
        [*fields, f"data.cache_dir={folder / 'cache'}", *SMALL, *more],
        schema=common.get_config(),
    )
    config_lib.validate(config)
    return config


def _batches(config, steps=2):
    from maskrcnn_jax.data.builder import prepare
    from maskrcnn_jax.data.pipeline import make_batches

    train, val = load_data(config, train=True)
    assert len(train.image_ids) == 4 and len(val.image_ids) == 2
    assert train.names == ("bolt", "nut")
    records = prepare(train, config.data.cache_dir, progress=False)
    return list(make_batches(records, config.data, 2, 0, num_steps=steps))


def test_the_loader_of_the_page(parts):
    batches = _batches(_config(COMMANDS[0], parts))
    assert all((batch.gt_valid.sum(1) == 2).all() for batch in batches)


def test_the_fields_of_the_table(parts):
    table = re.search(r"\| your pictures.*?\n\n", PAGE, re.DOTALL).group()
    fields = [f"data.{field}" for field in re.findall(r"`([a-z0-9_]+=[^`]+)`", table)]
    assert len(fields) == 8
    batches = _batches(_config(COMMANDS[0], parts, *fields), steps=4)
    assert any(batch.gt_valid.any() for batch in batches)


def test_the_list_of_the_page(parts, monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    pytest.importorskip("albumentations")
    from maskrcnn_jax.data import user_transforms

    config = _config(COMMANDS[1], parts)
    assert not user_transforms.build(config.data.albumentations).pixels_only
