"""Models that differ most from the plain one: three steps, an evaluation, a picture."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from jax.sharding import AxisType, Mesh
from PIL import Image

from maskrcnn_jax import checkpoint, predict, runtime
from maskrcnn_jax.datasets import classes_of, load_data
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluate import Evaluator
from maskrcnn_jax.files import Picture
from maskrcnn_jax.logs import ProgressBar, RunLog
from maskrcnn_jax.models import families
from maskrcnn_jax.optimizer import make_optimizer
from maskrcnn_jax.predict_folder import predict_folder
from maskrcnn_jax.train_step import init_state, make_train_step

KEYPOINTS = {
    "mask_branch": "none",
    "class_agnostic_boxes": True,
    "keypoints": 5,
    "keypoint_channels": 16,
    "keypoint_convs": 1,
}
CASCADE = {
    "cascade_ious": (0.5, 0.6, 0.7),
    "class_agnostic_boxes": True,
    "mask_branch": "mlp",
    "mask_fc_dim": 32,
    "mask_loss": "softmax",
    "mask_pool_size": 7,
}


class Arm:
    """A model that has learnt for three steps, and what an evaluation said of it."""

    def __init__(self, fields, folder):
        self.config = config = tiny_model.config(**fields, score_thresh=0.0)
        config.data.update({"cache_dir": str(folder), "shapes_train": 1, "shapes_val": 3})
        config.data.update({"short_test": 64, "long_test": 96, "canvases": ((96, 96),)})
        config.eval.num_pictures = 1
        _, self.data = load_data(config, train=False)
        # On one device: the programs of several take longer to compile, and test_mesh.py has them.
        mesh = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
        self.model = families.build(config.model, len(self.data.names))
        self.before = tiny_model.variables(self.model)
        tx, schedule, trained = make_optimizer(self.before["params"], config.optim, 0, 10, 2)
        step = make_train_step(self.model, tx, schedule, trained, mesh)
        batch = tiny_model.batch(2, keypoints=config.model.keypoints)
        classes = np.minimum(batch.gt_classes, len(self.data.names) - 1)
        batch = runtime.shard_batch(batch._replace(gt_classes=classes), mesh)
        state = runtime.replicate(init_state(self.before, tx, 0.0), mesh)
        program = step.lower(state, batch).compile(runtime.compiler_options())
        for _ in range(3):
            state, self.metrics = program(state, batch)
        self.trained = {"params": state.params, "batch_stats": state.batch_stats}
        self.folder = folder / "run"
        self.folder.mkdir()
        self.said = []
        log = RunLog(self.folder, 0, 0, speaks=True, records=False)
        log.table = lambda title, header, rows: self.said.append((title, header, rows))
        evaluator = Evaluator(self.model, self.data, config, mesh, self.said.append)
        self.found = evaluator.run(self.trained, self.folder / "eval", log, 3)

    def saved(self):
        """The folder of a run that ended here."""
        store = checkpoint.Checkpoints(self.folder, 1)
        meta = {"step": 3, "score": None, "window": [], "classes": classes_of(self.data)}
        config = json.loads(json.dumps(self.config.to_dict()))
        store.save(3, self.trained, {**meta, "config": config})
        store.close()
        return self.folder


@pytest.fixture(scope="module", params=[KEYPOINTS, CASCADE], ids=["keypoints", "cascade"])
def arm(request, tmp_path_factory):
    quick = {"xla_backend_optimization_level": 0}  # less to compile; the steps are few
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "compiler_options", lambda: quick)
        yield Arm(request.param, tmp_path_factory.mktemp("arm"))


def has_masks(arm):
    return arm.config.model.mask_branch != "none"


def has_keypoints(arm):
    return arm.config.model.keypoints > 0


def test_three_steps_train_every_part(arm):
    assert int(arm.metrics["bad_step"]) == -1
    assert jnp.isfinite(arm.metrics["loss"])
    assert (arm.metrics["mask"] > 0) == has_masks(arm)
    assert ("keypoint" in arm.metrics) == has_keypoints(arm)
    assert arm.metrics.get("keypoint", 1) > 0
    rooms = {"backbone", "fpn", "rpn_head"} | ({"mask_head"} if has_masks(arm) else set())
    rooms |= {"keypoint_head"} if has_keypoints(arm) else set()
    stages = len(arm.config.model.cascade_ious)
    rooms |= {f"box_head_{k}" for k in range(stages)} or {"box_head"}
    assert set(arm.trained["params"]) == rooms
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(arm.trained["params"]),
        jax.tree.leaves(arm.before["params"]),
        strict=True,
    ):
        assert not np.array_equal(a, b), jax.tree_util.keystr(path)
    assert {f"cls_stage{k + 1}" for k in range(stages)} <= set(arm.metrics)


def test_evaluation_knows_what_there_is(arm):
    kinds = {name.partition("/")[0] for name in arm.found}
    assert kinds == {"bbox", "segm" if has_masks(arm) else "keypoints"}
    rows = json.loads((arm.folder / "eval" / "results.json").read_text())
    assert rows and all(("segmentation" in row) == has_masks(arm) for row in rows)
    assert {len(row.get("keypoints", ())) for row in rows} == {3 * arm.config.model.keypoints}
    (_, _, overall), (_, header, by_class) = (x for x in arm.said if isinstance(x, tuple))
    assert [row[0] for row in overall] == sorted(kinds)
    assert ("segm AP" in header) == has_masks(arm)
    assert ("keypoints AP" in header) == has_keypoints(arm)
    assert all(len(row) == len(header) for row in by_class)
    assert len(list((arm.folder / "eval" / "pictures").glob("*.png"))) == 1


def test_predictions_draw_and_write_what_there_is(arm, tmp_path):
    predictor = predict.load(arm.saved(), score_thresh=0.0)
    if has_masks(arm):
        return  # its picture needs one more program; test_predict.py has masks
    path = tmp_path / "noise.png"
    Image.fromarray(tiny_model.batch(1).images[0]).save(path)
    found = predictor(path)
    assert len(found) and found.masks is None and found.rles is None
    assert found.draw(path).shape == (64, 96, 3)
    boxes = found.boxes[:, None]
    far = np.maximum(boxes[..., 2:], boxes[..., :2] + 1)
    assert found.keypoints.shape == (len(found), 5, 3) and (found.keypoints[..., 2] > 0).all()
    places = found.keypoints[..., :2]
    assert (places >= boxes[..., :2]).all() and (places <= far).all()
    assert all(len(row["keypoints"]) == 15 for row in found.to_coco(1))
    assert all("segmentation" not in row for row in found.to_coco(1))
    pictures = [Picture("noise.png", path)]

    def write(**options):
        bar = ProgressBar("pictures")
        return predict_folder(predictor, pictures, tmp_path / "found", bar=bar, **options)

    with pytest.raises(UserError, match="a model without masks; leave out --masks"):
        write(masks=True)
    assert write().num_objects == len(found)
