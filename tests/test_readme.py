"""The README's code runs as it stands but for the layers, and without TensorFlow."""

import re
import subprocess
import sys

import tiny_run

NO_TENSORFLOW = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "array_record", "tensorboardX"):
    sys.modules[name] = None
"""


def test_the_library_example_runs_without_tensorflow(tmp_path):
    text = (tiny_run.ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    chosen = "config.model.freeze_at = 0\n"
    assert chosen in code
    # Layers that are soon compiled, and that run as they are compiled here: unoptimized.
    code = code.replace(chosen, chosen + "".join(f"config.{field}\n" for field in tiny_run.LAYERS))
    done = subprocess.run(
        [sys.executable, "-c", NO_TENSORFLOW + code],
        env=tiny_run.environment(tmp_path),
        cwd=tiny_run.ROOT,
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    boxes, losses = done.stdout.strip().splitlines()
    assert boxes.startswith("(1, 100, 4) (1, 100, 28, 28)")
    assert "nan" not in losses and "'bad_step': -1.0" in losses
