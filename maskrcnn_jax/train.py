"""Training: one call makes or resumes a run in its workdir, evaluates and saves it."""

import collections
import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from maskrcnn_jax import checkpoint, flight, initial, parameter_table, run_length, runtime
from maskrcnn_jax import config as config_lib
from maskrcnn_jax.data import prepared, user_transforms
from maskrcnn_jax.data.batch_shapes import batch_shapes, usual_canvas
from maskrcnn_jax.datasets import cache_dir, check_classes, classes_of, load_data
from maskrcnn_jax.errors import Interrupted, Stopped, UserError
from maskrcnn_jax.evaluate import Evaluator, Pending
from maskrcnn_jax.logs import RunLog, StepClock
from maskrcnn_jax.models import families
from maskrcnn_jax.traces import Traces
from maskrcnn_jax.train_step import COUNTS, Initializer, TrainState, init_state, make_programs
from maskrcnn_jax.types import Batch

# Metrics are read this many steps late, so that the device never waits for the host.
LAG = 2

# A run cannot go on under another value of these: the state would have other shapes.
FIXED = (
    "model.backbone",
    "model.neck",
    "model.depth",
    "model.width",
    "model.width_per_group",
    "model.groups",
    "model.norm",
    "model.head_norm",
    "model.freeze_at",
    "model.fpn_channels",
    "model.anchor_ratios",
    "model.rpn_channels",
    "model.rpn_convs",
    "model.box_pool_size",
    "model.box_convs",
    "model.box_channels",
    "model.box_fcs",
    "model.box_fc_dim",
    "model.class_agnostic_boxes",
    "model.cascade_ious",
    "model.mask_branch",
    "model.mask_loss",
    "model.class_agnostic_masks",
    "model.mask_channels",
    "model.mask_convs",
    "model.mask_fcs",
    "model.mask_fc_dim",
    "model.keypoints",
    "model.keypoint_channels",
    "model.keypoint_convs",
    "optim.name",
    "optim.lr_rules",
    "optim.stages",
)


def train_and_evaluate(
    config: ConfigDict, workdir: Path, traces: Traces | None = None
) -> dict[str, float]:
    """Trains to train.num_steps, or goes on from the workdir's last checkpoint; then evaluates.

    traces: of earlier processes; by default all is traced.
    Returns the last metrics ("bbox/AP", ...). Raises UserError for what the user can mend, and
    Stopped when the run ended early: Interrupted on SIGTERM, itself on a loss that is not finite.
    """
    run = _Run(config, workdir, traces or Traces())
    try:
        return run.go()
    finally:
        run.log.close()


class _Run:
    """One call of train_and_evaluate; its methods stand in the order in which they are called."""

    def __init__(self, config: ConfigDict, workdir: Path, traces: Traces):
        self.config, self.workdir = config, workdir
        runtime.check_batch("train.batch_size", config.train.batch_size, config.train.accumulate)
        if config.data.albumentations:
            user_transforms.build(config.data.albumentations)  # told before hours of preparing
        self.train_data, self.val_data = load_data(config, train=True)
        self.classes = classes_of(self.train_data)
        derived = run_length.derive(config, self.train_data)
        workdir.mkdir(parents=True, exist_ok=True)
        self.store = checkpoint.Checkpoints(workdir, config.train.keep_last)
        self.start = self.store.latest_step or 0
        self.log = RunLog(
            workdir, self.start, config.train.num_steps, speaks=jax.process_index() == 0
        )
        for line in (*runtime.describe_devices(), *derived):
            self.log.say(line)
        self.imported = self._adopt_preset()
        self.mesh = runtime.make_mesh()
        number = len(self.train_data.names)
        self.model = families.build(config.model, number)
        self.traces = traces.about_model(config.model, number)
        self.evaluator = Evaluator(
            self.model, self.val_data, config, self.mesh, self.log.say, traces=self.traces
        )
        self.window: list[dict[str, float]] = []  # metrics since the last line of the log
        folder = self._prepare_records()  # what is wrong with them is told before any long work
        self.state = self._make_state()
        if jax.process_index() == 0:
            config_lib.save(config, workdir / "config.json")
        self.batches = self._open_data(folder)
        self.recent: collections.deque[tuple[int, Batch]] = collections.deque(maxlen=LAG + 1)
        self.unread: collections.deque[tuple[int, dict]] = collections.deque()
        self.clock = StepClock()
        self.stop_asked = False
        self.pending: Pending | None = None  # the evaluation under way
        self.found: dict[str, float] = {}  # by the last evaluation of this call

    def _adopt_preset(self) -> initial.Imported | None:
        """Brings the config into agreement with foreign weights, before the model is built."""
        config, say = self.config, self.log.say
        if not config.init.checkpoint:
            return None
        before, imported = config_lib.validate(config), None
        if self.start:
            saved = checkpoint.read_meta(self.store.folder / str(self.start))["config"]
            initial.keep_preset(config, saved, say)
        else:
            imported = initial.read_foreign(config, say) or initial.read_run(config, say)
            if imported is not None:
                initial.adopt_preset(config, imported, say)
        self._check_adopted(before)
        return imported

    def _check_adopted(self, before: list[str]) -> None:
        """Checks the config anew; `before`: the warnings that were told of it already."""
        try:
            warnings = config_lib.validate(self.config)
        except UserError as error:
            raise UserError(
                f"{self.config.init.checkpoint}: with the model fields of these weights, which "
                f"init.use_preset takes over, the config does not hold:\n{error}"
            ) from error
        for warning in warnings:
            if warning not in before:
                self.log.say(f"WARNING: {warning}")

    def _prepare_records(self) -> Path:
        """The folder of the records, which are made unless an earlier run has made them."""
        d = self.config.data
        what = self.train_data, cache_dir(self.config), d.mask_side, d.on_bad_image
        folder = prepared.folder(*what)
        if not folder.exists():
            # TensorFlow is imported where it is needed: evaluation does without it.
            from maskrcnn_jax.data import builder

            builder.prepare(*what)
        return folder

    def _make_state(self) -> TrainState:
        """The state before the first step of this call: random, of other weights, or resumed.

        Its shapes are known before its values, so that the step is traced while these are made.
        """
        config, say = self.config, self.log.say
        t, o = config.train, config.optim
        if self.start:
            self._check_resumable()
        initializer = Initializer(self.model, t.seed, self.traces)
        shapes, values = initializer.shapes, runtime.in_background(initializer)
        if config.init.checkpoint and not self.start:
            start = self.imported, say, self.log.table
            variables = initial.load_initial(config, values.result(), self.train_data, *start)
            self.imported = None
        elif not self.start:
            say("init.checkpoint is empty: no weights are loaded, all start at random")
        count = sum(x.size for x in jax.tree.leaves(shapes["params"]))
        say(f"{count / 1e6:.2f} M parameters, {len(self.classes['names'])} classes")
        say(
            f"learning rate {o.base_lr * t.batch_size / o.base_batch:g} = base_lr {o.base_lr:g} "
            f"x batch {t.batch_size} / base_batch {o.base_batch}"
        )
        self.programs, tx = make_programs(
            config, self.model, shapes["params"], self.mesh, say, self.traces
        )
        rows = parameter_table.describe(shapes["params"], o, config.model.freeze_at, t.num_steps)
        self.log.table("what is trained", parameter_table.HEADER, rows)

        def state_of(variables: dict[str, Any]) -> TrainState:
            return init_state(variables, tx, o.ema_decay, t.seed)

        self._begin_compiling(jax.eval_shape(state_of, shapes))
        if self.start or not config.init.checkpoint:
            variables = values.result()
        variables = jax.tree.map(np.asarray, variables)
        state = runtime.replicate(state_of(variables), self.mesh)
        return self._resume(state) if self.start else state

    def _begin_compiling(self, state: TrainState) -> None:
        """Of the usual canvas's step, beside TensorFlow's import and the opening of the records.

        state: a jax.ShapeDtypeStruct in place of each array.
        """
        config, d = self.config, self.config.data
        if self.start == config.train.num_steps:
            return
        canvas = usual_canvas(self.train_data.sizes, d)
        shapes = batch_shapes(canvas, d, config.train.batch_size, config.model.keypoints)
        self.programs.begin(
            canvas,
            runtime.placed_shapes(state, self.mesh),
            runtime.placed_shapes(shapes, self.mesh, "data"),
        )

    def _check_resumable(self) -> None:
        num_steps = self.config.train.num_steps
        meta = checkpoint.read_meta(self.store.folder / str(self.start))
        check_classes(meta["classes"], self.train_data, str(self.workdir))
        self._compare_configs(
            config_lib.flatten(meta["config"]), config_lib.flatten(_plain(self.config))
        )
        if self.start > num_steps:
            raise UserError(
                f"{self.workdir}: is at step {self.start} already, beyond train.num_steps="
                f"{num_steps}; raise it, or take another workdir"
            )
        self.log.say(f"resuming at step {self.start} of {num_steps}")
        self.window = meta["window"]

    def _resume(self, state: TrainState) -> TrainState:
        items = self.store.restore(self.start, _items(state))
        step = runtime.replicate(np.int32(self.start), self.mesh)
        return state._replace(step=step, **items)

    def _compare_configs(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        changed = [f for f in now if f in before and before[f] != now[f]]
        for f in changed:
            self.log.say(
                f"changed since step {self.start}: config.{f}: {before[f]!r} -> {now[f]!r}"
            )
        fixed = [f for f in changed if f in FIXED]
        ema = "optim.ema_decay"
        if bool(before.get(ema, now[ema])) != bool(now[ema]):
            fixed.append(ema)
        if fixed:
            raise UserError(
                f"{self.workdir}: a run cannot go on with another "
                + ", ".join(f"{f} (was {before[f]!r}, is {now[f]!r})" for f in fixed)
                + "; set the old value again, or take another workdir"
            )

    def _open_data(self, folder: Path) -> Iterator[Batch]:
        """The batches that are still to come, of the records in `folder`."""
        from maskrcnn_jax.data import builder, keypoints, pipeline

        self.records = builder.Records(folder)
        t, d = self.config.train, self.config.data
        number, names = self.config.model.keypoints, self.train_data.keypoint_names
        order = keypoints.flip_order(names, d.keypoint_flip, number, mirrors=_mirrors(d))
        if not d.lsj_scale:
            share = pipeline.padding(self.records, d)
            self.log.say(f"{share:.1%} of the training batches' pixels are padding")
        return pipeline.make_batches(
            self.records,
            d,
            t.batch_size,
            t.seed,
            start_step=self.start,
            num_steps=t.num_steps - self.start,
            host=(jax.process_index(), jax.process_count()),
            keypoint_order=order,
        )

    def go(self) -> dict[str, float]:
        """The loop: steps, and what the config and the signals ask for after each.

        An evaluation predicts between two steps; its precision is computed while the next ones are
        taken. The checkpoint of its step is written before it, and the next one only after its
        result (`_save` waits). So the last checkpoint of a killed run is at most at the step of an
        evaluation without a result, and the run that goes on begins with that evaluation. Where
        train.early_stop asks whether to go on, and after the last step, the result is waited for.
        """
        t = self.config.train
        previous = signal.signal(signal.SIGTERM, self._ask_to_stop)
        try:
            if runtime.any_host(self._is_due(self.start) and not self._is_evaluated(self.start)):
                self._evaluate(self.start)
            for done in range(self.start + 1, t.num_steps + 1):
                if self._is_stale():
                    self.log.say(
                        f"no better {t.best_metric} in the last {t.early_stop} evaluations: "
                        f"the run ends early, at step {done - 1}"
                    )
                    break
                self._advance(done)
                if self._is_due(done) or done % t.checkpoint_every == 0:
                    self._save(done)
                if self._is_due(done):
                    self._evaluate(done)
                elif self.pending and self._any_host(self.pending.is_done, done):
                    self._finish_evaluation()
                self._stop_if_asked(done)
            self._finish_evaluation()
        finally:
            signal.signal(signal.SIGTERM, previous)
        if not self.found:
            self._evaluate(self.start)
            self._finish_evaluation()
        self.store.close()
        best = checkpoint.best_step(self.store.folder)
        self.log.say(f"done: {self.workdir}; the best {t.best_metric} is of step {best}")
        return self.found

    def _is_due(self, done: int) -> bool:
        """Whether the config asks for an evaluation at this step."""
        every = self.config.eval.every
        if not done:
            return self.config.eval.at_start
        return done == self.config.train.num_steps or (every > 0 and done % every == 0)

    def _is_evaluated(self, done: int) -> bool:
        name = self.config.train.best_metric
        return any(line["step"] == done and name in line for line in self.log.history)

    def _advance(self, done: int) -> None:
        """Takes one step and reads the metrics of an earlier one."""
        with self.clock.waiting():
            batch = next(self.batches)
        placed = runtime.shard_batch(batch, self.mesh)
        canvas = batch.images.shape[1:3]
        with self.clock.pausing(canvas not in self.programs):
            program = self.programs.get(canvas, self.state, placed)
        self.recent.append((done, batch))
        self.state, metrics = program(self.state, placed)
        self.unread.append((done, metrics))
        self._read_metrics(LAG)

    def _read_metrics(self, lag: int) -> None:
        """Fetches all metrics but the newest `lag`; at the end of a window writes their mean."""
        while len(self.unread) > lag:
            done, on_device = self.unread.popleft()
            values = {k: float(v) for k, v in jax.device_get(on_device).items()}
            if values.pop("bad_step") >= 0:
                self._record_flight(done, values)
            self.window.append(values)
            if done % self.config.train.log_every == 0 or done == self.config.train.num_steps:
                self._write_window(done)

    def _write_window(self, done: int) -> None:
        t, window = self.config.train, self.window
        sums = {k: math.fsum(values[k] for values in window) for k in window[0]}
        mean = {k: v if k in COUNTS else v / len(window) for k, v in sums.items()}
        mean["lr"] = window[-1]["lr"]
        step, wait = self.clock.lap(len(window))
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
                f"step {done}: {mean['dropped_instances']:.0f} objects left out in these steps, "
                f"as data.max_instances is {self.config.data.max_instances}"
            )
        if wait > 0.3 * step and done > self.start + 2 * t.log_every:
            self.log.say(
                f"step {done}: input-bound: {wait / step:.0%} of the time waits for data; more "
                "cores, smaller pictures or data.num_workers would help"
            )

    def _record_flight(self, done: int, values: dict[str, float]) -> None:
        batch = next(b for step, b in self.recent if step == done)
        ids = [int(i) for i in self.records.image_ids[batch.index]]
        folder = self.workdir / "flight"
        report = {"step": done, "losses": values, "image_ids": ids, "classes": self.classes}
        flight.save(folder, self.config, self.state, batch, report)
        terms = ", ".join(f"{k} {v:g}" for k, v in values.items())
        raise Stopped(
            f"step {done}: the loss or its gradient is not finite ({terms}); image ids {ids}. The "
            f"state before the step, the batch and the keys are in {folder}; --mode replay takes "
            "the step again"
        )

    def _evaluate(self, done: int) -> None:
        """Predicts, and leaves the precision to a thread, unless the next step depends on it."""
        self._finish_evaluation()
        self._read_metrics(0)
        trained = {"params": self.state.params, "batch_stats": self.state.batch_stats}
        with self.clock.pausing(True):
            self.pending = self.evaluator.begin(
                self.state.ema or trained, self.workdir / "eval", done
            )
        if self.config.train.early_stop:
            self._finish_evaluation()

    def _finish_evaluation(self) -> None:
        """Waits for the result of the evaluation under way, if there is one, and records it."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        done, t = pending.step, self.config.train
        with self.clock.pausing(True):
            self.found = self.evaluator.finish(pending, self.log, last=done == t.num_steps)
            if done:
                self.store.rate(done, self.found[t.best_metric])
            runtime.return_memory()
        # After the score: without this line, a run that goes on evaluates once more.
        if not self._is_evaluated(done):
            self.log.metrics(done, self.found)

    def _save(self, done: int) -> None:
        self._finish_evaluation()
        self._read_metrics(0)
        meta = {
            "step": done,
            "score": None,  # comes with the result of the evaluation
            "window": self.window,
            "classes": self.classes,
            "config": _plain(self.config),
        }
        with self.clock.pausing(True):
            self.store.save(done, _items(self.state), meta)

    def _is_stale(self) -> bool:
        patience, name = self.config.train.early_stop, self.config.train.best_metric
        scores = [line[name] for line in self.log.history if name in line]
        return 0 < patience <= len(scores) - 1 - int(np.argmax(scores)) if scores else False

    def _ask_to_stop(self, *_: Any) -> None:
        self.stop_asked = True

    def _stop_if_asked(self, done: int) -> None:
        if self._any_host(self.stop_asked, done):
            self._save(done)
            self.store.close()
            raise Interrupted(
                f"asked to stop: step {done} is saved; the same command goes on from it"
            )

    def _any_host(self, flag: bool, done: int) -> bool:
        # Many hosts ask each other only now and then, and so all hear of it at the same step.
        if jax.process_count() > 1 and done % self.config.train.log_every:
            return False
        return runtime.any_host(flag)


def _mirrors(d: ConfigDict) -> bool:
    """Whether left and right ever change places in a training picture."""
    return d.flip > 0 or d.flip_vertical > 0


def _plain(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON gives it back, tuples as lists."""
    return json.loads(json.dumps(config.to_dict()))


def _items(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in checkpoint.ARRAYS}
