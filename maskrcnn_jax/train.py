"""Training: one call reads the config, makes or resumes a run in its workdir, and evaluates it."""

import collections
import json
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from maskrcnn_jax import checkpoint, flight, runtime
from maskrcnn_jax import config as config_lib
from maskrcnn_jax.data.coco import CocoData, check_same_classes, load_coco
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluate import Evaluator
from maskrcnn_jax.logs import RunLog
from maskrcnn_jax.models import mask_rcnn
from maskrcnn_jax.optimizer import make_optimizer
from maskrcnn_jax.train_step import (
    COUNTS,
    TrainState,
    init_state,
    init_variables,
    make_train_step,
)
from maskrcnn_jax.types import Batch

# Metrics are read this many steps late, so that the device never waits for the host.
LAG = 2

# A run cannot go on under another value of these: shapes of the state, or the meaning of its classes.
FIXED = (
    "model.depth",
    "model.width",
    "model.groups",
    "model.width_per_group",
    "model.norm",
    "model.head_norm",
    "model.freeze_at",
    "model.fpn_channels",
    "model.anchor_ratios",
    "model.rpn_channels",
    "model.rpn_convs",
    "model.box_",
    "model.mask_pool_size",
    "model.mask_channels",
    "model.mask_convs",
    "optim.name",
    "optim.lr_rules",
)


class Stopped(Exception):
    """The run ended before its last step; the message says why and what is saved."""


def load_data(config: ConfigDict, train: bool) -> tuple[CocoData | None, CocoData]:
    """The checked train (or None) and val sets that the config's `data` group names."""
    d = config.data
    cache = Path(d.cache_dir).expanduser() if d.cache_dir else runtime.cache_home()
    paths = {s: (d[s].annotations, d[s].images) for s in ("train", "val")}
    if d.name == "shapes":
        from maskrcnn_jax.data import shapes

        folder = cache / f"shapes_{d.shapes_train}_{d.shapes_val}"
        paths = shapes.generate(folder, d.shapes_train, d.shapes_val)
    elif d.name == "coco_2017":
        from maskrcnn_jax.data import builder

        paths = builder.download_coco_2017(cache)
    for split, pair in paths.items():
        if (train or split == "val") and not all(pair):
            raise UserError(
                f"config.data.{split}: annotations and images must both be set, for example "
                f"--config.data.{split}.annotations=instances.json "
                f"--config.data.{split}.images=folder"
            )
    val = load_coco(*paths["val"], on_bad_image=d.on_bad_image)
    if not train:
        return None, val
    data = load_coco(*paths["train"], on_bad_image=d.on_bad_image)
    check_same_classes(data, val)
    return data, val


def classes_of(data: CocoData) -> dict[str, Any]:
    """The table id <-> name <-> index, as it is stored in the checkpoint."""
    return {"names": list(data.names), "category_ids": [int(i) for i in data.category_ids]}


def check_classes(stored: dict[str, Any], data: CocoData, where: str) -> None:
    """Raises UserError unless a checkpoint's classes are those of a data set."""
    if stored == classes_of(data):
        return
    pairs = lambda t: set(zip(t["category_ids"], t["names"], strict=True))  # noqa: E731
    ours, theirs = pairs(classes_of(data)), pairs(stored)
    raise UserError(
        f"{where}: its classes are not those of {data.annotations}; only in the checkpoint: "
        f"{sorted(theirs - ours)[:5]}, only in the data: {sorted(ours - theirs)[:5]}. "
        "Use the data set it was trained on, or init.part='backbone' in a new workdir."
    )


def initial_variables(config: ConfigDict, model: mask_rcnn.MaskRCNN, data: CocoData) -> Any:
    """Random weights, or those of init.checkpoint."""
    variables = jax.tree.map(np.asarray, init_variables(model, config.train.seed))
    if not config.init.checkpoint:
        return variables
    source, meta = checkpoint.load_variables(config.init.checkpoint)
    if config.init.part == "backbone":
        keep = lambda tree: {k: v for k, v in tree.items() if k == "backbone"}  # noqa: E731
        wanted = {name: keep(tree) for name, tree in variables.items()}
        source = {name: keep(tree) for name, tree in source.items()}
    else:
        check_classes(meta["classes"], data, config.init.checkpoint)
        wanted = variables
    for name, tree in wanted.items():
        shapes = checkpoint.shapes_of(source[name]), checkpoint.shapes_of(tree)
        checkpoint.check_same(*shapes, where=config.init.checkpoint)
    return {name: {**variables[name], **source[name]} for name in variables}


def train_and_evaluate(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Trains to train.num_steps, or goes on from the workdir's last checkpoint; then evaluates.

    Returns the last metrics. Raises UserError for what the user can mend and Stopped when the run
    ended early (SIGTERM, a loss that is not finite).
    """
    return _Run(config, workdir).go()


class _Run:
    """One call of train_and_evaluate, in the order of its methods."""

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir = config, workdir
        runtime.check_batch("train.batch_size", config.train.batch_size, config.train.accumulate)
        workdir.mkdir(parents=True, exist_ok=True)
        self.mesh = runtime.make_mesh()
        self.store = checkpoint.Checkpoints(
            workdir, config.train.keep_last, config.train.best_metric
        )
        self.start = self.store.latest_step or 0
        self.log = RunLog(workdir, self.start, config.train.num_steps, jax.process_index() == 0)
        for line in runtime.describe_devices():
            self.log.say(line)
        self.train_data, self.val_data = load_data(config, train=True)
        self.classes = classes_of(self.train_data)
        self.model = mask_rcnn.build(config.model, len(self.train_data.names))
        self.batches = self._open_data()
        self.state, self.window = self._make_state()
        if jax.process_index() == 0:
            config_lib.save(config, workdir / "config.json")
        self.evaluator = Evaluator(self.model, self.val_data, config, self.mesh, self.log.say)
        self.recent: collections.deque[tuple[int, Batch]] = collections.deque(maxlen=LAG + 2)
        self.waiting: collections.deque[tuple[int, dict]] = collections.deque()
        self.stop_asked = False

    def _open_data(self) -> Iterator[Batch]:
        # TensorFlow is imported here at the earliest: evaluation and prediction do without it.
        from maskrcnn_jax.data import builder, pipeline

        d, t = self.config.data, self.config.train
        cache = Path(d.cache_dir).expanduser() if d.cache_dir else runtime.cache_home()
        self.records = builder.prepare(self.train_data, cache, d.mask_side, d.on_bad_image)
        return pipeline.make_batches(
            self.records,
            d,
            t.batch_size,
            t.seed,
            start_step=self.start,
            num_steps=t.num_steps,
            host=(jax.process_index(), jax.process_count()),
        )

    def _make_state(self) -> tuple[TrainState, list[dict[str, float]]]:
        config, say = self.config, self.log.say
        t, o = config.train, config.optim
        resumed = self.store.latest_step is not None
        variables = (
            jax.tree.map(np.asarray, init_variables(self.model, t.seed))
            if resumed
            else initial_variables(config, self.model, self.train_data)
        )
        count = sum(x.size for x in jax.tree.leaves(variables["params"]))
        say(f"{count / 1e6:.2f} M parameters, {len(self.classes['names'])} classes")
        tx, schedule, trained = make_optimizer(
            variables["params"], o, config.model.freeze_at, t.num_steps, t.batch_size
        )
        say(
            f"learning rate {o.base_lr * t.batch_size / o.base_batch:g} = base_lr {o.base_lr:g} "
            f"x batch {t.batch_size} / base_batch {o.base_batch}"
        )
        if config.model.norm == "frozen" and not config.init.checkpoint and not resumed:
            say(
                "WARNING: model.norm='frozen' with random weights: nothing is normalised, and the "
                "model will hardly learn. Set init.checkpoint, or model.norm='batch' or 'group'."
            )
        step = make_train_step(
            self.model,
            tx,
            schedule,
            trained,
            self.mesh,
            seed=t.seed,
            accumulate=t.accumulate,
            ema_decay=o.ema_decay,
        )
        self.programs = runtime.Programs(step, "training step", say)
        state = runtime.replicate(init_state(variables, tx, o.ema_decay), self.mesh)
        if not resumed:
            return state, []
        return self._resume(state)

    def _resume(self, state: TrainState) -> tuple[TrainState, list[dict[str, float]]]:
        num_steps = self.config.train.num_steps
        meta = self.store.read_meta(self.start)
        check_classes(meta["classes"], self.train_data, str(self.workdir))
        before = config_lib.flatten(meta["config"])
        now = config_lib.flatten(_plain(self.config))
        changed = [f for f in now if f in before and before[f] != now[f]]
        for field in changed:
            self.log.say(f"changed since step {self.start}: config.{field}: "
                         f"{before[field]!r} -> {now[field]!r}")
        fixed = [f for f in changed if f.startswith(FIXED)]
        if ("optim.ema_decay" in changed) and not (before["optim.ema_decay"] and
                                                   now["optim.ema_decay"]):
            fixed.append("optim.ema_decay")
        if fixed:
            raise UserError(
                f"{self.workdir}: a run cannot go on with another "
                + ", ".join(f"{f} (was {before[f]!r}, is {now[f]!r})" for f in fixed)
                + "; set the old value again, or take another workdir"
            )
        if self.start > num_steps:
            raise UserError(
                f"{self.workdir}: is at step {self.start} already, beyond train.num_steps="
                f"{num_steps}; raise it, or take another workdir"
            )
        self.log.say(f"resuming at step {self.start} of {num_steps}")
        items, meta = self.store.restore(self.start, _items(state))
        state = state._replace(
            **items,
            step=runtime.replicate(np.int32(self.start), self.mesh),
        )
        return state, meta["window"]

    def go(self) -> dict[str, float]:
        """The loop. Saves, evaluates and leaves as the config and the signals say."""
        t, e = self.config.train, self.config.eval
        metrics = self._last_evaluation()
        previous = signal.signal(signal.SIGTERM, self._ask_to_stop)
        try:
            self.clock = _Clock()
            for done in range(self.start + 1, t.num_steps + 1):
                self._advance(done)
                last = done == t.num_steps
                if last or (e.every and done % e.every == 0):
                    metrics = self._evaluate(done)
                    if self._is_stale():
                        self.log.say(
                            f"no better {t.best_metric} in {t.early_stop} evaluations: stopping "
                            f"early at step {done}; the best is step {self.store.best_step}"
                        )
                        break
                elif done % t.checkpoint_every == 0:
                    self._save(done)
                if self._must_stop(done):
                    self._save(done)
                    self.store.wait()
                    raise Stopped(
                        f"asked to stop: step {done} is saved; the same command goes on from it"
                    )
            else:
                if self.start == t.num_steps:
                    metrics = self._evaluate(self.start)
            self.store.close()
            self.log.say(f"done: {self.workdir}")
            return metrics
        finally:
            signal.signal(signal.SIGTERM, previous)
            self.log.close()

    def _advance(self, done: int) -> None:
        """Takes one step and reads the metrics of an earlier one."""
        with self.clock.waiting():
            batch = next(self.batches)
        self.recent.append((done, batch))
        canvas = batch.images.shape[1:3]
        placed = runtime.shard_batch(batch, self.mesh)
        with self.clock.paused_if(canvas not in self.programs):
            program = self.programs.get(canvas, self.state, placed)
        self.state, metrics = program(self.state, placed)
        self.waiting.append((done, metrics))
        while len(self.waiting) > LAG:
            self._read_metrics()

    def _read_metrics(self) -> None:
        """Fetches the oldest unread metrics; at the end of a window writes its mean."""
        done, device_values = self.waiting.popleft()
        values = {k: float(v) for k, v in jax.device_get(device_values).items()}
        if values.pop("bad_step") >= 0:
            self._record_flight(done, values)
        self.window.append(values)
        t = self.config.train
        if done % t.log_every and done != t.num_steps:
            return
        mean = {k: math.fsum(v[k] for v in self.window) for k in values}
        mean = {k: v if k in COUNTS else v / len(self.window) for k, v in mean.items()}
        mean["lr"] = values["lr"]
        step, wait = self.clock.per_step(len(self.window))
        mean |= {
            "time/step": step,
            "time/data_wait": wait,
            "time/images_per_s": t.batch_size / step,
        }
        self.window = []
        self.log.metrics(done, mean)
        self.log.advance(done, mean)
        if mean["dropped_instances"]:
            self.log.say(
                f"step {done}: {mean['dropped_instances']:.0f} objects left out in these steps; "
                f"data.max_instances is {self.config.data.max_instances}"
            )
        if wait > 0.3 * step and done > 5 * t.log_every:
            self.log.say(
                f"step {done}: input-bound, {wait / step:.0%} of the time waits for data; "
                "more cores or data.num_workers would help"
            )

    def _drain(self) -> None:
        while self.waiting:
            self._read_metrics()

    def _record_flight(self, done: int, values: dict[str, float]) -> None:
        batch = next(b for s, b in self.recent if s == done)
        ids = [int(i) for i in self.records.image_ids[batch.index]]
        report = {
            "step": done,
            "losses": values,
            "image_ids": ids,
            "classes": self.classes,
        }
        config_lib.save(self.config, self.workdir / "flight" / "config.json")
        flight.save(self.workdir / "flight", self.state, batch, report)
        terms = ", ".join(f"{k} {v:g}" for k, v in values.items())
        raise Stopped(
            f"step {done}: the loss or its gradient is not finite ({terms}); image ids {ids}. "
            f"The state before the step, the batch and the keys are in {self.workdir / 'flight'}; "
            "see it again with --mode replay"
        )

    def _evaluate(self, done: int) -> dict[str, float]:
        self._drain()
        with self.clock.paused_if(True):
            variables = self.state.ema or {
                "params": self.state.params,
                "batch_stats": self.state.batch_stats,
            }
            folder = self.workdir / "eval"
            metrics = self.evaluator.run(variables, folder, self.log, done)
            self.log.history.append({"step": done, **metrics})
            if done != self.start:
                self._save(done, metrics)
        return metrics

    def _save(self, done: int, metrics: dict[str, float] | None = None) -> None:
        self._drain()
        meta = {
            "step": done,
            "window": self.window,
            "classes": self.classes,
            "config": _plain(self.config),
        }
        self.store.save(done, _items(self.state), meta, metrics)

    def _last_evaluation(self) -> dict[str, float]:
        seen = [line for line in self.log.history if "bbox/AP" in line]
        return {k: v for k, v in seen[-1].items() if k != "step"} if seen else {}

    def _is_stale(self) -> bool:
        patience, name = self.config.train.early_stop, self.config.train.best_metric
        scores = [line[name] or 0.0 for line in self.log.history if name in line]
        return bool(patience) and len(scores) - 1 - int(np.argmax(scores)) >= patience

    def _ask_to_stop(self, *_: Any) -> None:
        self.stop_asked = True

    def _must_stop(self, done: int) -> bool:
        # Hosts ask each other only now and then, and so leave at the same step.
        if jax.process_count() > 1 and done % self.config.train.log_every:
            return False
        return runtime.any_host(self.stop_asked)


def evaluate_run(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Evaluates init.checkpoint, or else the workdir's best or last checkpoint, on the val set."""
    workdir.mkdir(parents=True, exist_ok=True)
    log = RunLog(workdir, 0, 0, speaks=jax.process_index() == 0, records=False)
    mesh = runtime.make_mesh()
    for line in runtime.describe_devices():
        log.say(line)
    _, data = load_data(config, train=False)
    path = config.init.checkpoint or workdir
    variables, meta = checkpoint.load_variables(path)
    check_classes(meta["classes"], data, str(path))
    model = mask_rcnn.build(config.model, len(data.names))
    fresh = init_variables(model, 0)
    for name in variables:
        shapes = checkpoint.shapes_of(variables[name]), checkpoint.shapes_of(fresh[name])
        checkpoint.check_same(*shapes, where=str(path))
    evaluator = Evaluator(model, data, config, mesh, log.say)
    return evaluator.run(runtime.replicate(variables, mesh), workdir / "eval", log, meta["step"])


def replay(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Takes the step again that a flight record holds, and returns its metrics."""
    report = flight.read_report(workdir / "flight")
    mesh = runtime.make_mesh()
    model = mask_rcnn.build(config.model, len(report["classes"]["names"]))
    t, o = config.train, config.optim
    variables = init_variables(model, t.seed)
    tx, schedule, trained = make_optimizer(
        variables["params"], o, config.model.freeze_at, t.num_steps, t.batch_size
    )
    state = runtime.replicate(init_state(variables, tx, o.ema_decay), mesh)
    state, batch = flight.load(workdir / "flight", state)
    step = make_train_step(
        model,
        tx,
        schedule,
        trained,
        mesh,
        seed=t.seed,
        accumulate=t.accumulate,
        ema_decay=o.ema_decay,
    )
    _, metrics = step(state, runtime.shard_batch(batch, mesh))
    values = {k: float(v) for k, v in jax.device_get(metrics).items() if k != "bad_step"}
    for name, value in values.items():
        then = report["losses"][name]
        print(f"{name}: {value!r} now, {then!r} then")
    return values


def _plain(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON gives it back, tuples as lists."""
    return json.loads(json.dumps(config.to_dict()))


def _items(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in checkpoint.ARRAYS}


class _Clock:
    """Seconds of a window of steps: all, and those that waited for data."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._started, self._waited, self._paused = time.perf_counter(), 0.0, 0.0

    def waiting(self) -> "_Span":
        return _Span(self, "_waited")

    def paused_if(self, pause: bool) -> "_Span":
        """Compiling and evaluating are not part of a step's time."""
        return _Span(self, "_paused" if pause else None)

    def per_step(self, steps: int) -> tuple[float, float]:
        """Seconds a step and seconds waiting for data a step since the last call."""
        total = time.perf_counter() - self._started - self._paused
        result = max(total, 1e-9) / steps, self._waited / steps
        self._begin()
        return result


class _Span:
    def __init__(self, clock: _Clock, name: str | None):
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        if self._name:
            seconds = getattr(self._clock, self._name) + time.perf_counter() - self._begin
            setattr(self._clock, self._name, seconds)
