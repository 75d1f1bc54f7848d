"""The benchmarks run, at a size that tells nothing about speed."""

import json

import jax
import numpy as np
import pytest

from benchmarks import compiling, evaluation, run, timing, train_step
from benchmarks.timing import Case, Figures, Setting, Skipped
from maskrcnn_jax import results


@pytest.mark.slow
def test_training_step_benchmark(tmp_path):
    sizes = f"--depth 18 --width 8 --channels 16 --rois 16 --height 64 --width-px 96 --steps 3 \
        --batch {jax.device_count()} --dtype float32"
    figures = train_step.main([*sizes.split(), "--output", str(tmp_path / "figures.json")])
    assert figures["all_finite"] and figures["steps"] == 3
    assert figures["compiled_programs"] == 1
    assert json.loads((tmp_path / "figures.json").read_text()) == figures


SUBJECTS = {
    "inference,train_step": 3,
    "roi_align,nms,matching,paste": 7,
    "input,coco_eval": 5 + len(results.engines()),
}


@pytest.mark.parametrize("what", SUBJECTS)
def test_subjects_run_and_are_written(tmp_path, what):
    path = tmp_path / "results" / "report.json"
    report = run.main(["--small", "--rounds", "2", "--what", what, "--json", str(path)])
    assert json.loads(path.read_text()) == report
    assert list(path.parent.iterdir()) == [path]
    assert len(report["results"]) == SUBJECTS[what]
    for found in report["results"]:
        assert found["rounds"] == 2 and set(found["seconds"]) == {"ours", *found["ratio"]}


def test_absent_peer_and_absent_package_are_named(tmp_path, monkeypatch, capsys):
    def lacks(setting):
        raise ImportError("No module named 'tensorflow'")

    monkeypatch.setattr("benchmarks.operations.nms", lacks)
    monkeypatch.setattr("benchmarks.peers_torch.require", lambda name, threads: lacks(None))
    report = run.main(["--small", "--what", "nms", "--json", str(tmp_path / "report.json")])
    assert report["skipped"] == dict.fromkeys(
        ("torchvision", "detectron2"), "No module named 'tensorflow'"
    )
    assert report["results"] == [{"case": "nms", "skipped": "No module named 'tensorflow'"}]
    assert "nms      skipped: No module named 'tensorflow'" in capsys.readouterr().out


def test_unknown_subject_is_refused():
    with pytest.raises(SystemExit, match="no subject flop; there are inference, train_step"):
        run.main(["--what", "flop"])


def test_calls_alternate_and_ratios_are_of_the_same_round(monkeypatch):
    calls, clock = [], iter(range(0, 1000))
    monkeypatch.setattr("time.perf_counter", lambda: sum(next(clock) for _ in range(len(calls))))
    case = Case("x", lambda: calls.append("ours"), {"peer": lambda: calls.append("peer")}, images=4)
    found = timing.measure(case, rounds=3, warm_up=2)
    assert calls == ["ours"] * 2 + ["peer"] * 2 + ["ours", "peer"] * 3
    median, low, high = found["ratio"]["peer"]
    assert low <= median <= high
    assert found["images_per_second"]["ours"] == 4 / found["seconds"]["ours"]


def test_table_tells_figures_notes_and_gaps():
    entries = [
        timing.measure(Figures("memory", {"peak, MiB": 12.345678}, note="of this process"), 5),
        timing.measure(Skipped("input", "no module"), 5),
    ]
    assert timing.rows(entries) == [
        ["memory: peak, MiB", "12.35", "", ""],
        ["", "", "of this process", ""],
        ["input", "", "skipped: no module", ""],
    ]


def test_memory_is_that_of_one_side_in_each_process(monkeypatch):
    def child(setting, what, side, cache):
        sides.append((what, side))
        return {"peak_mib": 2.0, "imports_mib": 1.0, "device_mib": 0}

    sides = []
    monkeypatch.setattr(compiling, "_child", child)
    found = list(compiling.memory(Setting(peers=frozenset({"detectron2", "torchvision"}))))
    assert sides == [(w, s) for w in ("inference", "train_step") for s in compiling.SIDES]
    assert found[0].values["detectron2: peak, MiB"] == 2


def test_evaluation_scenes_are_matched_in_part():
    truth, found = evaluation.scenes(12)
    metrics = results.evaluate_coco(truth, found, engine="pycocotools").metrics
    assert 0.05 < metrics["bbox/AP"] < metrics["bbox/AP50"] < 1
    assert np.isfinite(list(metrics.values())).all()
