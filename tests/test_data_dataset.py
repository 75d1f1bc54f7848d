"""Data sets that a program builds: what the trainer reads of them is what they returned."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from configs.common import get_config
from maskrcnn_jax import config as config_lib
from maskrcnn_jax import own_data
from maskrcnn_jax.data import Dataset, register
from maskrcnn_jax.data.coco import instance_mask
from maskrcnn_jax.datasets import load_data
from maskrcnn_jax.errors import UserError

ROOT = Path(__file__).parents[1]


class Polygons(Dataset):
    """As Matterport's users write them: polygons in the info, class ids by name."""

    def __init__(self, folder, sizes=((40, 60), (30, 50), (20, 20))):
        super().__init__()
        self.add_class("toys", 7, "ball")
        self.add_class("toys", 3, "kite")
        self.add_class("toys", 7, "ball")  # twice is once
        for n, (height, width) in enumerate(sizes):
            path = folder / "sub" / f"{n}.png" if n else folder / "0.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(n).integers(0, 256, (height, width, 3))
            Image.fromarray(noise.astype(np.uint8)).save(path)
            corners = [[(2, 2), (20, 4), (10, 18)], [(12, 6), (18, 6), (18, 15), (12, 15)]][: 2 - n]
            names = ["kite", "ball"][: 2 - n]
            self.add_image(
                "toys", f"{n}.png", path, height=height, width=width, corners=corners, names=names
            )

    def load_mask(self, image_id):
        info = self.image_info[image_id]
        if not info["corners"]:
            return super().load_mask(image_id)
        masks = np.zeros((info["height"], info["width"], len(info["corners"])), np.uint8)
        for n, polygon in enumerate(info["corners"]):
            drawn = Image.new("1", (info["width"], info["height"]))
            ImageDraw.Draw(drawn).polygon(polygon, fill=1)
            masks[:, :, n] = np.asarray(drawn)
        return masks, np.array([self.class_names.index(name) for name in info["names"]])


def test_what_is_read_is_what_was_returned(tmp_path):
    made = Polygons(tmp_path / "photos")
    data = made.to_coco(tmp_path / "out")
    assert data.annotations == tmp_path / "out" / "annotations.json"
    assert not (tmp_path / "out" / "images").exists()
    assert data.names == ("kite", "ball") and data.category_ids == (3, 7)
    np.testing.assert_array_equal(data.image_ids, [0, 1, 2])
    np.testing.assert_array_equal(data.sizes, [(40, 60), (30, 50), (20, 20)])
    assert [Path(p).relative_to(tmp_path / "photos").as_posix() for p in data.file_paths] == [
        *("0.png", "sub/1.png", "sub/2.png")
    ]
    assert len(data.inst_id) == 3 and not data.inst_crowd.any()
    i = 0
    for image_id in made.image_ids:
        masks, class_ids = made.load_mask(image_id)
        for n, class_id in enumerate(class_ids):
            np.testing.assert_array_equal(instance_mask(data, i), masks[:, :, n] > 0)
            assert data.names[data.inst_class[i]] == made.class_names[class_id]
            ys, xs = np.nonzero(masks[:, :, n])
            box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            np.testing.assert_array_equal(data.inst_box[i], box)
            assert data.inst_area[i] == (masks[:, :, n] > 0).sum()
            i += 1
    assert made.map_source_class_id("toys.3") == 2
    assert (made.num_classes, made.num_images) == (3, 3)


def test_a_second_call_leaves_the_files_alone(tmp_path):
    Painted().to_coco(tmp_path / "set.json")
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    for path in files:
        os.utime(path, (1, 1))
    Painted().to_coco(tmp_path / "set.json")
    assert len(files) == 3 and all(p.stat().st_mtime == 1 for p in files)


class Painted(Dataset):
    """Pictures that are no files: load_image is overridden. Gray, and with alpha."""

    def __init__(self):
        super().__init__()
        self.add_class("a", "x", "square")
        self.add_class("b", "x", "bar")
        self.add_image("a", 0, None)
        self.add_image("b", 0, None)

    def load_image(self, image_id):
        shape = ((30, 40), (20, 50, 4))[image_id]
        return np.random.default_rng(image_id).integers(0, 256, shape).astype(np.uint8)

    def load_mask(self, image_id):
        masks = np.zeros((*self.load_image(image_id).shape[:2], 2), bool)
        masks[3:9, 5:15, 0] = masks[10:, :, 1] = True
        return masks, np.array([1 + image_id, -2])  # negative: a crowd


def test_made_pictures_are_written_exactly(tmp_path):
    data = Painted().to_coco(tmp_path / "set.json")
    assert data.names == ("square", "bar") and data.category_ids == (1, 2)
    assert [Path(p).parent for p in data.file_paths] == [tmp_path / "set_images"] * 2
    gray, alpha = (np.asarray(Image.open(p)) for p in data.file_paths)
    np.testing.assert_array_equal(gray, np.stack([Painted().load_image(0)] * 3, -1))
    np.testing.assert_array_equal(alpha, Painted().load_image(1)[..., :3])
    np.testing.assert_array_equal(data.inst_crowd, [False, True] * 2)
    np.testing.assert_array_equal(data.inst_class, [0, 1, 1, 1])


def test_masks_of_turned_photographs_fit_either_way(tmp_path):
    photo = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(tmp_path / "a.jpg", exif=exif)

    class Turned(Dataset):
        size = (30, 20)

        def load_mask(self, image_id):
            return np.ones((*self.size, 1), bool), np.array([1])

    def sizes(size):
        made = Turned()
        made.size = size
        made.add_class("a", 1, "b")
        made.add_image("a", 0, tmp_path / "a.jpg")
        return made.to_coco(tmp_path / "out").sizes.tolist()

    assert sizes((30, 20)) == [[30, 20]] and sizes((20, 30)) == [[20, 30]]
    with pytest.raises(UserError, match="masks are 21 high and 30 wide, the picture 30 and 20"):
        sizes((21, 30))


def _with(masks, class_ids, tmp_path, add=True, raises=None, **more):
    class Mine(Dataset):
        def load_mask(self, image_id):
            if raises is not None:
                raise raises
            return masks, class_ids

    made = Mine()
    if add:
        made.add_class("a", 1, "b")
        path = tmp_path / "p.png"
        Image.new("RGB", (6, 5)).save(path)
        made.add_image("a", 0, more.get("path", path))
    return made.to_coco(tmp_path / "out", more.get("on_bad_image", "error"))


ONE = np.ones((5, 6, 1), bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(add=False), "Mine: has no pictures; call add_class"),
        (dict(masks=ONE[..., 0]), r"\(5, 6\); return \[H, W, N\]"),
        (dict(class_ids=np.array([1, 1])), "1 masks, but class ids.*one whole number per mask"),
        (dict(class_ids=np.array([1.0])), "float64"),
        (dict(class_ids=np.array([0])), "class id 0; they go from 1 .'b'. to 1"),
        (dict(class_ids=np.array([2])), "map_source_class_id"),
        (dict(masks=ONE & False), "mask 0 of load_mask has no pixel"),
        (dict(masks=np.ones((6, 5, 1), bool)), "6 high and 5 wide, the picture 5 and 6"),
        (dict(path=None), "picture 0 .0. has no path"),
        (dict(path="nowhere/x.jpg"), "cannot be read"),
        (
            dict(raises=KeyError("polygons")),
            r"load_mask\(0\).*KeyError.*test_data_dataset.py, line",
        ),
    ],
)
def test_mistakes_name_the_picture_and_the_remedy(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        _with(**({"masks": ONE, "class_ids": np.array([1])} | arguments), tmp_path=tmp_path)


def test_bad_pictures_can_be_skipped(tmp_path, caplog):
    class Mixed(Polygons):
        def load_mask(self, image_id):
            masks, class_ids = super().load_mask(image_id)
            return masks, class_ids + 9 * (image_id == 0)

    data = Mixed(tmp_path / "photos").to_coco(tmp_path / "out", on_bad_image="skip")
    np.testing.assert_array_equal(data.image_ids, [1, 2])
    assert "1 bad pictures skipped; the first: Mixed: picture 0" in caplog.text


def test_sources_have_no_dots():
    with pytest.raises(UserError, match="a dot"):
        Dataset().add_class("a.b", 1, "c")


MODULE = """
from pathlib import Path
from maskrcnn_jax.data import Dataset, register
import numpy as np

class Squares(Dataset):
    def __init__(self, n):
        super().__init__()
        self.add_class("squares", 1, "square")
        for i in range(n):
            self.add_image("squares", i, None)

    def load_image(self, image_id):
        return np.full((40, 60, 3), 20 * image_id, np.uint8)

    def load_mask(self, image_id):
        mask = np.zeros((40, 60, 1), bool)
        mask[5:25, 10:30] = True
        return mask, np.array([1])

register("squares", lambda split: Squares({"train": 4, "val": 2}[split]))
register("wrong", lambda split: 7)
register("failing", lambda split: Squares(None))
"""


def _config(tmp_path, *overrides):
    overrides = [f"data.cache_dir={tmp_path / 'cache'}", "init.checkpoint=weights.pkl", *overrides]
    path = ROOT / "configs" / "finetune.py"
    return config_lib.load(path, overrides, schema=get_config())


@pytest.mark.parametrize("form", ["file", "module"])
def test_a_config_names_it(form, tmp_path, monkeypatch):
    (tmp_path / f"my_squares_{form}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = f"my_squares_{form}" + ".py" * (form == "file")
    config = _config(tmp_path, f"data.module={module}", "data.name=squares")
    config_lib.validate(config)
    train, val = load_data(config, train=True)
    assert len(train.image_ids) == 4 and len(val.image_ids) == 2 and val.names == ("square",)
    assert (tmp_path / "cache") in val.annotations.parents
    assert load_data(config, train=False)[0] is None
    for name, message in {
        "wrong": "returned int for 'val'",
        "failing": rf"making 'val' failed: TypeError.*my_squares_{form}.py, line",
        "other": rf"registered nowhere; {module}.* registers .*squares",
    }.items():
        config = _config(tmp_path, f"data.module={module}", f"data.name={name}")
        with pytest.raises(UserError, match=message):
            load_data(config, train=False)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "absent.py", "there is no file absent.py"),
        (None, "absent_package.data", "ModuleNotFoundError.*absent_package"),
        ("x = 1\ny = x / 0\n", "bad.py", "ZeroDivisionError.*bad.py, line 2"),
        ("def (\n", "worse.py", "SyntaxError.*worse.py, line 1"),
    ],
)
def test_modules_that_fail(content, name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    if content is not None:
        Path(name).write_text(content)
    with pytest.raises(UserError, match=rf"data\.module.*{message}"):
        own_data.import_module(name)


def test_names_are_checked_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match=r"data\.name='mine_unheard'.*set data\.module"):
        config_lib.validate(_config(tmp_path, "data.name=mine_unheard"))
    with pytest.raises(UserError, match=r"data\.module='m\.py' is set, but data\.name='coco'"):
        config_lib.validate(_config(tmp_path, "data.module=m.py"))
    register("mine_known", lambda split: None)
    config_lib.validate(_config(tmp_path, "data.name=mine_known"))
    with pytest.raises(UserError, match="own names"):
        register("coco", lambda split: None)


def test_tensorflow_is_not_needed():
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'tensorflow_datasets', 'jax'):\n"
        "    sys.modules[name] = None\n"
        "import maskrcnn_jax.data\n"
        "from maskrcnn_jax.data import Dataset, register\n"
        "maskrcnn_jax.data.Dataset().prepare()\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_json_is_plain_coco(tmp_path):
    data = Polygons(tmp_path / "photos").to_coco(tmp_path / "set.json")
    content = json.loads(data.annotations.read_text())
    assert set(content) == {"images", "annotations", "categories"}
    assert content["categories"] == [{"id": 7, "name": "ball"}, {"id": 3, "name": "kite"}]
    assert [a["id"] for a in content["annotations"]] == [1, 2, 3]
    from pycocotools.coco import COCO

    coco = COCO(str(data.annotations))
    for i, annotation in enumerate(sorted(coco.anns)):
        np.testing.assert_array_equal(coco.annToMask(coco.anns[annotation]), instance_mask(data, i))
