"""Formats that are folders: told apart, and their spoilt files end in errors or findings."""

import contextlib
import itertools
import shutil

import format_trees
import hypothesis
import mutate
import pytest
from format_samples import photo

from maskrcnn_jax.data.formats import registry, to_coco
from maskrcnn_jax.data.formats.draft import Options
from maskrcnn_jax.errors import UserError

# Which file is spoilt, and how.
SPOILT = {
    "yolo-label": ("yolo-seg", format_trees.yolo, "labels/train/a.txt", mutate.text_files),
    "yolo-yaml": ("yolo-seg", format_trees.yolo, "data.yaml", mutate.text_files),
    "voc-objects": (
        "voc",
        format_trees.voc,
        "SegmentationObject/2007_000001.png",
        mutate.byte_files,
    ),
    "voc-classes": (
        "voc",
        format_trees.voc,
        "SegmentationClass/2007_000001.png",
        mutate.byte_files,
    ),
    "voc-xml": (
        "voc",
        lambda folder: format_trees.voc(folder, classes=False),
        "Annotations/2007_000001.xml",
        mutate.text_files,
    ),
    "masks": ("masks", format_trees.penn_fudan, "PedMasks/FudanPed1_mask.png", mutate.byte_files),
    "nuclei": (
        "masks",
        lambda folder: format_trees.nuclei(folder, 1),
        "0000beef/masks/00000000.png",
        mutate.byte_files,
    ),
    "open-images": (
        "open-images",
        format_trees.open_images,
        "train-annotations-object-segmentation.csv",
        mutate.text_files,
    ),
    "open-images-boxes": (
        "open-images",
        format_trees.open_images,
        "train-annotations-bbox.csv",
        mutate.text_files,
    ),
    "open-images-classes": (
        "open-images",
        format_trees.open_images,
        "class-descriptions.csv",
        mutate.text_files,
    ),
    "open-images-mask": (
        "open-images",
        format_trees.open_images,
        "train-masks/00a1_01_0a.png",
        mutate.byte_files,
    ),
    "cvat": ("cvat", format_trees.cvat, "annotations.xml", mutate.text_files),
    "supervisely": (
        "supervisely",
        format_trees.supervisely,
        "ds2/ann/a.jpg.json",
        mutate.json_files,
    ),
    "supervisely-meta": ("supervisely", format_trees.supervisely, "meta.json", mutate.json_files),
    "picture": ("cvat", format_trees.cvat, "images/b.jpg", mutate.byte_files),
}


def prepare(name, tmp_path):
    """Fills tmp_path/in, and a decoy beside it; the file to spoil, and what to put there."""
    _, make, spoilt, strategy = SPOILT[name]
    folder = tmp_path / "in"
    folder.mkdir()
    make(folder)
    photo(tmp_path / mutate.DECOY, seed=9)
    file = folder / spoilt
    if strategy is mutate.json_files:
        return file, strategy(registry.reading.read_json(file))
    good = file.read_bytes()
    return file, strategy(good if strategy is mutate.byte_files else good.decode())


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_files(name, tmp_path):
    kind, folder = SPOILT[name][0], tmp_path / "in"
    file, contents = prepare(name, tmp_path)
    counter, read = itertools.count(), []
    others = {p: c for p, c in mutate.snapshot(tmp_path).items() if p != str(file)}

    @mutate.settings_for_fuzz
    @hypothesis.given(content=contents)
    def spoil(content):
        next(counter)
        file.write_bytes(content)
        draft = mutate.outcome(lambda: registry.read(folder, kind, Options()), folder)
        if draft is not None:
            read.append(len(draft.items))
        with contextlib.suppress(UserError):
            registry.detect(folder)

    spoil()
    assert len(read) > next(counter) / 10 and max(read) > 0
    after = {p: c for p, c in mutate.snapshot(tmp_path).items() if p != str(file)}
    assert after == others


ONE_OF_A_KIND = {kind: name for name, (kind, *_) in reversed(SPOILT.items())}


@pytest.mark.parametrize("kind", ONE_OF_A_KIND)
def test_nothing_is_written_elsewhere(kind, tmp_path):
    file, contents = prepare(ONE_OF_A_KIND[kind], tmp_path)

    @mutate.settings_for_writes
    @hypothesis.given(content=contents)
    def spoil(content):
        file.write_bytes(content)
        mutate.convert(tmp_path / "in", kind, tmp_path)

    spoil()


def test_kinds_are_told_apart(tmp_path):
    for kind, make in format_trees.MAKERS.items():
        folder = tmp_path / kind
        folder.mkdir()
        make(folder)
        for path in (folder, *sorted(folder.rglob("*"))):
            fitting = [m.NAME for m in registry.FORMATS if m.detect(path)]
            assert fitting == [kind] if path == folder else len(fitting) <= 1, path


def test_kinds_of_real_folders(shared_data):
    folders = {
        "yolo-seg": ("coco128_seg", "furniture_labelstudio/yolo_labels"),
        "masks": (
            "kvasir_semantic",
            "pedestrians_instance_png",
            "pedestrians_instance_png/masks/FudanPed00054_mask.png",
        ),
    }
    for kind, names in folders.items():
        for name in names:
            assert registry.find(kind) is registry.detect(shared_data / name)
    mine = {registry.find(kind) for kind in format_trees.MAKERS}
    for path in sorted(shared_data.glob("*")):
        for source in (path, *sorted(p for p in path.rglob("*") if p.is_dir())):
            fitting = [m for m in registry.FORMATS if m.detect(source)]
            assert len(fitting) <= 1 or mine.isdisjoint(fitting), source


@pytest.mark.parametrize("kind", format_trees.MAKERS)
def test_the_same_coco_json_each_time(kind, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        format_trees.MAKERS[kind](tmp_path / name)
    first, second = (to_coco.finish(registry.read(tmp_path / name)) for name in ("a", "b"))
    assert first == second and first["annotations"]


@pytest.mark.parametrize("kind", format_trees.MAKERS)
def test_empty_folders_and_other_files(kind, tmp_path):
    (tmp_path / "a.txt").write_text("hello\n")
    module = registry.find(kind)
    for source in (tmp_path, tmp_path / "a.txt"):
        assert not module.detect(source)
        with pytest.raises(UserError):
            to_coco.finish(module.read(source, Options()))


def test_a_link_to_a_folder_above_is_no_loop(tmp_path):
    format_trees.yolo(tmp_path)
    try:
        (tmp_path / "images" / "train" / "up").symlink_to(tmp_path, target_is_directory=True)
        (tmp_path / "labels" / "up").symlink_to(tmp_path, target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    assert len(registry.read(tmp_path).items) >= 4
    shutil.rmtree(tmp_path / "images")
