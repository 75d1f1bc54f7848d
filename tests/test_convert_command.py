"""`maskrcnn convert` as people call it: what it prints, writes, refuses."""

import json
from pathlib import Path

import format_samples as samples
import pytest
from PIL import Image

from configs import common
from maskrcnn_jax import cli
from maskrcnn_jax import config as config_lib
from maskrcnn_jax.data.coco import load_coco
from maskrcnn_jax.data.formats import conversion, registry
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import zoo

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        samples.photo(tmp_path / "in" / f"{i}.jpg", seed=i)
    content = samples.via_content([f"{i}.jpg" for i in range(2)])
    for i in range(2, 6):
        content[f"{i}"] = {"filename": f"{i}.jpg", "regions": content["0.jpg123"]["regions"]}
    samples.write(tmp_path / "in" / "via_region_data.json", content)
    return tmp_path


def _run(capsys, *words):
    status = cli.main(["convert", *map(str, words)])
    out, err = capsys.readouterr()
    return status, out, err


def test_one_file(folder, capsys):
    output = folder / "out" / "coco.json"
    status, out, _ = _run(capsys, folder / "in", "--output", output)
    assert status == 0 and "read as via" in out
    table = [line.split() for line in out.splitlines()]
    assert ["pictures", "6"] in table and ["objects", "18"] in table
    assert ["1", "cat", "11"] in table and ["2", "dog", "7"] in table
    assert all(text in out for text in ("note class-key: 1", "note line: 1", "error point: 1"))
    assert f"--config.data.train.annotations={output}" in out
    assert f"--config.data.train.images={folder / 'in'}" in out
    _, line = out.split("train:  python main.py --config ")
    path, *fields = line.replace("\\\n", " ").split()
    fields = [field.removeprefix("--config.") for field in fields]
    config = config_lib.load(ROOT / path, fields, schema=common.get_config())
    config_lib.validate(config)
    assert config.init.checkpoint in zoo.ZOO
    assert len(load_coco(output, str(folder / "in")).inst_id) == 18


def test_split_is_the_same_each_time(folder, capsys):
    output = folder / "coco.json"
    words = (folder / "in", "--output", output, "--split", "0.5/0.3/0.2", "--seed", "3")
    status, out, _ = _run(capsys, *words)
    assert status == 0
    names = [f"coco_{part}.json" for part in ("train", "val", "test")]
    first = [(folder / name).read_bytes() for name in names]
    assert not output.exists() and all(name in out for name in names)
    pictures = [{e["file_name"] for e in json.loads(text)["images"]} for text in first]
    assert len(set.union(*pictures)) == sum(map(len, pictures)) == 6
    _run(capsys, *words)
    assert [(folder / name).read_bytes() for name in names] == first
    check = [json.loads(text)["categories"] for text in first]
    assert check[0] == check[1] == check[2]


def test_groups_by_name(folder, capsys):
    output = folder / "coco.json"
    words = (folder / "in", "--output", output, "--split", "1/1", "--group", "[0-2]|[3-5]")
    assert _run(capsys, *words)[0] == 0
    # Six different matches: six groups. One group of all makes no two parts.
    status, _, err = _run(capsys, *words[:-1], "jpg")
    assert status == 2 and "1 groups make no 2 parts" in err


def test_classes(folder, capsys):
    output = folder / "coco.json"
    words = (folder / "in", "--output", output)
    assert _run(capsys, *words, "--class-map", "cat=tiger,dog=")[0] == 0
    assert json.loads(output.read_text())["categories"] == [{"id": 1, "name": "tiger"}]
    mapping = samples.write(folder / "map.json", {"cat": None})
    assert _run(capsys, *words, "--class-map", mapping)[0] == 0
    assert json.loads(output.read_text())["categories"] == [{"id": 1, "name": "dog"}]
    names = samples.write(folder / "names.txt", "dog\ncat\nbird\n")
    assert _run(capsys, *words, "--classes", names)[0] == 0
    categories = json.loads(output.read_text())["categories"]
    assert [c["name"] for c in categories] == ["dog", "cat", "bird"]
    like = folder / "like.json"
    assert _run(capsys, folder / "in", "--output", like, "--classes", output)[0] == 0
    assert json.loads(like.read_text())["categories"] == categories


def test_ids_of_the_classes(folder, capsys):
    """Those of a COCO JSON, whatever they are, and of COCO itself."""
    output, like = folder / "coco.json", folder / "like.json"
    for ids in ((7, 3), (0, 1)):
        table = [{"id": i, "name": n} for i, n in zip(ids, ("dog", "cat"), strict=True)]
        samples.write(like, {"categories": table})
        assert _run(capsys, folder / "in", "--output", output, "--classes", like)[0] == 0
        categories = json.loads(output.read_text())["categories"]
        assert categories == sorted(table, key=lambda c: c["id"])
    samples.write(like, {"categories": [{"id": 7, "name": "dog"}, {"id": None, "name": "cat"}]})
    assert _run(capsys, folder / "in", "--output", output, "--classes", like)[0] == 0
    assert [c["id"] for c in json.loads(output.read_text())["categories"]] == [1, 2]

    assert _run(capsys, folder / "in", "--output", output, "--classes", "coco")[0] == 0
    content = json.loads(output.read_text())
    ids = {c["name"]: c["id"] for c in content["categories"]}
    assert len(ids) == 80 and ids["person"] == 1 and ids["toothbrush"] == 90
    counts = [
        sum(a["category_id"] == ids[n] for a in content["annotations"]) for n in ("cat", "dog")
    ]
    assert (ids["cat"], ids["dog"]) == (17, 18) and counts == [11, 7]


def test_near_duplicates_are_told(folder, capsys):
    image = Image.open(folder / "in" / "0.jpg").resize((320, 240))
    image.save(folder / "in" / "3.jpg")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "in" / "5.jpg")
    content = json.loads((folder / "in" / "via_region_data.json").read_text())
    output = folder / "coco.json"
    words = (folder / "in", "--output", output, "--split", "1/1")
    assert len(content) == 6
    status, out, _ = _run(capsys, *words)
    assert status == 0 and "note kept-together: 1" in out
    assert "0.jpg: stays in one part with 3.jpg, 5.jpg" in out
    parts = [json.loads((folder / f"coco_{p}.json").read_text()) for p in ("train", "val")]
    held = [{e["file_name"] for e in part["images"]} for part in parts]
    assert any({"0.jpg", "3.jpg", "5.jpg"} <= names for names in held)
    assert "kept-together" not in _run(capsys, *words, "--no-twins")[1]
    image.save(folder / "in" / "3.jpg")
    (folder / "in" / "5.jpg").write_bytes((folder / "in" / "3.jpg").read_bytes())
    assert "3.jpg: stays in one part with 5.jpg" in _run(capsys, *words, "--no-twins")[1]


def test_several_sources(folder, capsys):
    samples.photo(folder / "more" / "a.jpg")
    samples.write(folder / "more" / "a.json", samples.labelme_content())
    output = folder / "coco.json"
    status, out, _ = _run(capsys, folder / "in", folder / "more", "--output", output)
    assert status == 0 and "read as via+labelme" in out
    images = json.loads(output.read_text())["images"]
    assert [e["file_name"] for e in images] == [*(f"in/{i}.jpg" for i in range(6)), "more/a.jpg"]


def test_all_findings(folder, capsys):
    words = (folder / "in", "--output", folder / "coco.json", "--class-key", "size")
    brief, full = _run(capsys, *words)[1], _run(capsys, *words, "--all-findings")[1]
    assert "warning no-class: 19" in brief and brief.count("region 0") == 1
    assert full.count("region 0") == 6


def test_names_do_not_steer_the_terminal(folder, capsys):
    content = samples.via_content(("0.jpg",))
    content["0.jpg123"]["regions"][0]["region_attributes"]["name"] = "a\x1b[31mb"
    content["x"] = {"filename": "\x1b[2J.jpg", "regions": []}
    source = samples.write(folder / "in" / "v.json", content)
    status, out, _ = _run(capsys, source, "--output", folder / "coco.json", "--all-findings")
    assert status == 0 and "a?[31mb" in out and "\x1b" not in out


MISTAKES = [
    (["nowhere"], "there is no such file or folder"),
    (["in/0.jpg"], "no known annotation format"),
    (["in", "--output", "in/via_region_data.json"], "would replace a file of yours"),
    (["in", "--output", "other.json"], "would replace a file of yours"),
    (["in", "--output", "in"], "is a folder"),
    (["in", "--output", "coco.txt"], "must end in .json"),
    (["in", "--split", "0.8"], "give the shares"),
    (["in", "--split", "0.8/nan"], "give the shares"),
    (["in", "--split", "1/-1"], "give the shares"),
    (["in", "--split", "1/1/1/1"], "give the shares"),
    (["in", "--group", "(", "--split", "1/1"], "not a regular expression"),
    (["in", "--class-map", "cat"], "is no old=new"),
    (["in", "--class-map", "bird=x"], "has no class 'bird'; it has cat, dog"),
    (["in", "--class-map", "in/via_region_data.json"], '"dropped": null'),
    (["in", "--classes", "a,b,a"], "each once"),
    (["in", "--classes", "nowhere.txt"], "there is no such file"),
    (["in", "--images", "nowhere"], "no such folder; correct --images"),
    (["in", "--line-width", "0"], "--line-width"),
    (["in", "--from", "coco"], "no COCO JSON files here"),
    (["in", "--extract-images"], "--extract-images is for labelme"),
]


@pytest.mark.parametrize(("words", "reason"), MISTAKES)
def test_mistakes(folder, capsys, monkeypatch, words, reason):
    monkeypatch.chdir(folder)
    samples.write(folder / "other.json", {"mine": 1})
    before = sorted(folder.rglob("*"))
    words = words if "--output" in words else [*words, "--output", "coco.json"]
    status, _, err = _run(capsys, *words)
    assert status == 2 and reason in err and "Traceback" not in err
    assert sorted(folder.rglob("*")) == before
    assert (folder / "other.json").read_text() == '{"mine": 1}'


def test_a_source_of_two_kinds_is_asked_about(folder, monkeypatch):
    monkeypatch.setattr(registry.FORMATS[1], "detect", lambda source: True)
    with pytest.raises(UserError, match="may be via and labelme; say which: --from via"):
        registry.read(folder / "in")


def test_a_full_disk_leaves_nothing(folder, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space"):
        conversion.convert([folder / "in"], folder / "out" / "coco.json")
    assert not [path for path in (folder / "out").iterdir()]
