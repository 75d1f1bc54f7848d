"""The commands of docs/your_data.md, run as they stand on real data or realistic samples."""

import json
import re
import shlex
from pathlib import Path

import docs_samples
import pytest

from configs import common
from maskrcnn_jax import cli
from maskrcnn_jax import config as config_lib
from maskrcnn_jax.data.coco import check_same_classes, load_coco

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "your_data.md"
_FENCED = r"```sh\n(.*?)```(?:(?:(?!\n## |```).)*?```text\n(.*?)```)?"
# Each block of commands, and what the page says that it prints, if it does.
PAIRS = re.findall(_FENCED, PAGE.read_text(), re.DOTALL)

# What the page's sets are, in the folder of real data.
REAL = {
    "cars": "car_damage_via/train",
    "fruit": "labelme_date_fig_hazelnut",
    "furniture": "furniture_labelstudio",
    "mushrooms": "mushrooms_roboflow",
    "coco128": "coco128_seg",
}


def _commands(block):
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


def _converts(block):
    return [words[1:] for words in _commands(block) if words[:2] == ["maskrcnn", "convert"]]


def _set(block):
    """The page's name of the set that a block converts."""
    return Path(_converts(block)[0][1]).parts[0]


def _name(pair):
    return " ".join(_converts(pair[0])[0][1:4:2])


def _fields(block):
    """The config's fields that the training line of a block sets; none without such a line."""
    lines = [w for w in _commands(block) if "--config.init.checkpoint" in " ".join(w)]
    words = lines[0] if lines else ()
    return dict(w.removeprefix("--config.").split("=", 1) for w in words if "--config." in w)


def _run(block, folder, monkeypatch, capsys, inspects):
    """Runs convert, and inspect if asked; returns the JSON files that were written."""
    monkeypatch.chdir(folder)
    before = {path for path in folder.rglob("*") if path.is_file()}
    printed = ""
    for words in _commands(block):
        if words[:2] == ["maskrcnn", "convert"]:
            assert cli.main(words[1:]) == 0
            printed += capsys.readouterr().out
        elif words[:2] == ["maskrcnn", "inspect"] and inspects:
            assert cli.main(words[1:]) == 0
            assert Path(words[words.index("--html") + 1]).stat().st_size > 1000
        # What convert wrote is what the other commands name.
        for word in words:
            value = word.partition("=")[2] if word.startswith("--config.data") else word
            if value.endswith(".json") and "--output" not in words:
                assert Path(value).is_file(), f"{value} of {' '.join(words)}"
    written = {path for path in folder.rglob("*") if path.is_file()} - before
    assert written and all(path.parent == folder for path in written)
    return sorted(path for path in written if path.suffix == ".json"), printed


def _check(block, folder, written):
    """Both parts can be trained on, with one table of classes and no picture in both."""
    assert len(written) == 2
    names = [{e["file_name"] for e in json.loads(path.read_text())["images"]} for path in written]
    assert not names[0] & names[1]
    fields = _fields(block)
    if fields:
        images = [fields[f"data.{part}.images"] for part in ("train", "val")]
        named = [fields[f"data.{part}.annotations"] for part in ("train", "val")]
        assert named == [path.name for path in written]
    else:  # each part has its own folder
        images = [str(Path(_set(block)) / part) for part in ("train", "valid")]
    train, val = (load_coco(path, i) for path, i in zip(written, images, strict=True))
    check_same_classes(train, val)


def _check_printed(expected, printed):
    lines = {" ".join(line.split()) for line in printed.splitlines()}
    for line in expected.splitlines():
        assert " ".join(line.split()) in lines, f"the page says that it prints {line!r}"


@pytest.mark.parametrize("pair", PAIRS, ids=_name)
def test_on_a_sample(pair, tmp_path, monkeypatch, capsys):
    block, expected = pair
    name = _set(block)
    docs_samples.write(name, tmp_path / name)
    written, printed = _run(block, tmp_path, monkeypatch, capsys, inspects=True)
    _check(block, tmp_path, written)
    if name not in REAL:
        _check_printed(expected, printed)


@pytest.mark.parametrize("pair", [p for p in PAIRS if _set(p[0]) in REAL], ids=_name)
def test_on_real_data(pair, tmp_path, monkeypatch, capsys, shared_data):
    block, expected = pair
    (tmp_path / _set(block)).symlink_to(shared_data / REAL[_set(block)])
    written, printed = _run(block, tmp_path, monkeypatch, capsys, inspects=False)
    _check(block, tmp_path, written)
    _check_printed(expected, printed)


@pytest.mark.parametrize("pair", PAIRS, ids=_name)
def test_the_other_lines_are_sound(pair, tmp_path, monkeypatch):
    """Training lines give a config without a mistake; predictions are of the run trained before."""
    monkeypatch.chdir(tmp_path)
    runs = set()
    for words in _commands(pair[0]):
        if words[0] == "python":
            assert words[1:3] == ["main.py", "--config"] and words[4] == "--workdir"
            overrides = [w.removeprefix("--config.") for w in words[6:]]
            config = config_lib.load(ROOT / words[3], overrides, schema=common.get_config())
            assert config_lib.validate(config, "train") == []
            if config.init.checkpoint.startswith("runs/"):
                assert config.init.checkpoint == "runs/shapes"
            runs.add(words[5])
        else:
            args = cli._parser().parse_args(words[1:])
            if args.verb == "predict":
                assert args.weights in runs


def test_every_tool_has_its_three_commands():
    sections = [s for s in PAGE.read_text().split("\n## ") if "\nmaskrcnn convert" in s]
    assert len(sections) >= 11
    for section in sections:
        blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
        for number, block in enumerate(blocks):
            commands = [words for words in _commands(block) if words[-1] != "runs/shapes"]
            if number and len(commands) == 2 == len(_converts(block)):
                continue  # of parts that stay apart
            convert, inspect, train = commands[:3]
            assert convert[:2] == ["maskrcnn", "convert"] and inspect[:2] == ["maskrcnn", "inspect"]
            assert train[3].startswith("configs/finetune") and _fields(block)["init.checkpoint"]
    whole = [block for block, _ in PAIRS if "maskrcnn predict" in block]
    assert {"cars", "fruit"} <= {_set(block) for block in whole}


def test_every_format_has_its_section():
    """The formats of convert are those of the page."""
    from maskrcnn_jax.data.formats import registry

    told = set(re.findall(r"^read as (\S+)$", PAGE.read_text(), re.MULTILINE))
    told |= {"via", "labelme", "labelstudio", "coco"}  # their real sets are shown from the table on
    assert told == set(registry.names())


def test_every_option_is_there():
    """The options that the page names are those of the command."""
    text = PAGE.read_text()
    parser = cli._parser()
    help_text = (
        next(a for a in parser._actions if a.dest == "verb").choices["convert"].format_help()
    )
    for option in set(re.findall(r"`(--(?!config)[a-z-]+)", text)):
        assert option in help_text, option
