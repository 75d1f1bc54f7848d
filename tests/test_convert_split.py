"""The split: disjoint, repeatable, stratified, groups together; merging; class maps."""

import format_samples as samples
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from maskrcnn_jax.data.formats import grouping, registry, splitting, to_coco
from maskrcnn_jax.data.formats.draft import Draft, Item, Picture
from maskrcnn_jax.errors import UserError


@st.composite
def sets(draw):
    """A COCO dict of some pictures with objects of some classes, and group keys."""
    num_classes = draw(st.integers(1, 5))
    pictures = draw(
        st.lists(st.lists(st.integers(0, num_classes - 1), max_size=6), min_size=3, max_size=30)
    )
    groups = draw(st.lists(st.integers(0, 12), min_size=len(pictures), max_size=len(pictures)))
    names = [f"p{i}.jpg" for i in range(len(pictures))]
    labels = [(i, c) for i, classes in enumerate(pictures) for c in classes]
    coco = {
        "images": [{"id": 10 + i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": n, "image_id": 10 + i, "category_id": c + 1} for n, (i, c) in enumerate(labels)
        ],
        "categories": [{"id": c + 1, "name": f"c{c}"} for c in range(num_classes)],
    }
    return coco, [str(g) for g in groups]


FRACTIONS = st.sampled_from([(0.8, 0.2), (0.5, 0.5), (0.7, 0.2, 0.1), (0.1, 0.9)])


@hypothesis.settings(max_examples=200)
@hypothesis.given(sample=sets(), fractions=FRACTIONS, seed=st.integers(0, 5))
def test_properties(sample, fractions, seed):
    coco, keys = sample
    if len(set(keys)) < len(fractions):
        with pytest.raises(UserError, match="make no"):
            splitting.split(coco, fractions, seed, keys)
        return
    parts = splitting.split(coco, fractions, seed, keys)
    assert parts == splitting.split(coco, fractions, seed, keys)
    # Every picture and every object is in one part, none is empty.
    for table in ("images", "annotations"):
        ids = [entry["id"] for part in parts for entry in part[table]]
        assert sorted(ids) == sorted(entry["id"] for entry in coco[table])
    assert all(part["images"] and part["categories"] == coco["categories"] for part in parts)
    key_of = {e["id"]: key for e, key in zip(coco["images"], keys, strict=True)}
    held = [{key_of[e["id"]] for e in part["images"]} for part in parts]
    assert sum(map(len, held)) == len(set(keys))  # no group in two parts
    for part in parts:
        pictures = {e["id"] for e in part["images"]}
        assert all(a["image_id"] in pictures for a in part["annotations"])
    # Every class is in the first part, unless the groups that have it are alone in theirs.
    first = {a["category_id"] for a in parts[0]["annotations"]}
    for a in coco["annotations"]:
        if a["category_id"] not in first:
            part = next(i for i, keys in enumerate(held) if key_of[a["image_id"]] in keys)
            assert len(held[part]) == 1


def test_proportions():
    rng = np.random.default_rng(0)
    counts = rng.poisson([3, 1, 0.3, 0.05], (500, 4))
    annotations = [
        {"id": n, "image_id": i, "category_id": c}
        for n, (i, c) in enumerate(
            (i, c) for i, row in enumerate(counts) for c, k in enumerate(row) for _ in range(k)
        )
    ]
    coco = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(500)],
        "annotations": annotations,
        "categories": [{"id": c, "name": str(c)} for c in range(4)],
    }
    parts = splitting.split(coco, (0.8, 0.2), 0)
    assert abs(len(parts[1]["images"]) - 100) <= 10
    for c in range(4):
        total = counts[:, c].sum()
        got = sum(a["category_id"] == c for a in parts[1]["annotations"])
        assert abs(got - 0.2 * total) <= max(0.05 * total, 2)


def test_groups(tmp_path):
    names = [
        "crate_jpg.rf.0123456789abcdef0123456789abcdef.jpg",
        "more/crate_jpg.rf.ffff456789abcdef0123456789abcdef.jpg",
        "film1_frame7.jpg",
        "film1_frame8.jpg",
        "alone.jpg",
        "copy.jpg",
    ]
    for i, name in enumerate(names):
        samples.photo(tmp_path / name, seed=min(i, 4))  # copy.jpg is alone.jpg
    coco = {"images": [{"id": i, "file_name": n} for i, n in enumerate(names)], "annotations": []}
    keys = grouping.group_keys(coco)
    assert keys[0] == keys[1] and len(set(keys)) == 5
    keys = grouping.group_keys(coco, images=tmp_path)
    assert keys[0] == keys[1] and keys[4] == keys[5] and len(set(keys)) == 4
    keys = grouping.group_keys(coco, r"(film\d+)_", tmp_path)
    assert keys[2] == keys[3] and keys[4] == keys[5] and len(set(keys)) == 4
    with pytest.raises(UserError, match="not a regular expression"):
        grouping.group_keys(coco, "(")


def test_real_copies_stay_together(shared_data):
    draft = registry.read(shared_data / "mushrooms_roboflow" / "train")
    coco = to_coco.finish(draft)
    keys = grouping.group_keys(coco, images=draft.images)
    stems = {e["file_name"].partition(".rf.")[0] for e in coco["images"]}
    assert len(set(keys)) == len(stems) < len(keys)
    cars = shared_data / "car_damage_via"
    sources = [registry.read(cars / part / "via_region_data.json") for part in ("train", "val")]
    merged = to_coco.merge(sources)
    coco = to_coco.finish(merged)
    assert len(coco["images"]) == 70 and len(coco["annotations"]) == 164
    keys = grouping.group_keys(coco, images=merged.images)
    key_of = {e["file_name"]: key for e, key in zip(coco["images"], keys, strict=True)}
    assert key_of["train/48.jpg"] == key_of["train/25.jpg"]  # the same photo, says the README
    assert key_of["train/19.jpg"] != key_of["train/79.jpg"]  # another file of the same picture
    seen = []
    keys = grouping.join_twins(coco, keys, merged.images, lambda: seen.append(1))
    together = {}
    for key, entry in zip(keys, coco["images"], strict=True):
        together.setdefault(key, set()).add(entry["file_name"])
    found = sorted(sorted(names) for names in together.values() if len(names) > 1)
    pairs = [["19", "79"], ["25", "48"], ["33", "8"]]
    assert found == [[f"train/{name}.jpg" for name in pair] for pair in pairs]
    assert len(seen) == 70


def _scene(seed):
    """Some gray rectangles, as unlike another scene as photographs are."""
    rng = np.random.default_rng(seed)
    image = np.full((96, 128), 128, np.uint8)
    for _ in range(12):
        top, left = rng.integers(0, 80), rng.integers(0, 110)
        height, width = rng.integers(8, 40, 2)
        image[top : top + height, left : left + width] = rng.integers(0, 256)
    return image


def test_near_duplicates_stay_together(tmp_path):
    scenes = [_scene(seed) for seed in range(6)]
    noise = np.random.default_rng(9).normal(0, 6, scenes[2].shape)
    pictures = {f"{i}.png": scene for i, scene in enumerate(scenes)}
    pictures["mirrored.png"] = scenes[0][:, ::-1]
    pictures["turned.png"] = np.rot90(scenes[1])
    pictures["noisy.png"] = np.clip(scenes[2] + noise, 0, 255).astype(np.uint8)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / name)
    Image.fromarray(scenes[3]).save(tmp_path / "saved_anew.jpg", quality=60)
    (tmp_path / "damaged.png").write_bytes((tmp_path / "5.png").read_bytes()[:200])
    names = [*pictures, "saved_anew.jpg", "damaged.png"]
    coco = {"images": [{"id": i, "file_name": n} for i, n in enumerate(names)], "annotations": []}
    coco["categories"] = []
    keys = grouping.group_keys(coco, images=tmp_path)
    assert len(set(keys)) == len(names)
    keys = grouping.join_twins(coco, keys, tmp_path)
    key_of = dict(zip(names, keys, strict=True))
    same = [("0.png", "mirrored.png"), ("1.png", "turned.png"), ("2.png", "noisy.png")]
    same.append(("3.png", "saved_anew.jpg"))
    assert all(key_of[a] == key_of[b] for a, b in same)
    assert len(set(keys)) == len(names) - len(same)
    for seed in range(20):
        for part in splitting.split(coco, (0.5, 0.5), seed, keys):
            held = {e["file_name"] for e in part["images"]}
            assert all((a in held) == (b in held) for a, b in same)


def _draft(labels, name="a.jpg", images="/x"):
    from pathlib import Path

    triangle = [10.0, 10.0, 30.0, 10.0, 30.0, 40.0]
    items = [Item(name, label, [triangle], id=i + 5) for i, label in enumerate(labels)]
    ids = {label: i for i, label in enumerate(sorted(set(labels)))}
    pictures = [Picture(name, 60, 80, id=3)]
    return Draft("x", Path("s"), Path(images), sorted(set(labels)), pictures, items, [], ids)


def test_class_maps():
    draft = _draft(["cat", "dog", "cow", "cat"])
    coco = to_coco.finish(draft, {"cat": "pet", "dog": "pet", "cow": None})
    assert coco["categories"] == [{"id": 1, "name": "pet"}]
    assert len(coco["annotations"]) == 3
    assert [f.code for f in draft.findings] == ["dropped-class"]
    coco = to_coco.finish(draft, {"cat": "tom"}, ["horse", "tom", "dog"])
    assert [c["name"] for c in coco["categories"]] == ["horse", "tom", "dog"]
    assert [a["category_id"] for a in coco["annotations"]] == [2, 3, 2]
    with pytest.raises(UserError, match="has no class 'bird'; it has cat, cow, dog"):
        to_coco.finish(draft, {"bird": "x"})
    with pytest.raises(UserError, match="no usable object"):
        to_coco.finish(draft, {"cat": None, "dog": None, "cow": None})


def test_category_ids():
    draft = _draft(["cat", "dog"])
    draft.category_ids = {"cat": 17, "dog": 3}
    assert [c["id"] for c in to_coco.finish(draft)["categories"]] == [1, 2]
    kept = to_coco.finish(draft, keep_category_ids=True)
    assert kept["categories"] == [{"id": 17, "name": "cat"}, {"id": 3, "name": "dog"}]
    merged = to_coco.finish(draft, {"cat": "dog"}, keep_category_ids=True)
    assert merged["categories"] == [{"id": 17, "name": "dog"}]


def test_merging():
    drafts = [_draft(["cat"], images="/x/a"), _draft(["dog", "cat"], images="/x/b")]
    merged = to_coco.merge(drafts)
    coco = to_coco.finish(merged)
    assert str(merged.images) == "/x"
    assert [e["file_name"] for e in coco["images"]] == ["a/a.jpg", "b/a.jpg"]
    assert [a["id"] for a in coco["annotations"]] == [1, 2, 3]
    twice = to_coco.merge([drafts[0], drafts[0]])
    assert len(twice.pictures) == 1 and len(twice.items) == 2
    assert [f.code for f in twice.findings] == ["duplicate-picture"]


def test_writing_leaves_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "coco.json"
    to_coco.write(path, {"a": 1})
    assert path.read_text() == '{"a":1}' and [*path.parent.iterdir()] == [path]

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(to_coco.os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        to_coco.write(path, {"a": 2})
    assert path.read_text() == '{"a":1}' and [*path.parent.iterdir()] == [path]
