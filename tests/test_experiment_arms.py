"""Every arm of every table of experiments/ can be trained.

By default each different model is traced, which finds what does not fit together. The slow test
(`python -m pytest -m slow tests/test_experiment_arms.py`) trains each different config for three
steps and evaluates it; some twenty models have to be compiled for it.
"""

import csv
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import experiment_arms
import jax
import pytest
import tiny_model
import tiny_run

from experiments import plan, worker
from maskrcnn_jax.models import families
from maskrcnn_jax.models.families import variable_shapes

# No run is written where it would lie.
TRAININGS = experiment_arms.distinct_runs(plan.table_names(), Path("unused"))
MODELS = experiment_arms.distinct_models(TRAININGS)
ARMS = [arms for _, arms in TRAININGS]


@pytest.mark.parametrize("run, arms", MODELS, ids=[arms[0] for _, arms in MODELS])
def test_the_model_of_each_arm_is_traced(run, arms):
    model = families.build(run.config.model, tiny_model.CLASSES)
    variables = variable_shapes(model)
    batch = tiny_model.batch(2, keypoints=run.config.model.keypoints)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    keys = jax.eval_shape(lambda: tiny_model.keys(2))
    terms, *_ = jax.eval_shape(
        lambda v, b, k: families.forward_train(model, v, b, k), variables, batch, keys
    )
    assert all(term.shape == () for term in terms if term is not None)


def test_the_gflops_of_a_prediction_do_not_depend_on_the_device(monkeypatch):
    model = tiny_model.model(mask_branch="mlp", head_norm="none", max_detections=40)
    variables = variable_shapes(model)
    assert jax.default_backend() == "cpu"
    here = worker.gflops(model, variables, tiny_model.CANVAS)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert worker.gflops(model, variables, tiny_model.CANVAS) == here > 0


def test_every_arm_is_among_them():
    expected = [
        f"{name}/{arm.name}"
        for name in plan.table_names()
        for arm in plan.load_table(name).table.arms
    ]
    for runs in (TRAININGS, MODELS):
        assert sorted(sum((arms for _, arms in runs), [])) == sorted(expected)
    first = [arms[0] for arms in ARMS]
    assert {"num_images/1/16", "image_size/3/4", "table_8/both"} <= {*first}, "each by itself"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    """What each training gave, by the first of its arms."""
    folder = tmp_path_factory.mktemp("arms")
    cache = jax.config.jax_compilation_cache_dir
    keep = {"JAX_COMPILATION_CACHE_DIR": cache} if cache else {}
    program = [sys.executable, experiment_arms.__file__, str(folder), *plan.table_names()]
    done = subprocess.run(
        program,
        env=tiny_run.environment(folder / "cache", **keep),
        text=True,
        capture_output=True,
        check=False,
    )
    lines = [x.partition(" ")[2] for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    assert lines, done.stderr
    return {result["arms"][0]: result for result in map(json.loads, lines)}


@pytest.mark.slow
@pytest.mark.parametrize("arms", ARMS, ids=[arms[0] for arms in ARMS])
def test_each_arm_takes_three_steps_and_evaluates(arms, results):
    result = results[arms[0]]
    assert result["status"] == "done", result.get("error")
    assert result["steps"] >= 4, "a line of the log for each step and the evaluation"
    assert result["parameters"] > 1e4 and result["gflops"] > 0
    assert 0 <= result["metrics"]["bbox/AP"] <= 1 and math.isfinite(result["seconds_per_step"])


TWO_ARMS = """'''Mirrored or not?'''

from experiments.table import Arm, Table

TABLE = Table(arms=[Arm("never", {"data.flip": 0.0}), Arm("always", {"data.flip": 1.0})])
"""


@pytest.mark.slow
def test_real_runs_whose_runner_is_killed_three_times_end_as_undisturbed_ones(tmp_path):
    (tmp_path / "mine.py").write_text(TWO_ARMS)
    fields = {**experiment_arms.FIELDS, "train.num_steps": 300}
    command = [
        *(sys.executable, str(tiny_run.ROOT / "experiments" / "run.py"), str(tmp_path / "mine.py")),
        *("--seeds", "2", *(f"--config.{name}={value}" for name, value in fields.items())),
    ]

    def start(workdir, kill):
        """The lines of the runner's output, which is killed when a worker begins to train."""
        process = subprocess.Popen(
            [*command, "--workdir", str(tmp_path / workdir)],
            env=tiny_run.environment(tmp_path / "cache"),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        lines = []
        for line in process.stdout:
            lines.append(line)
            if kill and line.startswith("    step "):
                process.kill()
                break
        process.communicate()
        assert process.returncode == (-signal.SIGKILL if kill else 0), "".join(lines)
        return lines

    def outcome(workdir):
        rows = list(csv.DictReader((tmp_path / workdir / "mine.csv").open()))
        found = [(tmp_path / workdir / r["folder"] / "eval/results.json").read_text() for r in rows]
        return [{**r, "seconds_per_step": None} for r in rows], found

    start("killed", True)
    for _ in range(2):
        assert any("    resuming at step " in line for line in start("killed", True))
    start("killed", False)
    start("undisturbed", False)
    assert outcome("killed") == outcome("undisturbed")
    assert len(set(outcome("killed")[1])) == 4, "arms and seeds differ"
