"""The benchmarks run, at a size that tells nothing about speed."""

import json

import jax

from benchmarks import train_step


def test_training_step_benchmark(tmp_path):
    sizes = f"--depth 18 --width 8 --channels 16 --rois 16 --height 64 --width-px 96 --steps 3 \
        --batch {jax.device_count()} --dtype float32"
    figures = train_step.main([*sizes.split(), "--output", str(tmp_path / "figures.json")])
    assert figures["all_finite"] and figures["steps"] == 3
    assert figures["compiled_programs"] == 1
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
