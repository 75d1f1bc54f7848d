"""Evaluation beside the device and the training: what waits for what, and what a kill leaves."""

import collections
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from jax.sharding import AxisType, Mesh
from pycocotools import cocoeval

from maskrcnn_jax import checkpoint, evaluate, results, runtime, train
from maskrcnn_jax.datasets import load_data
from maskrcnn_jax.errors import Stopped
from maskrcnn_jax.logs import RunLog, StepClock
from maskrcnn_jax.models import families
from maskrcnn_jax.train_step import TrainState
from maskrcnn_jax.types import Detections

PATIENCE = 60  # seconds after which a test that waits for another thread fails


class Killed(BaseException):
    """The end of a process, at the place that raises it."""


class Scorer(evaluate.Evaluator):
    """Predicts a number out of the weights; `score(step, number)` makes the precision of it."""

    def __init__(self, score=lambda step, number: number):
        self.score, self.begun = score, []

    def begin(self, variables, folder, step):
        number = float(variables["params"]["w"][0])
        self.begun.append(step)

        def work():
            return results.Evaluation({"segm/AP": self.score(step, number)}, [], {})

        return evaluate.Pending(step, folder, runtime.in_background(work))

    def _tell(self, *_):
        pass


class Run(train._Run):
    """A run whose steps are arithmetic; all else is that of training."""

    def __init__(self, workdir, scorer, before_step=lambda done: None, **fields):
        self.config, self.workdir = tiny_model.config(), workdir
        schedule = {"num_steps": 12, "checkpoint_every": 3, "log_every": 1, "keep_last": 2}
        self.config.train.update(schedule | {k: v for k, v in fields.items() if k != "at_start"})
        self.config.eval.update({"every": 4, "at_start": fields.get("at_start", False)})
        self.store = checkpoint.Checkpoints(workdir, self.config.train.keep_last)
        self.start = self.store.latest_step or 0
        self.log = RunLog(workdir, self.start, 12, speaks=True)
        self.state = TrainState(0, -1, 0, {"w": jnp.full(3, 0.1)}, {}, {}, {})
        if self.start:
            found = self.store.restore(self.start, {"params": self.state.params})
            self.state = self.state._replace(**found)
        self.evaluator, self.before_step = scorer, before_step
        self.classes, self.window, self.unread = {}, [], collections.deque()
        self.clock, self.stop_asked = StepClock(), False
        self.pending, self.found = None, {}

    def _advance(self, done):
        self.before_step(done)
        w = self.state.params["w"]
        self.state = self.state._replace(params={"w": 3.7 * w * (1 - w)})
        self.log.metrics(done, {"loss": float(w[0])})

    def go(self):
        try:
            return super().go()
        except Killed:
            self.store.close()  # else its thread would go on writing, as none of a killed process
            raise
        finally:
            self.log.close()


def kill_at(step):
    """For before_step: ends the process before that step."""

    def before(done):
        if done == step:
            raise Killed

    return before


def left_by(workdir):
    """The log and the checkpoints of a run, to the bit."""
    folder = workdir / "checkpoints"
    found = {"log": (workdir / "metrics.jsonl").read_text()}
    for step in checkpoint.complete_steps(folder):
        variables, meta = checkpoint.load_variables(folder / str(step))
        found[step] = meta["score"], variables["params"]["w"].tobytes()
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    metrics = Run(workdir, Scorer()).go()
    lines = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "segm/AP" in line] == [4, 8, 12]
    assert metrics["segm/AP"] == lines[-1]["segm/AP"]
    return workdir


def test_steps_are_taken_while_the_precision_is_computed(undisturbed, tmp_path):
    taken = collections.defaultdict(threading.Event)
    saved = {}

    def score(step, number):
        # Up to the step of the next checkpoint, before which the run waits.
        later = {4: 6, 8: 9}
        assert step not in later or taken[later[step]].wait(PATIENCE)
        saved[step] = checkpoint.complete_steps(tmp_path / "checkpoints")
        return number

    Run(tmp_path, Scorer(score), lambda done: taken[done].set()).go()
    assert all(max(steps) <= step for step, steps in saved.items())
    assert left_by(tmp_path) == left_by(undisturbed)


def unending(step, number):
    threading.Event().wait()


def killed_in_step_5(workdir, monkeypatch, **fields):
    """While the result of step 4 is not there yet."""
    Run(workdir, Scorer(unending), kill_at(5), **fields).go()


def kill_where(monkeypatch, owner, name, condition):
    """Ends the process where a method is called with arguments that meet a condition."""
    method = getattr(owner, name)

    def call(*args):
        if condition(*args):
            raise Killed
        method(*args)

    monkeypatch.setattr(owner, name, call)


def killed_before_the_score(workdir, monkeypatch, **fields):
    run = Run(workdir, Scorer(), **fields)
    kill_where(monkeypatch, run.store, "rate", lambda step, score: True)
    run.go()


def killed_before_the_line(workdir, monkeypatch, **fields):
    run = Run(workdir, Scorer(), **fields)
    kill_where(monkeypatch, run.log, "metrics", lambda step, values: "segm/AP" in values)
    run.go()


def killed_at_the_end(workdir, monkeypatch, **fields):
    """Before the score of the last step."""
    run = Run(workdir, Scorer(), **fields)
    kill_where(monkeypatch, run.store, "rate", lambda step, score: step == 12)
    run.go()


@pytest.mark.parametrize(
    "kill", [killed_in_step_5, killed_before_the_score, killed_before_the_line, killed_at_the_end]
)
def test_a_killed_run_with_an_evaluation_under_way_ends_equal(
    kill, undisturbed, tmp_path, monkeypatch
):
    with pytest.raises(Killed):
        kill(tmp_path, monkeypatch)
    scorer = Scorer()
    metrics = Run(tmp_path, scorer).go()
    assert scorer.begun == ([12] if kill is killed_at_the_end else [4, 8, 12])
    assert metrics == {"segm/AP": pytest.approx(left_by(undisturbed)[12][0], rel=0)}
    assert left_by(tmp_path) == left_by(undisturbed)


@pytest.mark.parametrize("kill", [None, killed_before_the_score, killed_before_the_line])
def test_a_run_that_ends_early_waits_for_the_result(kill, tmp_path, monkeypatch, capsys):
    taken = []
    constant = Scorer(lambda step, number: 0.5)
    if kill:
        with pytest.raises(Killed):
            kill(tmp_path, monkeypatch, early_stop=1)
    assert Run(tmp_path, constant, taken.append, early_stop=1).go() == {"segm/AP": 0.5}
    assert taken[-1] == 8 and "the run ends early, at step 8" in capsys.readouterr().out
    # Once more: it has ended.
    taken.clear()
    Run(tmp_path, constant, taken.append, early_stop=1).go()
    assert taken == []


def test_a_request_to_stop_waits_for_the_result_and_saves(undisturbed, tmp_path):
    asked = threading.Event()

    def ask(done):
        if done == 5:
            run.stop_asked = True
            asked.set()

    run = Run(tmp_path, Scorer(lambda step, number: asked.wait(PATIENCE) and number), ask)
    with pytest.raises(Stopped, match="step 5 is saved"):
        run.go()
    assert run.store.folder.joinpath("5").is_dir()
    assert checkpoint.read_meta(run.store.folder / "4")["score"] is not None
    Run(tmp_path, Scorer()).go()
    assert left_by(tmp_path) == left_by(undisturbed)


def test_an_error_of_the_computation_ends_the_run(tmp_path):
    def fail(step, number):
        raise RuntimeError("an odd annotation")

    run = Run(tmp_path, Scorer(fail))
    with pytest.raises(RuntimeError, match="an odd annotation"):
        run.go()
    # On another host, which hears of it where both wait for each other.
    pending = evaluate.Pending(4, tmp_path, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "gather_bytes", lambda _: [b'[{}, "RuntimeError(7)"]', b'[{}, ""]'])
        with pytest.raises(Stopped, match=r"step 4: the first host .*: RuntimeError\(7\)"):
            run.evaluator.finish(pending, run.log)


@pytest.mark.parametrize(
    "at_start, kill, expected",
    [
        (True, None, [0, 4, 8, 12]),
        (True, 2, [4, 8, 12]),  # its line was written before the kill
        (True, 5, [4, 8, 12]),
        (False, None, [4, 8, 12]),
    ],
)
def test_evaluation_before_the_first_step(at_start, kill, expected, tmp_path):
    if kill:

        def before(done):
            if done == 1:
                run._finish_evaluation()  # the first result is there
            kill_at(kill)(done)

        run = Run(tmp_path, Scorer(), before, at_start=at_start)
        with pytest.raises(Killed):
            run.go()
    scorer = Scorer()
    Run(tmp_path, scorer, at_start=at_start).go()
    assert scorer.begun[-3:] == [4, 8, 12] and (0 in scorer.begun) == (0 in expected)
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line["step"] for line in lines if "segm/AP" in line]
    assert evaluated == ([0, 4, 8, 12] if at_start else [4, 8, 12])


def test_late_lines_stand_at_their_step(tmp_path):
    log = RunLog(tmp_path, 0, 9, speaks=True)
    for step, name in [(4, "loss"), (6, "loss"), (4, "segm/AP"), (8, "loss")]:
        log.metrics(step, {name: 1.0})
    log.close()
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == log.history
    found = [(line["step"], *(line.keys() - {"step"})) for line in lines]
    assert found == [(4, "loss"), (4, "segm/AP"), (6, "loss"), (8, "loss")]


def test_other_threads_are_heard_while_one_evaluates(capsys):
    silent, heard = threading.Event(), threading.Event()

    def work():
        with results._silence():
            silent.set()
            heard.wait(PATIENCE)
            cocoeval.print("of pycocotools")

    future = runtime.in_background(work)
    assert silent.wait(PATIENCE)
    print("of the run")
    cocoeval.print("of the user's own evaluation")
    heard.set()
    future.result(PATIENCE)
    assert capsys.readouterr().out == "of the run\nof the user's own evaluation\n"


@pytest.fixture
def evaluator(tmp_path, monkeypatch):
    """Five images in batches of two; the model finds two objects in each."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    config = tiny_model.config(mask_branch="none")
    config.data.update({"cache_dir": str(tmp_path), "shapes_train": 1, "shapes_val": 5})
    config.data.update({"short_test": 64, "long_test": 96, "canvases": ((96, 96),)})
    config.eval.update({"batch_size": 2, "num_pictures": 0})
    _, data = load_data(config, train=False)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
    model = families.build(config.model, len(data.names))
    found = evaluate.Evaluator(model, data, config, mesh, print)
    found.dispatched = [threading.Event() for _ in range(3)]
    numbers = iter(range(3))

    def detect(variables, views):
        n = next(numbers)
        found.dispatched[n].set()
        boxes = np.tile(np.array([1, 2, 30, 40], np.float32), (2, 2, 1)) + n
        scores = np.tile(np.array([0.75, 0.25], np.float32), (2, 1))
        classes, valid = np.zeros((2, 2), np.int32), np.ones((2, 2), bool)
        keypoints = np.zeros((2, 2, 0, 4, 4), np.float32)
        out = Detections(boxes, scores, classes, valid, None, np.zeros(2, np.int32), keypoints)
        return runtime.shard_batch(out, mesh)

    found._detect = detect
    return found


def evaluated(evaluator, folder):
    """The results that an evaluation writes."""
    log = RunLog(folder, 0, 0, speaks=True, records=False)
    evaluator.run({}, folder, log, 0)
    return json.loads((folder / "results.json").read_text())


def test_masks_are_pasted_beside_the_device_and_stay_in_order(evaluator, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "num_threads", lambda: 2)
    finish, done, threads = evaluator._finish, collections.defaultdict(threading.Event), set()

    def backwards(row, *args):
        """The second image of a batch first, and that when the next batch is on the device."""
        threads.add(threading.get_ident())
        if row in (0, 2):
            assert done[row + 1].wait(PATIENCE)
        elif row in (1, 3):
            assert evaluator.dispatched[row // 2 + 1].wait(PATIENCE)
        found = finish(row, *args)
        done[row].set()
        return found

    monkeypatch.setattr(evaluator, "_finish", backwards)
    rows = evaluated(evaluator, tmp_path)
    expected = [(i, s) for i in evaluator._data.image_ids for s in (0.75, 0.25)]
    assert [(row["image_id"], row["score"]) for row in rows] == expected
    assert threading.get_ident() not in threads


def test_an_error_in_the_pool_is_raised_by_the_evaluation(evaluator, tmp_path, monkeypatch):
    def fail(row, *args):
        raise ValueError(f"row {row} is odd")

    monkeypatch.setattr(evaluator, "_finish", fail)
    with pytest.raises(ValueError, match="row 0 is odd"):
        evaluated(evaluator, tmp_path)
