"""What the doctor finds when it opens the pictures: each kind of damage, and each kind of copy."""

import json

import numpy as np
import pytest
import tiny_coco
from doctor_cases import GOOD, HW, codes, content
from PIL import Image, ImageFilter

from maskrcnn_jax.data import doctor_run, doctor_twins
from maskrcnn_jax.data.doctor_pictures import look
from maskrcnn_jax.errors import UserError


def scene(seed, hw=(96, 128)):
    """A picture with large forms and fine detail, never the same for two seeds."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize(hw[::-1], Image.Resampling.BICUBIC), np.int16)
    return np.clip(smooth + rng.integers(-12, 13, (*hw, 3)), 0, 255).astype(np.uint8)


def write(folder, names, hw=(96, 128), shape=None):
    """A COCO JSON of these pictures with one object in each."""
    shape = shape or [tiny_coco.rectangle(10, 10, 60, 60)]
    images = [
        {"id": i, "file_name": name, "height": hw[0], "width": hw[1]}
        for i, name in enumerate(names, 1)
    ]
    things = [tiny_coco.annotation(i, i, 3, shape) for i in range(1, len(names) + 1)]
    path = folder / "instances.json"
    made = {"images": images, "annotations": things, "categories": [{"id": 3, "name": "cat"}]}
    path.write_text(json.dumps(made))
    return path


def found(report, code):
    return [(f.grade, f.where, f.message) for f in report.findings if f.code == code]


def test_files_of_all_kinds_of_damage(tmp_path):
    names = [
        "a.png",
        "cut.jpg",
        "empty.jpg",
        "text.png",
        "png.jpg",
        "gone.png",
        "wide.png",
        "16.png",
    ]
    for k, name in enumerate(names[:2]):
        Image.fromarray(scene(k)).save(tmp_path / name)
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1")
    Image.fromarray(scene(4)).save(tmp_path / "png.jpg", "PNG")
    Image.fromarray(scene(6, (96, 200))).save(tmp_path / "wide.png")
    deep = scene(7)[..., 0].astype(np.uint16) * 200
    Image.fromarray(deep).save(tmp_path / "16.png")
    report = doctor_run.inspect([write(tmp_path, names)])
    assert [w for _, w, _ in found(report, "missing-image")] == ["image 6 (gone.png)"]
    broken = found(report, "unreadable-image")
    assert [w.split()[1] for _, w, _ in broken] == ["2", "3", "4"]
    assert {g for g, _, _ in broken} == {"error"} and "git-LFS" in broken[2][2]
    assert [(g, w) for g, w, _ in found(report, "wrong-suffix")] == [("note", "image 5 (png.jpg)")]
    size = found(report, "size-mismatch")
    assert [(g, w) for g, w, _ in size] == [("error", "image 7 (wide.png)")]
    assert "96 and 128" in size[0][2] and "96 and 200" in size[0][2]


@pytest.mark.parametrize(
    ("orientation", "hw", "grade"),
    [
        (6, (128, 96), "note"),
        (6, (96, 128), "warning"),
        (3, (96, 128), "warning"),
        (1, (96, 128), ""),
    ],
)
def test_exif(tmp_path, orientation, hw, grade):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(scene(0)).save(tmp_path / "a.jpg", exif=exif)
    report = doctor_run.inspect([write(tmp_path, ["a.jpg"], hw)])
    assert [g for g, _, _ in found(report, "exif")] == ([grade] if grade else [])
    assert not codes(report, "error")


def test_names_never_lead_out_of_the_folder(tmp_path):
    inside = tmp_path / "photos"
    inside.mkdir()
    Image.fromarray(scene(0)).save(tmp_path / "secret.png")
    Image.fromarray(scene(1)).save(inside / "b.png")
    names = [
        "../secret.png",
        str(tmp_path / "secret.png"),
        "/elsewhere/b.png",
        "x\\..\\..\\secret.png",
    ]
    report = doctor_run.inspect([write(tmp_path, names)], images=[inside])
    files = [p.file for p in report.examined[0].raw.photos]
    assert files == [None, None, inside / "b.png", None]
    assert len(found(report, "unsafe-name")) == 2 and len(found(report, "absolute-path")) == 2
    assert set(report.looks) == {inside / "b.png"}


def noisy(pixels):
    rng = np.random.default_rng(9)
    pixels = pixels.copy()
    spots = rng.random(pixels.shape[:2])
    pixels[spots < 0.02], pixels[spots > 0.98] = 0, 255
    return pixels


COPIES = {
    "saved.jpg": lambda p: p,
    "mirrored.png": lambda p: p[:, ::-1],
    "upside.png": lambda p: p[::-1],
    "turned.png": lambda p: np.rot90(p),
    "turned3.png": lambda p: np.rot90(p, 3)[::-1],
    "noisy.png": noisy,
    "noisy_mirrored.png": lambda p: noisy(p[:, ::-1]),
    "half.png": lambda p: p[::2, ::2],
    "bright.png": lambda p: np.clip(p.astype(int) + 25, 0, 255).astype(np.uint8),
    "soft.png": lambda p: np.asarray(Image.fromarray(p).filter(ImageFilter.GaussianBlur(1))),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found(tmp_path, name):
    Image.fromarray(scene(0)).save(tmp_path / "a.png")
    Image.fromarray(np.ascontiguousarray(COPIES[name](scene(0)))).save(tmp_path / name, quality=70)
    looks = [look(tmp_path / "a.png"), look(tmp_path / name)]
    twins = doctor_twins.find_twins([x.thumb for x in looks], [x.digest for x in looks])
    assert [(t.first, t.second, t.same_file) for t in twins] == [(0, 1, False)]
    turned = {"mirrored.png", "upside.png", "turned.png", "turned3.png", "noisy_mirrored.png"}
    assert twins[0].same_pose == (name not in turned)


def test_different_pictures_are_not_copies(tmp_path):
    for k in range(60):
        Image.fromarray(scene(k)).save(tmp_path / f"{k}.png")
    for k in range(60, 64):  # plain ones say nothing
        Image.fromarray(np.full((50, 60, 3), 50 * (k - 60), np.uint8)).save(tmp_path / f"{k}.png")
    looks = [look(tmp_path / f"{k}.png") for k in range(64)]
    assert doctor_twins.find_twins([x.thumb for x in looks], [x.digest for x in looks]) == []


def test_hashes_of_poses_equal_those_of_posed_pictures():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((5, 32, 32)).astype(np.float32)
    frequencies = doctor_twins._frequencies(images)
    for pose in doctor_twins.POSES:
        posed = doctor_twins._frequencies(doctor_twins._turn(images, pose))
        np.testing.assert_allclose(doctor_twins._pose(frequencies, pose), posed, atol=1e-3)


def test_copies_within_and_across_splits(tmp_path):
    folders = [tmp_path / name for name in ("train", "val", "test")]
    for folder in folders:
        folder.mkdir()
    train = {"a.png": scene(0), "b.png": scene(1), "c.png": scene(2), "d.png": scene(3)}
    train |= {"a2.png": scene(0), "b2.png": np.ascontiguousarray(scene(1)[:, ::-1])}
    for name, pixels in train.items():
        Image.fromarray(pixels).save(folders[0] / name)
    for name, seed in (("v.png", 10), ("w.jpg", 2)):
        Image.fromarray(scene(seed)).save(folders[1] / name)
    Image.fromarray(scene(3)).save(folders[2] / "t.jpg")
    Image.fromarray(scene(20)).save(folders[2] / "u.jpg")
    paths = [write(folders[0], [*train]), write(folders[1], ["v.png", "w.jpg"])]
    report = doctor_run.inspect(paths, also=[folders[2]])
    (twice,) = found(report, "annotated-twice")
    assert twice[:2] == ("warning", "image 5 (a2.png)") and "image 1 (a.png)" in twice[2]
    (near,) = found(report, "near-duplicate")
    assert near[1] == "image 2 (b.png)" and "image 6 (b2.png)" in near[2]
    leaks = found(report, "leak")
    assert [w for _, w, _ in leaks] == ["image 3 (c.png)", "image 4 (d.png)"]
    assert "w.jpg" in leaks[0][2] and str(paths[1]) in leaks[0][2] and "t.jpg" in leaks[1][2]


def test_two_entries_of_one_file(tmp_path):
    Image.fromarray(scene(0)).save(tmp_path / "a.png")
    report = doctor_run.inspect([write(tmp_path, ["a.png", "x/a.png"])])
    assert [w for _, w, _ in found(report, "duplicate-file")] == ["image 2 (x/a.png)"]


def test_folders_are_found_near_the_file(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    path, _ = tiny_coco.write(tmp_path / "annotations", {5: HW, 2: HW}, [GOOD])
    (tmp_path / "annotations" / "images").rename(tmp_path / "val2017" / "below")
    report = doctor_run.inspect([path])
    assert len(found(report, "missing-image")) == 2
    (tmp_path / "val2017" / "below").rename(tmp_path / "train2017")
    assert not codes(doctor_run.inspect([path]), "error")


def test_folders_that_do_not_fit(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content()))
    with pytest.raises(UserError, match="absent: no such folder"):
        doctor_run.inspect([path], images=[tmp_path / "absent"])
    with pytest.raises(UserError, match="--images is given 2 times"):
        doctor_run.inspect([path], images=[tmp_path, tmp_path])


def test_folders_named_as_the_file_come_first(tmp_path):
    (tmp_path / "annotations").mkdir()
    for name in ("a_test", "train", "val"):
        (tmp_path / name).mkdir()
        Image.fromarray(scene(0)).save(tmp_path / name / "0.png")
    path = write(tmp_path / "annotations", ["0.png"])
    path = path.rename(path.with_name("instances_val.json"))
    report = doctor_run.inspect([path])
    assert report.statistics[0]["images"] == str(tmp_path / "val")


def test_a_fixed_camera_is_one_group():
    rng = np.random.default_rng(0)
    frames = [np.clip(scene(0, (32, 32))[..., 0] + rng.integers(-3, 4, (32, 32)), 0, 255)] * 300
    thumbs = [frame.astype(np.uint8) for frame in frames]
    twins = doctor_twins.find_twins(thumbs, [bytes([k % 256, k // 256]) for k in range(300)])
    assert len(twins) < 300 * 10
    assert doctor_twins.groups(twins, 300) == [list(range(300))]


def test_cropped_copies_are_found_and_like_landscapes_are_not(tmp_path):
    big = scene(0, (240, 320))
    Image.fromarray(big).save(tmp_path / "a.png")
    Image.fromarray(big[4:236, 6:318]).save(tmp_path / "b.png")
    for k, name in enumerate(("c.png", "d.png")):  # bright above, dark below, else different
        mixed = 0.25 * scene(50 + k, (240, 320)) + np.linspace(190, 0, 240)[:, None, None]
        Image.fromarray(mixed.astype(np.uint8)).save(tmp_path / name)
    looks = [look(tmp_path / f"{name}.png") for name in "abcd"]
    thumbs = np.stack([x.thumb for x in looks]).astype(float)
    assert np.corrcoef(thumbs[2].ravel(), thumbs[3].ravel())[0, 1] > 0.9
    twins = doctor_twins.find_twins([x.thumb for x in looks], [x.digest for x in looks])
    assert [(t.first, t.second) for t in twins] == [(0, 1)]


def test_a_picture_saved_anew_and_labelled_again(tmp_path):
    Image.fromarray(scene(0)).save(tmp_path / "a.png")
    Image.fromarray(scene(0)).save(tmp_path / "b.jpg", quality=95)
    path = write(tmp_path, ["a.png", "b.jpg"])
    assert [w for _, w, _ in found(doctor_run.inspect([path]), "near-duplicate")]
    made = json.loads(path.read_text())
    made["annotations"].append(GOOD | {"id": 9, "image_id": 2})
    path.write_text(json.dumps(made))
    report = doctor_run.inspect([path])
    (twice,) = found(report, "annotated-twice")
    assert "2 objects here, 1 there" in twice[2] and not found(report, "near-duplicate")
