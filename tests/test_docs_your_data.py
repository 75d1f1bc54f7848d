"""The commands of docs/your_data.md, run as they stand on real data or realistic samples."""

import json
import re
import shlex
from pathlib import Path

import format_samples as samples
import pytest

from maskrcnn_jax import cli
from maskrcnn_jax.data.coco import check_same_classes, load_coco

PAGE = Path(__file__).parents[1] / "docs" / "your_data.md"
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)


def _commands(block):
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


# What the page's sets are, in the folder of real data.
REAL = {
    "cars": "car_damage_via/train",
    "fruit": "labelme_date_fig_hazelnut",
    "furniture": "furniture_labelstudio",
    "mushrooms": "mushrooms_roboflow",
}


def _sample(name, folder):
    """A small set laid out as the page's set of that name."""
    pictures = [f"{i}.jpg" for i in range(6)]
    if name == "cars":
        content = {}
        for picture in pictures:
            content |= samples.via_content((picture,))
        samples.write(folder / "via_region_data.json", content)
    elif name == "fruit":
        for picture in pictures:
            content = samples.labelme_content(picture)
            samples.write(folder / picture.replace("jpg", "json"), content)
    elif name == "furniture":
        samples.write(folder / "label_studio.json", samples.labelstudio_content(pictures))
        folder /= "images"
    else:
        for part in ("train", "valid", "test"):
            copies = [f"{part}{i % 3}_jpg.rf.{i:032x}.jpg" for i in range(6)]
            content = samples.coco_content(copies)
            content["categories"].insert(0, {"id": 0, "name": "Mushrooms-DLcx"})
            samples.write(folder / part / "_annotations.coco.json", content)
            for i, picture in enumerate(copies):
                samples.photo(folder / part / picture, seed=i)
        return
    for i, picture in enumerate(pictures):
        samples.photo(folder / picture, seed=i)


def _run_block(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = {path for path in folder.rglob("*") if path.is_file()}
    for words in _commands(block):
        if words[:2] == ["maskrcnn", "convert"]:
            assert cli.main(words[1:]) == 0
        # What convert wrote is what the other commands name.
        for word in words:
            value = word.partition("=")[2] if word.startswith("--config.data") else word
            if value.endswith(".json") and "--output" not in words:
                assert Path(value).is_file(), f"{value} of {' '.join(words)}"
    written = {path for path in folder.rglob("*") if path.is_file()} - before
    assert written and all(path.parent == folder for path in written)
    return sorted(written)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: _commands(block)[0][2])
@pytest.mark.parametrize("kind", ["sample", "real"])
def test_the_convert_commands(block, kind, tmp_path, monkeypatch, request):
    name = Path(_commands(block)[0][2]).parts[0]
    if kind == "sample":
        _sample(name, tmp_path / name)
    else:
        (tmp_path / name).symlink_to(request.getfixturevalue("shared_data") / REAL[name])
    written = _run_block(block, tmp_path, monkeypatch)
    assert len(written) == 2
    names = [json.loads(path.read_text())["images"] for path in written]
    images = Path(name)
    for words in _commands(block):
        for word in words:
            if word.startswith("--config.data.train.images="):
                images = Path(word.partition("=")[2])
    if "parts" in block:  # each part has its own folder
        train, val = (
            load_coco(path, str(images / part))
            for path, part in zip(written, ("train", "valid"), strict=True)
        )
    else:
        train, val = (load_coco(path, str(images)) for path in written)
    check_same_classes(train, val)
    assert not {e["file_name"] for e in names[0]} & {e["file_name"] for e in names[1]}


def test_every_tool_has_its_three_commands():
    sections = [s for s in PAGE.read_text().split("\n## ") if "\nmaskrcnn convert" in s]
    assert len(sections) >= 4
    for section in sections:
        first = re.search(r"```sh\n(.*?)```", section, re.DOTALL).group(1)
        convert, inspect, train = _commands(first)
        assert convert[:2] == ["maskrcnn", "convert"] and inspect[:2] == ["maskrcnn", "inspect"]
        assert train[:4] == ["python", "main.py", "--config", "configs/finetune.py"]
        fields = dict(word[2:].split("=", 1) for word in train if word.startswith("--config."))
        assert "config.init.checkpoint" in fields
        for part in ("train", "val"):
            for field in ("annotations", "images"):
                assert fields[f"config.data.{part}.{field}"]


def test_every_option_is_there():
    """The options that the page names are those of the command."""
    text = PAGE.read_text()
    parser = cli._parser()
    help_text = (
        next(a for a in parser._actions if a.dest == "verb").choices["convert"].format_help()
    )
    for option in set(re.findall(r"`(--[a-z-]+)", text)):
        assert option in help_text, option
