"""benchmarks.own_data: every oddity known of the real sets is found; the table tells what ran."""

import contextlib
import io
import json
from pathlib import Path

import format_samples as samples
import pytest

from benchmarks import own_data, own_data_cases
from benchmarks.own_data_cases import CASES, Case
from configs import common
from maskrcnn_jax import cli
from maskrcnn_jax import config as config_lib


def _in_process(words):
    """Convert and inspect without processes of their own; training leaves nothing but a log."""
    if words[0] == "main.py":
        fields = dict(w.removeprefix("--config.").split("=", 1) for w in words if "=" in w)
        assert Path(fields["data.train.annotations"]).is_file()
        assert Path(fields["data.val.images"]).is_dir()
        overrides = [w.removeprefix("--config.") for w in words[5:]]
        config = config_lib.load(own_data.ROOT / words[2], overrides, schema=common.get_config())
        assert config_lib.validate(config, "train") == [] and config.eval.at_start
        workdir = Path(words[words.index("--workdir") + 1])
        assert not workdir.exists()
        lines = [
            {"step": 0, "segm/AP": 0.0, "segm/AP50": 0.0},
            {"step": 5, "loss": 1.0, "dropped_instances": 0.0},
            {"step": 5, "segm/AP": 0.25, "segm/AP50": 0.5},
        ]
        samples.write(workdir / "metrics.jsonl", "\n".join(map(json.dumps, lines)))
        samples.write(workdir / "fields.json", fields)
        return 0, "done"
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = cli.main(words[2:])
    return status, out.getvalue()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_that_is_odd_is_found(case, shared_data, tmp_path):
    words = ["--data", shared_data, "--output", tmp_path, "--only", case.name, "--steps", "0"]
    assert own_data.main([*map(str, words)]) == 0
    (row,) = json.loads((tmp_path / "own_data.json").read_text())["rows"]
    assert row["failed"] == [] and [o["found"] for o in row["odd"]] == [True] * len(case.odd)
    if case.converts:
        assert not any(name.startswith("error") for name in row["after_convert"])
        assert all(row["images"]) and all(row["instances"]) and row["classes"]
    if case.name == "mushrooms_roboflow":
        assert row["most"] == 318  # as its notes say


def _sets(folder):
    for i in range(6):
        samples.photo(folder / "cars" / f"{i}.jpg", seed=i)
    content = samples.via_content([f"{i}.jpg" for i in range(2)])
    for i in range(2, 6):
        content[f"{i}"] = {"filename": f"{i}.jpg", "regions": content["0.jpg123"]["regions"]}
    samples.write(folder / "cars" / "via_region_data.json", content)


def test_the_tables(tmp_path, monkeypatch, capsys):
    _sets(tmp_path)
    odd = (("points", "point", 1), ("no such thing", "leak", 0))
    cases = (
        Case("cars", "cars", split="0.5/0.5", odd=odd, note="noise"),
        Case("gone", "gone"),
        Case("text", "cars", ("0.jpg",), odd=(("no annotations", "refused: no known", 1),)),
    )
    monkeypatch.setattr(own_data, "CASES", cases)
    monkeypatch.setattr(own_data, "_call", _in_process)
    words = ["--data", str(tmp_path), "--output", str(tmp_path / "out"), "--steps", "5"]
    words += ["--set", "optim.base_lr=0.5"]
    assert own_data.main([*words, "--only", "cars,gone"]) == 1  # one oddity is not found
    out = capsys.readouterr().out
    assert "gone: left out" in out and "- cars: noise." in out
    assert "| cars | 3 + 3 |" in out and "| 0.000 -> 0.250 | 0.000 -> 0.500 | 0 |" in out
    assert "| cars | no such thing | leak | some | 0 | NO |" in out
    fields = json.loads((tmp_path / "out" / "cars" / "scratch_1" / "fields.json").read_text())
    assert fields["optim.base_lr"] == "0.5" and fields["train.num_steps"] == "5"
    assert "init.checkpoint" not in fields
    # A second run begins anew, and names what it starts from.
    own_data.main([*words, "--only", "cars", "--init", str(tmp_path)])
    fields = json.loads((tmp_path / "out" / "cars" / "tuned_1" / "fields.json").read_text())
    assert fields["init.checkpoint"] == str(tmp_path)
    own_data.main([*words, "--only", "cars", "--init", str(tmp_path)])
    assert (tmp_path / "out" / "cars" / "tuned_2").is_dir()
    with pytest.raises(SystemExit, match="no case car; there are cars, gone, text"):
        own_data.main([*words, "--only", "car"])


def test_a_command_that_fails_is_told(tmp_path, monkeypatch, capsys):
    _sets(tmp_path)
    monkeypatch.setattr(own_data, "CASES", (Case("cars", "cars", split="0.5/0.5"),))

    def fail(words):
        return (3, "out of memory\n") if words[0] == "main.py" else _in_process(words)

    monkeypatch.setattr(own_data, "_call", fail)
    assert own_data.main(["--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "- cars: FAILED: train: out of memory" in capsys.readouterr().out
    assert "exit status 3" in (tmp_path / "out" / "cars" / "log.txt").read_text()


def test_every_set_is_there_once():
    assert len({case.name for case in own_data_cases.CASES}) == len(own_data_cases.CASES)
