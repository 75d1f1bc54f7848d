"""main.py as a user meets it: killed, stopped, out of disk, given nonsense, on two hosts."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_run

from maskrcnn_jax import checkpoint


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def undisturbed(cache, tmp_path_factory) -> Path:
    """The workdir of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = tiny_run.run(cache, tiny_run.arguments(workdir))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"cpu: 1 x cpu", done.stdout)
    assert "M parameters, 6 classes" in done.stdout
    assert re.search(r"compiled the training step for 96x96 .* GFLOPs, .* GiB", done.stdout)
    assert "base_lr 0.003 x batch 2 / base_batch 16" in done.stdout
    return workdir


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, by item and path, as it lies on the disk."""
    found = {}
    for item in checkpoint.ARRAYS:
        folder = workdir.absolute() / "checkpoints" / str(step) / item
        shapes = checkpoint.read_shapes(folder.parent, item)
        leaf = lambda x: isinstance(x, tuple)  # noqa: E731
        args = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), shapes, is_leaf=leaf)
        tree = ocp.PyTreeCheckpointer().restore(
            folder, args=ocp.args.PyTreeRestore(restore_args=args)
        )
        for path, value in jax.tree_util.tree_leaves_with_path(tree):
            found[item + jax.tree_util.keystr(path)] = np.asarray(value)
    return found


def test_a_run_leaves_what_it_promises(undisturbed):
    assert (undisturbed / "config.json").exists()
    steps = checkpoint.complete_steps(undisturbed / "checkpoints")
    assert steps[-2:] == [8, 12] and set(steps) <= {6, 8, 12}  # the last two, and the best
    report = json.loads((undisturbed / "eval" / "metrics.json").read_text())
    assert {f"{i}/{k}" for i in ("bbox", "segm") for k in ("AP", "AP50", "APs")} <= set(report)
    assert report["images"] == 5
    results = json.loads((undisturbed / "eval" / "results.json").read_text())
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} <= set(results[0])
    assert len(list((undisturbed / "eval" / "pictures").glob("*.png"))) == 2
    assert list((undisturbed / "tensorboard").glob("events*"))
    assert [line["step"] for line in tiny_run.metrics(undisturbed)] == [3, 6, 6, 9, 12, 12]


def test_killed_runs_end_bitwise_equal(cache, undisturbed, tmp_path):
    faults = {
        "kill_at(3)": -9,  # before the first checkpoint
        "failing_precision()": 1,  # the evaluation of step 6
        "unending_precision(); kill_at(7)": -9,
        "kill_in_write(8)": -9,
        "kill_at(12)": -9,
    }
    for fault, status in faults.items():
        killed = tiny_run.run(cache, tiny_run.arguments(tmp_path), fault)
        assert killed.returncode == status, killed.stdout + killed.stderr
        assert ("RuntimeError: an odd annotation" in killed.stderr) == (status == 1)
    last = tiny_run.run(cache, tiny_run.arguments(tmp_path))
    assert last.returncode == 0, last.stderr
    assert re.search(r"resuming at step \d+ of 12", last.stdout)
    assert tiny_run.metrics(tmp_path) == tiny_run.metrics(undisturbed)
    ours, theirs = arrays(tmp_path, 12), arrays(undisturbed, 12)
    assert ours.keys() == theirs.keys() and len(ours) > 300
    for name in ours:
        assert ours[name].tobytes() == theirs[name].tobytes(), name


def test_sigterm_saves_and_leaves_and_changes_are_listed(cache, tmp_path):
    stopped = tiny_run.run(cache, tiny_run.arguments(tmp_path), "kill_at(3, 'SIGTERM')")
    assert stopped.returncode == 1
    assert "asked to stop: step 3 is saved" in stopped.stderr
    assert checkpoint.complete_steps(tmp_path / "checkpoints") == [3]

    other = tiny_run.run(cache, tiny_run.arguments(tmp_path, "model.mask_channels=8"))
    assert other.returncode == 2
    assert "cannot go on with another model.mask_channels (was 16, is 8)" in other.stderr

    # Without evaluations, whose own files would be the first not to be written.
    argv = tiny_run.arguments(tmp_path, "data.flip=0.25", "eval.every=0")
    failed = tiny_run.run(cache, argv, "full_disk_at(8)")
    assert "resuming at step 3 of 12" in failed.stdout
    assert "config.data.flip: 0.5 -> 0.25" in failed.stdout
    assert failed.returncode == 2, failed.stderr
    assert "Traceback" not in failed.stderr
    assert re.search(r"could not be written .* the last good one is step 4", failed.stderr)
    assert checkpoint.complete_steps(tmp_path / "checkpoints")[-1] == 4


def test_a_loss_that_is_not_finite_is_recorded_and_replayed(cache, tmp_path):
    bad = tiny_run.run(cache, tiny_run.arguments(tmp_path), "overflow_at(3)")
    assert bad.returncode == 1, bad.stdout + bad.stderr
    found = re.search(
        r"step (\d+): the loss or its gradient is not finite \((.*)\); image ids \[(.*)\]",
        bad.stderr,
    )
    assert found and len(found[3].split(",")) == 2
    report = json.loads((tmp_path / "flight" / "report.json").read_text())
    assert report["step"] == int(found[1]) == 3

    again = tiny_run.run(cache, tiny_run.arguments(tmp_path, mode="replay", config="-"))
    assert again.returncode == 0, again.stderr
    pairs = re.findall(r"^(\w+): (\S+) now, (\S+) then$", again.stdout, re.MULTILINE)
    assert {"loss", "rpn_cls", "mask", "grad_norm"} <= {name for name, *_ in pairs}
    for name, now, then in pairs:
        assert now == then, name


def test_evaluate_rerun_and_initialise(cache, undisturbed, tmp_path):
    before = json.loads((undisturbed / "eval" / "metrics.json").read_text())
    argv = tiny_run.arguments(undisturbed, mode="evaluate", config=undisturbed / "config.json")
    done = tiny_run.run(cache, argv)
    assert done.returncode == 0, done.stderr
    after = json.loads((undisturbed / "eval" / "metrics.json").read_text())
    best = checkpoint.best_step(undisturbed / "checkpoints")
    assert after["step"] == best
    if best == before["step"]:
        assert after == before

    argv = tiny_run.arguments(tmp_path, f"init.checkpoint={undisturbed}", "train.num_steps=1")
    assert tiny_run.run(cache, argv).returncode == 0
    argv = tiny_run.arguments(
        tmp_path / "b", f"init.checkpoint={undisturbed}", "model.width=16", "init.part=backbone"
    )
    refused = tiny_run.run(cache, argv)
    assert refused.returncode == 2
    assert "backbone/" in refused.stderr and "another architecture" in refused.stderr


def test_evaluate_with_test_time_augmentation(cache, undisturbed, tmp_path):
    fields = (f"init.checkpoint={undisturbed}", "eval.tta_short=64,48", "eval.tta_long=96")
    argv = tiny_run.arguments(tmp_path, *fields, "eval.tta_flip=true", mode="evaluate")
    done = tiny_run.run(cache, argv)
    assert done.returncode == 0, done.stderr
    canvases = compiled(done.stdout + done.stderr, "prediction of boxes")
    assert canvases and len(set(canvases)) == len(canvases)
    assert canvases == compiled(done.stdout + done.stderr, "prediction of masks")
    assert "segm/AP" in json.loads((tmp_path / "eval" / "metrics.json").read_text())


def compiled(output: str, name: str) -> list[str]:
    """The canvases that the log says a program was compiled for."""
    return re.findall(rf"compiled the {name} for (\d+x\d+)", output)


def test_each_canvas_is_compiled_once_and_runs_end_early(cache, tmp_path):
    """Evaluations that are all equal, as no picture has a large object."""
    done = tiny_run.run(
        cache,
        tiny_run.arguments(
            tmp_path,
            "data.canvases=((64,96),(96,96))",
            "data.short=(56,64)",
            "data.shapes_val=8",
            "train.best_metric=segm/APl",
            "train.early_stop=1",
            "eval.every=8",
            "train.num_steps=40",
        ),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("training step", "prediction"):
        canvases = compiled(done.stdout, name)
        assert sorted(canvases) == ["64x96", "96x96"], (name, canvases)
    assert "no better segm/APl in the last 1 evaluations: the run ends early, at step 16" in (
        done.stdout
    )
    assert [line["step"] for line in tiny_run.metrics(tmp_path)] == [3, 6, 8, 9, 12, 15, 16]


def test_large_scale_jitter_trains_on_one_canvas(cache, tmp_path):
    jitter = ("data.lsj_scale=(0.1,2.0)", "data.lsj_size=96", "train.num_steps=6")
    done = tiny_run.run(cache, tiny_run.arguments(tmp_path, *jitter))
    assert done.returncode == 0, done.stdout + done.stderr
    assert compiled(done.stdout, "training step") == ["96x96"]
    line = tiny_run.metrics(tmp_path)[0]
    assert np.isfinite(line["loss"]) and line["instances"] > 0


def test_two_hosts_agree_with_one(cache, undisturbed, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hosts = [
        subprocess.Popen(
            [sys.executable, "main.py", *tiny_run.arguments(tmp_path)],
            env=tiny_run.environment(
                cache,
                JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
                JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(i),
                JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo",
            ),
            cwd=tiny_run.ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]
    output = [host.communicate(timeout=600)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(output)
    assert "2 x cpu" in output[0] and "2 host(s)" in output[0]
    ours, theirs = tiny_run.metrics(tmp_path), tiny_run.metrics(undisturbed)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    # The first steps alone: AdamW's are the signs of gradients, and where these are zero but for
    # rounding, hosts go apart.
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-4)
    report = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert report["images"] == 5
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    expected = json.loads((undisturbed / "eval" / "results.json").read_text())
    # 5 images in batches of 2: the padded row is on one host alone, and counted by none.
    count = lambda entries: {e["image_id"] for e in entries}  # noqa: E731
    assert count(results) == count(expected)
    keys = [(e["image_id"], tuple(e["bbox"]), e["category_id"]) for e in results]
    assert len(set(keys)) == len(keys)
