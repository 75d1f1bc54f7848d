"""Trains arms of experiments/ for three steps at the smallest size, all in this one process.

python tests/experiment_arms.py FOLDER TABLE... prints a line of JSON per different training.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

FIELDS = {
    "model.width": 8,
    "model.fpn_channels": 16,
    "model.rpn_channels": 16,
    "model.mask_channels": 16,
    "model.box_fc_dim": 32,
    "model.rpn_pre_nms_topk_train": 40,
    "model.rpn_pre_nms_topk_test": 40,
    "model.rpn_post_nms_topk_train": 20,
    "model.rpn_post_nms_topk_test": 20,
    "model.roi_batch_per_image": 8,
    "model.max_candidates": 40,
    "model.max_detections": 8,
    "data.shapes_train": 8,
    "data.shapes_val": 2,
    "data.limit": 8,
    "data.short": (64,),
    "data.long": 64,
    "data.short_test": 64,
    "data.long_test": 64,
    "data.canvases": ((64, 64),),
    "train.num_steps": 3,
    "train.batch_size": 2,
    "train.log_every": 1,
    "train.checkpoint_every": 100,
    "eval.every": 0,
    "eval.batch_size": 2,
    "eval.num_pictures": 0,
    "optim.warmup_steps": 1,
    # The fewer kernels, the sooner they are compiled.
    "optim.name": "sgd",
    "optim.clip_norm": 0.0,
    "optim.ema_decay": 0.0,
}


def tiny_setting():
    """The setting shapes with next to no pictures and channels."""
    from experiments.settings import SETTINGS

    shapes = SETTINGS["shapes"]
    instead = {
        **shapes.instead,
        "model.mask_fc_dim": {1024: 32},
        "model.rpn_channels": {1024: 16},
        "model.rpn_pre_nms_topk_train": {12_000: 40},
        "model.rpn_pre_nms_topk_test": {6000: 40},
        "model.rpn_post_nms_topk_train": {2000: 20, 1500: 20},
        "model.keypoint_channels": {512: 16},
        "model.keypoint_convs": {8: 1},
    }
    return dataclasses.replace(shapes, fields=FIELDS, instead=instead)


def distinct_runs(names, workdir):
    """A run for each different training of the tables, with the names of all arms that it is."""
    from experiments import plan

    found = {}
    for name in names:
        for run in plan.make_runs(plan.load_table(name), tiny_setting(), workdir, 1, {}):
            found.setdefault(run.key, (run, []))[1].append(f"{run.table}/{run.arm}")
    return list(found.values())


def distinct_models(runs):
    """One of those runs for each different model, with the names of all arms that have it."""
    found = {}
    for run, arms in runs:
        model = run.config.model.to_json_best_effort()
        found.setdefault(model, (run, []))[1].extend(arms)
    return list(found.values())


def main(workdir, names):
    from experiments import worker
    from maskrcnn_jax import config as config_lib

    for run, arms in distinct_runs(names, workdir):
        started = time.process_time()
        run.folder.mkdir(parents=True)
        config_lib.save(run.config, run.folder / worker.ASKED)
        try:
            result = worker.work(run.folder)
        except Exception as error:
            result = {"status": "failed", "error": repr(error)}
        seconds = time.process_time() - started
        line = {"arms": arms, "seconds": seconds, "steps": len(worker.read_log(run.folder))}
        print(f"\nRESULT {json.dumps(line | result)}", flush=True)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main(Path(sys.argv[1]), sys.argv[2:])
