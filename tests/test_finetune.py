"""A whole fine-tuning run by main.py: other classes, epochs, stages, killed and gone on."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_model
import tiny_run

from maskrcnn_jax import checkpoint, train
from maskrcnn_jax.data.scenes import CATEGORIES
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import importer

OURS = [CATEGORIES[i] for i in sorted(CATEGORIES)]
FIELDS = (
    "model.depth=34",  # another than the weights': theirs is taken
    "model.freeze_at=1",
    "init.heads=match",
    "optim.stages=((0.0,'^(?!backbone/)'),(0.5,'.*'))",
    "optim.layer_decay=0.5",
    "optim.warmup_steps=100",
    "train.epochs=0.5",
    "train.keep_last=9",
    "eval.every=0",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on five classes, two of them the data's in another spelling, with small weights."""
    shapes = importer.model_shapes(tiny_model.config().model.to_dict(), tiny_model.CLASSES)
    rng = np.random.default_rng(0)
    flat = {path: np.float32(0.05 * rng.standard_normal(s)) for path, s in shapes.items()}
    flat |= {path: np.ones_like(x) for path, x in flat.items() if path.endswith(("var", "scale"))}
    folder = tmp_path_factory.mktemp("runs") / "other"
    names = ["left", OURS[4].upper(), "right", OURS[1].replace(" ", "_").title(), "top"]
    meta = {"step": 7, "score": None, "window": []}
    meta["classes"] = {"names": names, "category_ids": [1, 2, 3, 4, 5]}
    meta["config"] = json.loads(json.dumps(tiny_model.config().to_dict()))
    store = checkpoint.Checkpoints(folder, 1)
    store.save(7, importer.unflatten(flat), meta)
    store.close()
    return folder


def weights(folder):
    variables, _ = checkpoint.load_variables(folder)
    return importer.flatten(variables["params"])


def test_from_another_runs_weights_to_the_end(run, tmp_path):
    cache, workdir = tmp_path / "cache", tmp_path / "run"
    argv = tiny_run.arguments(workdir, f"init.checkpoint={run}", *FIELDS)
    killed = tiny_run.run(cache, argv, "kill_at(4)")
    assert killed.returncode == -9, killed.stdout + killed.stderr
    told = killed.stdout
    assert "train.epochs 0.5 x 16 images / batch 2: 4 steps" in told
    assert "config.train.num_steps: 12 -> 4, by train.epochs" in told
    assert "config.model.depth: 34 -> 10, as the weights expect" in told
    old = f"{OURS[1]} <- {OURS[1].replace(' ', '_').title()}, {OURS[4]} <- {OURS[4].upper()}"
    assert re.search(rf"mapped .* 2 of 6 classes: {old}", told), told
    new = ", ".join(OURS[i] for i in (0, 2, 3, 5))
    assert re.search(rf"fresh .* 4 of 6 classes: {new}", told), told
    assert re.search(r"backbone/stem .* never: frozen", told)
    assert re.search(r"backbone/res5 .* 0\.5 .* step 3", told)
    assert re.search(r"backbone/res3 .* 0\.125 .* step 3", told)
    assert re.search(r"box_head .* 1 .* step 1", told)
    assert told.count("compiled the training step") == 1  # one program for both stages

    done = tiny_run.run(cache, argv, "no_evaluation()")
    assert done.returncode == 0, done.stdout + done.stderr
    # The last checkpoint may not have been complete when the process was killed.
    assert re.search("resuming at step [23] of 4", done.stdout)
    assert "changed since" not in done.stdout
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["train"]["epochs"] == 0.5 and saved["train"]["num_steps"] == 4
    assert saved["train"]["checkpoint_every"] == saved["optim"]["warmup_steps"] == 1

    theirs = weights(run)
    for step in range(1, 5):
        ours = weights(workdir / "checkpoints" / str(step))
        assert ours.keys() == theirs.keys()
        for path in ours:
            if path.startswith("backbone/"):
                stands = step < 3 or path.startswith("backbone/stem/")
                assert (ours[path].tobytes() == theirs[path].tobytes()) == stands, (step, path)
    assert not np.array_equal(ours["fpn/output2/conv/kernel"], theirs["fpn/output2/conv/kernel"])


def test_a_run_goes_on_with_other_rates_but_not_other_stages(tmp_path):
    lines = []
    state = SimpleNamespace(start=3, workdir=tmp_path, log=SimpleNamespace(say=lines.append))
    before = {"optim.stages": [[0.0, ".*"]], "optim.layer_decay": 1.0, "optim.ema_decay": 0.0}
    train._Run._compare_configs(state, before, before | {"optim.layer_decay": 0.9})
    assert lines == ["changed since step 3: config.optim.layer_decay: 1.0 -> 0.9"]
    with pytest.raises(UserError, match="cannot go on with another optim.stages"):
        train._Run._compare_configs(state, before, before | {"optim.stages": [[0.0, "fpn"]]})
