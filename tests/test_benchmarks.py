"""The benchmarks run, at a size that tells nothing about speed."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    compiling,
    counting,
    evaluation,
    gpu,
    kernels,
    race,
    race_data,
    run,
    stages,
    start,
    timing,
    train_step,
)
from benchmarks.soak import memory_mib
from benchmarks.timing import Case, Figures, Setting, Skipped
from maskrcnn_jax import results

ROOT = Path(__file__).parents[1]


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
        if side == "ours":  # the second finds what the first compiled
            caches.append(cache)
        return {"peak_mib": 2.0, "imports_mib": 1.0, "device_mib": 0}

    sides, caches = [], []
    monkeypatch.setattr(compiling, "_child", child)
    found = list(compiling.memory(Setting(peers=frozenset({"detectron2", "torchvision"}))))
    started = ("ours", *compiling.SIDES)
    assert sides == [(what, side) for what in ("inference", "train_step") for side in started]
    assert all(caches) and caches[0] == caches[1] != caches[2] == caches[3]
    assert found[0].values["detectron2: peak, MiB"] == 2


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_peak_of_memory_is_a_processs_own():
    """Not that of the process which started it, as getrusage has it."""
    command = "from benchmarks.soak import memory_mib; print(memory_mib('self', 'VmHWM'))"
    child = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 1 < float(child.stdout) < memory_mib("self", "VmHWM") / 4  # here JAX is loaded


def test_a_run_that_never_starts_is_not_waited_for(capsys):
    with pytest.raises(SystemExit, match=r"nowhere\.py"):
        start.main(["--config", "nowhere.py", "--rounds", "1"])


def test_evaluation_scenes_are_matched_in_part():
    truth, found = evaluation.scenes(12)
    metrics = results.evaluate_coco(truth, found, engine="pycocotools").metrics
    assert 0.05 < metrics["bbox/AP"] < metrics["bbox/AP50"] < 1
    assert np.isfinite(list(metrics.values())).all()


def test_products_are_counted_as_by_xla_and_loops_as_often_as_they_run():
    x, kernel = jnp.ones((2, 16, 16, 8)), jnp.ones((3, 3, 8, 4))

    def convolve(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        padding = ((0, 0), (0, 0))
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), padding, dimension_numbers=dimensions
        )

    forward = 2 * (2 * 7 * 7 * 4) * 3 * 3 * 8
    assert counting.count(convolve, x, kernel).flops == forward
    analysis = jax.jit(convolve).lower(x, kernel).compile().cost_analysis()
    assert forward == pytest.approx(analysis["flops"], rel=0.01)
    gradient = jax.grad(lambda *args: (convolve(*args) ** 2).sum(), (0, 1))
    # The gradient of the input is counted on its own grid, whose last line no window reaches.
    assert counting.count(gradient, x, kernel).flops == pytest.approx(3 * forward, rel=0.35)

    unused = lambda x, kernel: (convolve(x, kernel), kernel.sum())[1]  # noqa: E731
    assert counting.count(unused, x, kernel).flops == 0

    a = jnp.ones((5, 32, 32))
    looped = counting.count(lambda a: jax.lax.map(lambda b: b @ b, a), a)
    assert looped.flops == 5 * 2 * 32**3
    assert 4 < looped.loops < 5.5


def test_branches_by_platform_count_for_that_platform():
    def either(a):
        twice = lambda a: a @ a @ a  # noqa: E731
        return jax.lax.platform_dependent(a, cpu=lambda a: a @ a, default=twice)

    a = jnp.ones((8, 8))
    assert counting.count(either, a, platform="cpu").flops == 2 * 8**3
    assert counting.count(either, a, platform="cuda").flops == 4 * 8**3


def test_kernels_are_summed_by_name_and_by_part():
    stream = {"ph": "M", "pid": 1, "tid": 7, "name": "thread_name"}
    span = {"ph": "X", "pid": 1, "tid": 7}
    events = [
        stream | {"args": {"name": "Stream #7(Compute)"}},
        span | {"name": "gemm", "ts": 0.0, "dur": 30.0, "args": {"hlo_op": "dot.1"}},
        span | {"name": "gemm", "ts": 20.0, "dur": 40.0, "args": {"hlo_op": "dot.2"}},
        span | {"name": "copy", "ts": 90.0, "dur": 10.0},
        span | {"name": "XLA Module", "tid": 8, "ts": 0.0, "dur": 99.0},
    ]
    hlo = """%dot.1 = f32[] dot(), metadata={op_name="jit(step)/M.features/fpn/x"}
    ROOT dot.2 = f32[] dot(), metadata={op_name="jit(step)/MaskRCNN.boxes/y" id=3}"""
    source = kernels.sources(hlo)
    device = kernels.of_device(events)
    first, second = kernels.top(device, source)
    assert (first["kernel"], first["calls"], first["ms"]) == ("gemm", 2, 0.07)
    assert first["source"].endswith("boxes/y") and second["share"] == 10 / 80
    assert kernels.by_part(device, source) == {
        "ROIAlign": 40 / 80,
        "FPN": 30 / 80,
        "no name": 10 / 80,
    }
    assert kernels.busy(device) == 0.7


def test_profiler_writes_what_is_read():
    x = jnp.ones((300, 300))
    work = jax.jit(lambda x: jnp.sin(x) @ x)
    work(x)
    assert kernels.trace(lambda: work(x).block_until_ready())


def test_stage_under_its_roof():
    found = counting.Count(1e9, 2e6, 1e6)
    peaks = {"product": 1e12, "copy": 1e9}
    row = stages.row("x", 0.005, found, [{"flops": 5.0, "bytes accessed": 1e6}], peaks)
    assert row["gflop"] == 1 and row["gbyte"] == 2e-3 and row["bound"] == "memory"
    assert row["roof_ms"] == pytest.approx(2) and row["of_product_peak"] == pytest.approx(0.2)
    assert stages.row("x", 0.05, found, {}, peaks)["bound"] == "neither"
    assert stages.nominal_peak("NVIDIA H100 80GB HBM3") > stages.nominal_peak("NVIDIA H100 PCIe")


def test_chain_gets_what_its_stages_made():
    def chain():
        doubled = yield 1
        yield doubled + 1

    assert list(stages.follow(chain(), lambda stage: (2 * stage, f"{stage}!"))) == ["1!", "3!"]


@pytest.mark.slow
def test_stages_run_and_are_written(tmp_path):
    path = tmp_path / "stages.json"
    report = stages.main(["--small", "--rounds", "1", "--json", str(path)])
    assert json.loads(path.read_text()) == report
    assert report["step"]["layers_gflop_per_image"] < report["step"]["gflop_per_image"]
    assert len(report["step"]["kernels"]) == 10
    names = [row["stage"] for row in report["stages"]]
    assert len(names) == 11 + 10 and names[-1] == "all of prediction"


def test_race_takes_turns_and_tells_who_was_first(tmp_path, monkeypatch):
    calls = []

    def side(name):
        def train(numbers):
            calls.append((name, tuple(numbers)))
            return [{"loss": np.float32(n)} for n in numbers]

        return SimpleNamespace(name=name, train=train)

    ap = iter([0.2, 0.1, 0.4, 0.4])
    report = {"curves": {}, "first_losses": {}}
    sides = [side("ours"), side("torchvision")]
    race.race(sides, [3, 1, 2], 2, lambda _: {"segm_ap": next(ap)}, report, output=tmp_path / "out")
    assert calls == [(s, n) for n in ((3, 1), (2,)) for s in ("ours", "torchvision")]
    assert [p["step"] for p in report["curves"]["ours"]] == [2, 3]
    assert report["first_losses"]["ours"] == [{"loss": 3.0}, {"loss": 1.0}]
    assert json.loads((tmp_path / "out" / "race.json").read_text()) == report

    late = {"curves": {}, "first_losses": {}}
    grader = lambda _: {"segm_ap": time.sleep(0.01) or 0.1}  # noqa: E731
    race.race(sides, [0] * 500, 1, grader, late, time.monotonic() + 0.5)
    assert "out of time" in late["ended"] and 0 < len(late["curves"]["ours"]) < 500


def test_race_is_told_in_a_sentence():
    ours = [{"step": s, "seconds": 10.0 * s, "segm_ap": 0.1 * s} for s in (1, 2, 3)]
    peer = [{"step": s, "seconds": 30.0 * s, "segm_ap": 0.1 * s} for s in (1, 2, 3)]
    assert race.seconds_to(ours, 0.25) == pytest.approx(25)
    assert race.seconds_to(ours, 0.4) is None
    text = race.sentence({"ours": ours, "torchvision": peer})
    assert text.endswith("to mask AP 0.300: ours 30.0 s, torchvision 90.0 s, 3.00 times as fast")
    assert race.sentence({"ours": ours}) == "mask AP after 3 steps: ours 0.300 in 30.0 s"
    order = race.batch_order(4, 10)
    assert len(order) == 10 and sorted(order[:4]) == sorted(order[4:8]) == [0, 1, 2, 3]


def test_race_pictures_match_their_annotations():
    pictures = race_data.draw("val", 2, 64)
    batch, truth = race_data.batch(pictures), race_data.annotations(pictures)
    assert batch.images.shape == (2, 64, 64, 3) and batch.gt_valid.sum() == len(
        truth["annotations"]
    )
    perfect = [row | {"score": 1.0} for row in truth["annotations"]]
    metrics = results.evaluate_coco(truth, perfect).metrics
    assert metrics["segm/AP"] == metrics["bbox/AP"] == pytest.approx(1)


@pytest.mark.slow
def test_race_runs_small(tmp_path):
    report = race.main(["--small", "--output", str(tmp_path)])
    assert [p["step"] for p in report["curves"]["ours"]] == [2, 4]
    if "torchvision" in report["first_losses"]:
        ours, peer = (report["first_losses"][name][0] for name in ("ours", "torchvision"))
        # All proposals are sampled, so that these do not depend on the samplers.
        assert [ours[k] for k in ("cls", "box")] == pytest.approx(
            [peer[k] for k in ("cls", "box")], rel=0.01
        )


def test_jobs_have_their_limits_and_failures_their_place(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "_LEAST", 0)
    sleep = ["timeit", "-n1", "-r1", "import time; time.sleep(60)"]
    jobs = [
        gpu.Job("late", sleep, 1),
        gpu.Job("wrong", ["no_such_module"], 10, ("--less",)),
        gpu.Job("good", ["timeit", "-n1", "-r1", "pass"], 100),
    ]
    report = {"date": "d", "commit": "c", "machine": "m", "devices": ["x"], "versions": {}}
    (tmp_path / "good.json").write_text(json.dumps(report | {"skipped": {}}))
    summary = gpu.run_all(jobs, tmp_path, 100)
    ended = {name: [x["ended"] for x in found] for name, found in summary["jobs"].items()}
    assert ended["late"][0].startswith("ran over its") and len(ended["late"]) == 1
    assert ended["wrong"] == ["failed, code 1"] * 2 and ended["good"] == ["well"]
    assert "No module named no_such_module" in summary["jobs"]["wrong"][0]["last"][-1]
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["devices"] == ["x"]


def test_jobs_end_with_the_budget(tmp_path):
    summary = gpu.run_all(gpu.jobs(tmp_path, small=True), tmp_path, 1)
    assert {x["ended"] for found in summary["jobs"].values() for x in found} == {"no time left"}
    assert list(summary["jobs"])[0] == "train_800x1344"
