"""What a user may hand to main.py by mistake, each ending in one error and status 2; and pictures
of unusual kinds, which must work."""

import json

import numpy as np
import pytest
import tiny_coco
import tiny_run
from PIL import Image

import main

SIZES = {1: (48, 64), 2: (64, 48), 3: (48, 64), 4: (48, 64), 5: (48, 64)}


def data_set(folder):
    """A small sound data set: (JSON, folder of pictures)."""
    entries = [tiny_coco.annotation(i, i, 7, [tiny_coco.rectangle(8, 9, 40, 41)]) for i in SIZES]
    # As many classes as the generated shapes have, whose programs do then.
    categories = [{"id": i, "name": name} for i, name in enumerate("abcdef", 7)]
    return tiny_coco.write(folder, SIZES, entries, categories)


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def set_annotation(**fields):
    return lambda path, images: change(path, lambda c: c["annotations"][1].update(fields))


def truncate(path, images):
    picture = images / "2.png"
    Image.open(picture).save(images / "2.jpg", quality=95)
    content = (images / "2.jpg").read_bytes()
    (images / "2.jpg").write_bytes(content[: len(content) // 2])
    change(path, lambda c: c["images"][1].update(file_name="2.jpg"))


FAULTS = {
    "missing image": (lambda path, images: (images / "2.png").unlink(), "2.png"),
    "truncated picture": (truncate, "2.jpg"),
    "two points": (set_annotation(segmentation=[[1, 1, 9, 9]]), "annotation 2"),
    "no area": (set_annotation(bbox=[5, 5, 0, 10]), "annotation 2"),
    "unknown image": (set_annotation(image_id=99), "99"),
    "unknown category": (set_annotation(category_id=99), "99"),
    "duplicate id": (set_annotation(id=1), "id 1"),
    "cut off": (lambda path, images: path.write_text(path.read_text()[:200]), "instances.json"),
    "empty": (lambda path, images: change(path, lambda c: c.update(images=[], annotations=[])), ""),
}


def arguments(folder, path, images, *more):
    pairs = [
        f"data.{split}.{field}={value}"
        for split in ("train", "val")
        for field, value in (("annotations", path), ("images", images))
    ]
    fields = (*tiny_run.MODEL, *tiny_run.DATA, *tiny_run.SCHEDULE, "data.name=coco")
    fields = (*fields, f"data.cache_dir={folder / 'cache'}", "train.batch_size=8", *pairs, *more)
    return [
        *("--config", str(tiny_run.ROOT / "configs" / "shapes.py")),
        *("--workdir", str(folder / "run")),
        *(f"--config.{field}" for field in fields),
    ]


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_data_ends_in_one_error(fault, tmp_path, capsys):
    path, images = data_set(tmp_path)
    plant, named = FAULTS[fault]
    plant(path, tmp_path / "images")
    assert main.main(arguments(tmp_path, path, images)) == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1 and "Traceback" not in error
    assert named in error and str(tmp_path) in error


@pytest.mark.parametrize(
    "override, named",
    [
        ("optim.base_lr=nan", "optim.base_lr"),
        ("optim.bas_lr=1", "optim.base_lr"),
        ("train.batch_size=many", "train.batch_size"),
        ("train.best_metric=AP", "train.best_metric"),
        ("init.checkpoint=/nowhere", "/nowhere"),
    ],
)
def test_bad_fields_end_in_one_error(override, named, tmp_path, capsys):
    path, images = data_set(tmp_path)
    assert main.main(arguments(tmp_path, path, images, override)) == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1 and named in error


def test_unusual_pictures_train_and_evaluate(tmp_path):
    """Grey, grey of 16 bits, RGBA, and rotated by EXIF with the size of the annotation."""
    path, images = data_set(tmp_path)
    folder = tmp_path / "images"
    grey = Image.open(folder / "1.png").convert("L")
    grey.save(folder / "1.png")
    Image.open(folder / "2.png").convert("RGBA").save(folder / "2.png")
    deep = np.asarray(Image.open(folder / "3.png").convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "3.png")
    upright = Image.open(folder / "4.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "4.jpg", exif=exif, quality=95)
    content = (folder / "5.png").read_bytes()
    (folder / "5.png").write_bytes(content[: len(content) // 2])

    def edit(content):
        content["images"][3]["file_name"] = "4.jpg"

    change(path, edit)
    more = ("train.num_steps=2", "train.batch_size=2", "eval.every=0", "data.on_bad_image=skip")
    done = tiny_run.run(tmp_path / "cache", arguments(tmp_path, path, images, *more))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "run" / "eval" / "metrics.json").read_text())
    assert report["images"] == 4  # the truncated one is counted and left out
    assert "5.png" in done.stdout + done.stderr
