"""Runs that start from other programs' weights: preset, heads, going on, evaluation."""

import json
from dataclasses import replace

import numpy as np
import peer_model
import pytest
import tiny_checkpoint
import tiny_model
import tiny_run

from configs import common
from maskrcnn_jax import checkpoint, evaluate, initial, train
from maskrcnn_jax import config as config_lib
from maskrcnn_jax.data.scenes import CATEGORIES
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import exporter, importer

CLASSES = 6  # of the generated shapes


def weights(family, classes=CLASSES):
    """A peer's tensors of a tiny model with random weights."""
    config = tiny_model.config(depth=10, norm="frozen", head_norm="none").model
    model = tiny_model.mask_rcnn.build(config, classes)
    names = {"names": [f"class {i}" for i in range(classes)], "category_ids": [*range(classes)]}
    spec = exporter.spec_for(family, config.to_dict(), names)
    return exporter.export(tiny_model.variables(model), spec)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def settings(**fields):
    config = common.get_config()
    config.init.checkpoint = "weights.pth"
    for name, value in fields.items():
        group, _, field = name.partition("_")
        config[group][field] = value
    config.lock()
    return config


def refusal(folder, *fields, mode="train"):
    """What a run in this process is refused for."""
    config = config_lib.load(
        tiny_run.ROOT / "configs" / "shapes.py",
        ("data.shapes_train=4", "data.shapes_val=2", f"data.cache_dir={folder / 'cache'}", *fields),
        schema=common.get_config(),
    )
    config_lib.validate(config, mode)
    begin = train.train_and_evaluate if mode == "train" else evaluate.evaluate_run
    with pytest.raises(UserError) as error:
        begin(config, folder / "refused")
    return str(error.value)


@pytest.mark.parametrize("family", ["detectron2", "torchvision"])
def test_each_field_that_the_weights_bring_is_told(family):
    imported = importer.import_weights(peer_model.source(weights(family)))
    config = settings(model_roi_batch_per_image=64, model_depth=101)
    before = config.copy_and_resolve_references()
    lines = []
    initial.adopt_preset(config, imported, lines.append)
    changed = {f for f in config.model if config.model[f] != before.model[f]}
    assert {line.split(":")[0].removeprefix("config.model.") for line in lines} == changed
    assert (config.model.depth, config.model.width, config.model.box_fc_dim) == (10, 8, 32)
    assert config.model.roi_batch_per_image == 64  # of the run, not of the weights
    assert config.model.anchor_rounding == (family == "torchvision")
    assert config.data.to_dict() == before.data.to_dict()
    initial.adopt_preset(config, imported, lines.append, evaluates=True)
    assert config.data.resize_rule == imported.config["data"]["resize_rule"]
    assert config.model.roi_batch_per_image == imported.config["model"]["roi_batch_per_image"]

    config = settings(init_use_preset=False)
    initial.adopt_preset(config, imported, lines.append)
    assert config.model.to_dict() == common.get_config().model.to_dict()

    config = settings(init_part="backbone", model_depth=101)
    initial.adopt_preset(config, imported, lines.append)
    assert config.model.depth == 10 and not config.model.anchor_rounding


def test_a_run_that_goes_on_was_begun_by_an_older_version():
    config = settings(model_depth=101)
    saved = {"model": {"depth": 10, "pixel_std": [1.0, 1.0, 1.0]}}
    initial.keep_preset(config, saved, lambda line: None)
    assert config.model.depth == 10 and config.model.pixel_std == (1.0, 1.0, 1.0)
    assert config.model.roi_pool == common.get_config().model.roi_pool


def test_no_weights_at_all():
    config = settings(init_checkpoint="", init_heads="match")
    assert initial.read_foreign(config, print) is None and initial.read_run(config, print) is None


def test_the_adopted_config_is_checked_before_anything_is_prepared(tmp_path):
    """A run without masks, and the metric of masks as the best one."""
    path = tiny_checkpoint.make(tmp_path / "boxes", is_noise=True, mask_branch="none")
    told = refusal(tmp_path, f"init.checkpoint={path}", "init.heads=match")
    for words in (str(path), "train.best_metric='segm/AP'", "train.best_metric='bbox/AP'"):
        assert words in told


def test_a_run_starts_goes_on_and_is_exported(cache, tmp_path):
    """The foreign file is needed at the first step only."""
    file = tmp_path / "model_final.pkl"
    tensors = weights("detectron2")
    exporter.save(tensors, file)
    workdir = tmp_path / "run"
    fields = (f"init.checkpoint={file}", "model.depth=34", "model.freeze_at=2")
    argv = tiny_run.arguments(workdir, *fields, "train.num_steps=1")
    done = tiny_run.run(cache, argv, "no_evaluation()")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{file}: detectron2 model, ResNet-10, 6 classes" in done.stdout
    assert "config.model.depth: 34 -> 10, as the weights expect" in done.stdout
    saved = json.loads((workdir / "config.json").read_text())["model"]
    assert saved["depth"] == 10 and saved["norm"] == "frozen" and saved["box_fc_dim"] == 32

    file.unlink()
    argv = tiny_run.arguments(workdir, *fields, "train.num_steps=2")
    done = tiny_run.run(cache, argv, "no_evaluation()")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming at step 1 of 2" in done.stdout
    variables, meta = checkpoint.load_variables(workdir / "checkpoints" / "2")
    frozen = variables["params"]["backbone"]["stem"]["conv"]["kernel"]
    theirs = tensors["backbone.bottom_up.stem.conv1.weight"]
    np.testing.assert_array_equal(frozen, theirs.transpose(2, 3, 1, 0))

    spec = exporter.spec_for("detectron2", meta["config"]["model"], meta["classes"])
    out = exporter.export({k: variables[k] for k in ("params", "batch_stats")}, spec)
    assert {n: x.shape for n, x in out.items()} == {n: x.shape for n, x in tensors.items()}
    assert (out["backbone.bottom_up.stem.conv1.weight"] == theirs).all()


def test_other_classes(cache, tmp_path):
    file = tmp_path / "other.pkl"
    exporter.save(weights("detectron2", classes=7), file)
    fields = (f"init.checkpoint={file}", "model.freeze_at=2")
    for mode in ("train", "evaluate"):
        told = refusal(tmp_path, *fields, mode=mode)
        assert "7 classes, the data 6" in told
        assert ("init.skip_heads" in told) == (mode == "train")
    more = ("init.skip_heads=true", "train.num_steps=1")
    argv = tiny_run.arguments(tmp_path / "run", *fields, *more)
    done = tiny_run.run(cache, argv, "no_evaluation()")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left random, of other classes: params/box_head/cls_score/kernel" in done.stdout


def test_weights_of_more_classes_than_the_data_are_evaluated(cache, tmp_path):
    """As torchvision's 90 on COCO's 80: those of the data count, by id and name."""
    file = tmp_path / "own"
    imported = importer.import_weights(peer_model.source(weights("torchvision", classes=8)))
    ids, names = list(CATEGORIES), list(CATEGORIES.values())
    more = {"names": ["left", *names, "right"], "category_ids": [90, *ids, 91]}
    spec = replace(
        imported.spec, class_names=tuple(more["names"]), category_ids=tuple(more["category_ids"])
    )
    importer.save(replace(imported, spec=spec, classes=more), file)
    argv = tiny_run.arguments(tmp_path / "a", f"init.checkpoint={file}", mode="evaluate")
    done = tiny_run.run(cache, argv)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "config.data.resize_rule: 'pillow' -> 'torchvision'" in done.stdout
    assert json.loads((tmp_path / "a" / "eval" / "metrics.json").read_text())["step"] == 0
    rows = json.loads((tmp_path / "a" / "eval" / "results.json").read_text())
    assert {row["category_id"] for row in rows} <= set(ids)

    more["names"][1] = "other"
    spec = replace(spec, class_names=tuple(more["names"]))
    importer.save(replace(imported, spec=spec, classes=more), tmp_path / "renamed")
    told = refusal(tmp_path, f"init.checkpoint={tmp_path / 'renamed'}", mode="evaluate")
    assert "its classes are not those of" in told


def test_our_own_checkpoint_of_an_import(tmp_path):
    tensors = weights("torchvision")
    imported = importer.import_weights(peer_model.source(tensors))
    folder = importer.save(imported, tmp_path / "own")
    variables, meta = checkpoint.load_variables(tmp_path / "own")
    assert meta["classes"] == imported.classes and meta["step"] == 0
    for path in (tmp_path / "own", folder):
        again = importer.import_weights(path)
        assert again.spec == imported.spec and again.classes == imported.classes
        out = exporter.export(again.variables, again.spec, again.originals)
        assert out.keys() == tensors.keys()
        assert all(importer.same_bits(out[name], x) for name, x in tensors.items())
    with pytest.raises(UserError, match="another folder"):
        importer.save(imported, tmp_path / "own")
    config = settings(init_checkpoint=str(tmp_path / "own"))
    found = initial.read_foreign(config, lambda line: None)
    assert found is not None and found.spec == imported.spec
