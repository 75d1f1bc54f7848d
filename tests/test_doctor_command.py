"""`maskrcnn inspect` as a user meets it: exit status, files, the page, mistakes."""

import contextlib
import html.parser
import io
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tiny_coco
from doctor_cases import GOOD, HW, all_kinds, content
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskrcnn_jax import cli
from maskrcnn_jax.data.coco import load_coco

EVIL = "<script>alert('x')</script>\" onload=\"\ud800[bold]"


def maskrcnn(capsys, *argv):
    """Runs the command; returns its exit status, its output and its errors."""
    try:
        status = cli.main(["inspect", *map(str, argv)])
    except SystemExit as error:
        status = error.code
    return status, *capsys.readouterr()


@pytest.fixture
def data(tmp_path):
    """A small sound data set: the annotations and the folder of the pictures."""
    things = [GOOD, tiny_coco.annotation(2, 2, 7, [tiny_coco.rectangle(20, 5, 45, 30)])]
    path, images = tiny_coco.write(tmp_path / "data", {5: HW, 2: HW}, things)
    return path


class Page(html.parser.HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "data", "action")]
        assert not [k for k, _ in attrs if k.startswith("on")]

    def handle_data(self, data):
        self.text.append(data)


def test_a_sound_data_set(capsys, data, tmp_path):
    out = [tmp_path / "report.html", tmp_path / "report.json", tmp_path / "fixed.json"]
    status, text, err = maskrcnn(capsys, data, "--html", out[0], "--json", out[1], "--fix", out[2])
    assert status == 0 and not err
    assert "0 errors" in text and all(f"written: {path}" in text for path in out)
    page = Page(out[0].read_text())
    assert page.tags.count("img") == 2
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    report = json.loads(out[1].read_text())
    assert report["counts"]["error"] == 0 and report["statistics"][0]["objects"] == 2
    assert len(load_coco(out[2], str(data.parent / "images")).inst_id) == 2


def test_errors_give_status_1(capsys, data):
    (data.parent / "images" / "5.png").unlink()
    status, text, err = maskrcnn(capsys, data)
    assert status == 1 and not err
    assert "error: missing-image (1)" in text and "1 errors" in text
    assert maskrcnn(capsys, data, "--no-pictures")[0] == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--fix", "{data}"], "is to be read or written already"),
        (["--html", "{data}"], "is to be read or written already"),
        (["--html", "{out}", "--json", "{out}"], "is to be read or written already"),
        (["--json", "{out}/absent/x.json"], "in a folder that exists"),
        (["--fix", "{out}", "--val", "{data}"], "--fix repairs one data set"),
        (["--images", "{out}/absent"], "no such folder"),
        (["--max-instances", "0"], "--max-instances must be 1 or more"),
        (["--from", "poetry"], "there is no such format"),
        (["{out}"], "no such file"),
    ],
)
def test_wrong_use_gives_status_2(capsys, data, tmp_path, more, message):
    before = data.read_bytes()
    argv = [a.format(data=data, out=tmp_path / "out.json") for a in more]
    status, _, err = maskrcnn(capsys, data, *argv)
    assert status == 2 and message in err and err.startswith("error: ")
    assert data.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["data"]


def test_nothing_to_repair_gives_status_2(capsys, tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content([GOOD | {"segmentation": []}])))
    status, text, err = maskrcnn(capsys, path, "--no-pictures", "--fix", tmp_path / "out.json")
    assert status == 2 and "nothing usable" in err and "no-segmentation" in text
    assert not (tmp_path / "out.json").exists()


def test_foreign_text_is_escaped(capsys, tmp_path):
    name = EVIL.replace("/", "").replace("\ud800", "")
    made = content(sizes={5: HW})
    made["images"][0]["file_name"] = f"{name}.png"
    made["annotations"].append(GOOD | {"id": EVIL, "category_id": EVIL, "bbox": EVIL})
    made["categories"][1]["name"] = EVIL
    (tmp_path / "data").mkdir()
    Image.new("RGB", HW[::-1]).save(tmp_path / "data" / f"{name}.png")
    path = tmp_path / "data" / "instances.json"
    path.write_text(json.dumps(made))
    out = tmp_path / "report.html"
    status, _, err = maskrcnn(capsys, path, "--html", out, "--json", tmp_path / "report.json")
    assert status == 1 and not err
    page = Page(out.read_text())
    assert "script" not in page.tags and page.tags.count("img") == 1
    assert "alert('x')" in "".join(page.text)
    json.loads((tmp_path / "report.json").read_text())


def test_the_page_has_pictures_of_all_splits_and_no_more_than_asked(capsys, tmp_path):
    paths = []
    for split in ("train", "val"):
        sizes = dict.fromkeys(range(1, 9), HW)
        things = [GOOD | {"id": i, "image_id": i} for i in sizes]
        path, images = tiny_coco.write(tmp_path / split, sizes, things)
        for i in sizes:
            noise = np.random.default_rng([i, len(split)]).integers(0, 256, (*HW, 3), np.uint8)
            Image.fromarray(noise).save(f"{images}/{i}.png")
        paths.append(path)
    out = tmp_path / "report.html"
    for most in (6, 0):
        maskrcnn(capsys, paths[0], "--val", paths[1], "--html", out, "--max-pictures", most)
        assert Page(out.read_text()).tags.count("img") == most


def test_masks_are_drawn_where_they_are(tmp_path, data):
    from maskrcnn_jax import report_data
    from maskrcnn_jax.data import doctor_run

    raw = doctor_run.inspect([data]).examined[0].raw
    drawn = report_data._draw(raw, 0).astype(int)
    plain = np.asarray(Image.open(data.parent / "images" / "5.png").convert("RGB"), int)
    changed = np.abs(drawn - plain).sum(-1) > 0
    assert changed[4:18, 4:18].all() and not changed[30:, 25:].any()


def _damage(draw, content):
    """A file cut, with bytes exchanged, or in another encoding."""
    kind = draw(st.sampled_from(["cut", "bytes", "utf-16", "cp1252", "bom", "doubled"]))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content)))]
    if kind == "bytes":
        for _ in range(draw(st.integers(1, 4))):
            place = draw(st.integers(0, len(content) - 1))
            content = content[:place] + draw(st.binary(max_size=2)) + content[place + 1 :]
        return content
    if kind == "bom":
        return b"\xef\xbb\xbf" + content
    return content * 2 if kind == "doubled" else content.decode().encode(kind)


@settings(max_examples=int(os.environ.get("MASKRCNN_JAX_FUZZ", "40")))
@given(st.data())
def test_damaged_files_never_end_in_a_traceback(given_data):
    content = json.dumps(all_kinds() | {"info": "Möbel"}, ensure_ascii=False).encode("utf-8")
    content = _damage(given_data.draw, content)
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        (folder / "data.json").write_bytes(content)
        outputs = ["--json", f"{folder}/r.json", "--html", f"{folder}/r.html"]
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            status = cli.main(["inspect", f"{folder}/data.json", *outputs])
        assert status in (0, 1, 2)
        assert (status == 2) == ("error: " in errors.getvalue())
        assert (folder / "data.json").read_bytes() == content
