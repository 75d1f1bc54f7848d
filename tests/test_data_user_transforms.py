"""The user's list of Albumentations: against NumPy on full-size masks, and through the pipeline."""

import json
import sys

import augment_cases as cases
import numpy as np
import pytest
import tensorflow as tf
import tiny_coco

from configs.common import get_config
from maskrcnn_jax.data import augment_geometry, user_transforms
from maskrcnn_jax.data.user_transforms import Objects
from maskrcnn_jax.errors import UserError

HW = (90, 120)
MASKS = cases.masks_of(HW, seed=1)
EXAMPLE = Objects(**{k: v.numpy() for k, v in cases.example_of(MASKS, HW, seed=1).items()})


@pytest.fixture
def library(monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network
    return pytest.importorskip("albumentations")


def _apply(entries, seed=0, example=EXAMPLE):
    return user_transforms.apply(user_transforms.build(json.dumps(entries)), example, seed)


def _check(after, image, masks):
    np.testing.assert_array_equal(after.image, image)
    cases.assert_same_masks(cases.painted(after._asdict()), masks, 0.95)
    cases.assert_near_bounds(after.boxes, masks)
    for name, value in EXAMPLE._asdict().items():
        assert getattr(after, name).dtype == value.dtype


EXACT = {
    "HorizontalFlip": lambda x: x[:, ::-1],
    "VerticalFlip": lambda x: x[::-1],
    "Transpose": lambda x: x.swapaxes(0, 1),
}


@pytest.mark.parametrize("name", EXACT)
def test_masks_and_boxes_follow(library, name):
    after = _apply([[name, {"p": 1.0}]])
    _check(after, EXACT[name](EXAMPLE.image), [EXACT[name](m) for m in MASKS])
    np.testing.assert_array_equal(after.classes, EXAMPLE.classes)


def test_objects_that_vanish_are_dropped(library):
    box = {"x_min": 0, "y_min": 0, "x_max": 60, "y_max": 40, "p": 1.0}
    after = _apply([["Crop", box]])
    cut = [m[:40, :60] for m in MASKS]
    left = [i for i, m in enumerate(cut) if m.any()]
    assert 0 < len(left) < len(MASKS)
    np.testing.assert_array_equal(after.classes, left)
    _check(after, EXAMPLE.image[:40, :60], [cut[i] for i in left])
    none = _apply([["Crop", {"x_min": 0, "y_min": 0, "x_max": 2, "y_max": 2, "p": 1.0}]])
    assert none.boxes.shape == (0, 4) and none.masks.shape == (0, cases.SIDE, cases.SIDE // 8)


def test_lists_of_pixels_leave_the_objects_bit_for_bit(library):
    entries = [
        ["ImageCompression", {"quality_range": [40, 90], "p": 1.0}],
        ["OneOf", [["RandomRain", {"p": 1.0}], ["GaussianBlur", {"p": 1.0}]], {"p": 1.0}],
    ]
    assert user_transforms.build(json.dumps(entries)).pixels_only
    after = _apply(entries)
    assert (after.image != EXAMPLE.image).any() and after.image.shape == EXAMPLE.image.shape
    for name in ("boxes", "frames", "masks", "classes"):
        assert getattr(after, name) is getattr(EXAMPLE, name)
    mixed = [["Sequential", [["RandomRain"], ["HorizontalFlip"]], {}]]
    assert not user_transforms.build(json.dumps(mixed)).pixels_only


def test_pictures_without_objects(library):
    empty = EXAMPLE._replace(**{n: getattr(EXAMPLE, n)[:0] for n in Objects._fields[1:]})
    after = _apply([["VerticalFlip", {"p": 1.0}]], example=empty)
    np.testing.assert_array_equal(after.image, EXAMPLE.image[::-1])
    assert after.masks.shape == empty.masks.shape


def test_seeds_decide_and_transforms_draw_apart(library):
    entries = [["HorizontalFlip", {"p": 0.5}], ["VerticalFlip", {"p": 0.5}]]
    kinds = {x.tobytes(): [] for x in (EXAMPLE.image,)}
    for seed in range(40):
        first, again = _apply(entries, seed), _apply(entries, seed)
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)
        kinds.setdefault(first.image.tobytes(), []).append(seed)
    # All four: with one seed for every transform, only two would be seen.
    assert len(kinds) == 4 and min(len(seeds) for seeds in kinds.values()) >= 3


def test_a_file_of_transforms(library, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('[["VerticalFlip", {"p": 1.0}]]')
    after = user_transforms.apply(user_transforms.build(str(path)), EXAMPLE, 0)
    np.testing.assert_array_equal(after.image, EXAMPLE.image[::-1])


def test_lists_as_python_writes_them(library):
    entries = [("OneOf", [("VerticalFlip", {"p": 1.0})], {"p": 1.0}), ["NoOp", {}]]
    for text in (entries, tuple(entries), str(entries), json.dumps(entries)):
        after = user_transforms.apply(user_transforms.build(text), EXAMPLE, 0)
        np.testing.assert_array_equal(after.image, EXAMPLE.image[::-1])
    with pytest.raises(UserError, match="not valid JSON"):
        user_transforms.build("[('NoOp', {'p': set()})]")


class Replaced:
    """Stands for a list of transforms that puts other masks in the place of the objects'."""

    def __init__(self, masks):
        self.masks = masks

    def set_random_state(self, *generators):
        pass

    def __call__(self, image, masks):
        assert masks.dtype == np.uint8 and masks.shape == self.masks.shape
        return {"image": image, "masks": self.masks}


def test_a_line_that_was_turned_is_cropped():
    """On its side it is covered by cells of its own height, at an angle by none to one half."""
    side = 900
    line = np.eye(side, dtype=np.uint8) | np.eye(side, k=1, dtype=np.uint8)
    example = Objects(
        np.zeros((side, side, 3), np.uint8),
        *[np.float32([[0, 400, side, 402]])] * 2,
        np.full((1, 112, 14), 255, np.uint8),
        np.int32([0]),
    )
    transforms = user_transforms.Transforms(Replaced(line[None]), pixels_only=False)
    after = user_transforms.apply(transforms, example, 0)
    np.testing.assert_array_equal(after.frames, [[0, 0, side, side]])
    after = {key: tf.constant(value) for key, value in after._asdict().items()}
    for seed in range(5):
        cut = augment_geometry.random_crop(after, 1.0, (0.5, 0.5), tf.constant([seed, 0]))
        assert len(cut["boxes"]) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none.json", "none.json.*cannot be read"),
        ('[["Blur", {]', "not valid JSON"),
        ("[]", "give a list"),
    ],
)
def test_texts_that_are_no_list(text, message):
    with pytest.raises(UserError, match=rf"data\.albumentations.*{message}"):
        user_transforms.build(text)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([["RandomRian", {}]], r"\[0\].*'RandomRian'.*nearest is 'RandomRain'"),
        ([["Blur", {}], ["Blur", {"limit": 3}]], r"\[1\].*no argument 'limit'.*blur_limit"),
        ([["ImageCompression", {"quality_range": [400, 90]}]], "refuses.*quality_range"),
        ([["OneOf", [["Blur", {"x": 1}]], {}]], r"\[0\]\[0\].*no argument 'x'"),
        ([["OneOf", {}]], r"write \[\"OneOf\", \[transforms\]"),
        ([["Normalize", {}]], "pixel_mean"),
        ([[3]], "write"),
        ([["Blur", 7]], "write"),
        ([["Compose", [["Blur"]]]], "no transform 'Compose'"),
    ],
)
def test_mistakes_are_told(library, entries, message):
    with pytest.raises(UserError, match=message):
        user_transforms.build(json.dumps(entries))


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(UserError, match=r"pip install 'maskrcnn_jax\[albumentations\]'"):
        user_transforms.build('[["Blur"]]')


def test_the_agpl_heir_is_refused(monkeypatch, tmp_path):
    info = tmp_path / "albumentationsx-2.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: albumentationsx\nVersion: 2.1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="AGPL"):
        user_transforms.build('[["Blur"]]')


def test_other_releases_are_refused(library, monkeypatch):
    monkeypatch.setattr(library, "__version__", "2.0.9")
    with pytest.raises(UserError, match=r"2\.0\.9 is installed.*2\.0\.8"):
        user_transforms.build('[["Blur"]]')


def test_workers_make_what_the_list_makes(library, tmp_path):
    """Two processes, twice and from the middle: the same batches; failures name the picture."""
    from maskrcnn_jax.data.builder import prepare
    from maskrcnn_jax.data.coco import load_coco
    from maskrcnn_jax.data.pipeline import make_batches

    data = load_coco(*tiny_coco.boxes_set(tmp_path))
    records = prepare(data, tmp_path / "cache", progress=False)
    entries = [["Affine", {"rotate": [-40, 40], "p": 0.7}], ["Transpose", {}], ["RandomRain", {}]]
    c = get_config().data
    c.update({"short": (64,), "long": 96, "num_workers": 2, "albumentations": json.dumps(entries)})
    whole = list(make_batches(records, c, 4, 0, num_steps=4))
    later = list(make_batches(records, c, 4, 0, start_step=2, num_steps=2))
    for batch, same in zip(whole[2:], later, strict=True):
        for name, a, b in zip(batch._fields, batch, same, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
    c.albumentations = ""
    plain = list(make_batches(records, c, 4, 0, num_steps=4))
    assert all((a.images != b.images).any() for a, b in zip(whole, plain, strict=True))
    assert all(b.gt_valid.any() for b in whole)

    c.albumentations = '[["RandomCrop", {"height": 70, "width": 70, "p": 1.0}]]'
    with pytest.raises(UserError, match=r"fail on the picture with the id \d+: CropSizeError"):
        list(make_batches(records, c, 4, 0, num_steps=4))
