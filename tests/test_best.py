"""The best checkpoint is kept and found, and a run without progress ends early."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from maskrcnn_jax import checkpoint, train


def stale(history, patience=2, metric="segm/AP"):
    settings = SimpleNamespace(early_stop=patience, best_metric=metric)
    run = SimpleNamespace(
        config=SimpleNamespace(train=settings), log=SimpleNamespace(history=history)
    )
    return train._Run._is_stale(run)


@pytest.mark.parametrize(
    "scores, patience, expected",
    [
        ([], 2, False),
        ([0.5], 2, False),
        ([0.5, 0.4], 2, False),
        ([0.5, 0.4, 0.3], 2, True),
        ([0.5, 0.4, 0.3], 3, False),
        ([0.5, 0.4, 0.3], 0, False),  # never, by default
        ([0.1, 0.2, 0.3, 0.4], 1, False),
        ([0.5, 0.5, 0.5], 2, True),  # equal is not better
        ([0.5, 0.4, 0.6, 0.5], 2, False),
        ([0.2, -1.0], 1, True),
    ],
)
def test_a_run_is_stale_after_so_many_evaluations_without_a_better_one(scores, patience, expected):
    # Lines of training lie between those of evaluations, and another metric rises all the time.
    lines = [{"step": 5, "loss": 1.0}]
    for i, score in enumerate(scores):
        lines += [{"step": i, "segm/AP": score, "bbox/AP": float(i)}, {"step": i, "loss": 1.0}]
    assert stale(lines, patience) == expected
    assert not stale(lines, patience=1, metric="bbox/AP")


def test_the_best_checkpoint_and_the_last_ones_are_kept(tmp_path):
    scores = {1: None, 2: 0.3, 3: None, 4: 0.7, 5: 0.1, 6: 0.7, 7: 0.2, 8: None}
    expected = {1: [1], 2: [1, 2], 3: [2, 3], 4: [3, 4], 5: [4, 5], 6: [5, 6], 7: [6, 7], 8: None}
    expected[8] = [6, 7, 8]  # the best beside the last two
    store = checkpoint.Checkpoints(tmp_path, keep_last=2)
    folder = tmp_path / "checkpoints"
    assert checkpoint.best_step(folder) is None
    for step, score in scores.items():
        store.save(step, {"params": {"w": jnp.full(3, step)}}, {"score": score, "step": step})
        store.wait()
        assert checkpoint.complete_steps(folder) == expected[step]
    store.close()
    assert checkpoint.best_step(folder) == 6  # of equal scores the later
    variables, meta = checkpoint.load_variables(tmp_path)
    assert meta["step"] == 6 and variables["params"]["w"].tolist() == [6, 6, 6]
    variables, meta = checkpoint.load_variables(folder / "8")
    assert meta["step"] == 8 and variables["params"]["w"].tolist() == [8, 8, 8]
