"""The runner of experiments/ with a training that takes no time: arithmetic instead of a model.

As a program, `python tests/fake_training.py KILL_AT ARGUMENTS...`, it is the runner, which is
killed when it has taken KILL_AT steps (0: never).
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

STEPS_BETWEEN_SAVES = 2


def launch(folder, before_step=lambda: None, broken=lambda config: False):
    """In the place of `run.launch`: "trains" by steps, each of which depends on all before it, and
    goes on from the state that it saved last."""
    from experiments import worker

    config = json.loads((folder / worker.ASKED).read_text())
    saved = folder / "state.json"
    state = json.loads(saved.read_text()) if saved.is_file() else {"step": 0, "value": "begin"}
    while state["step"] < config["train"]["num_steps"]:
        before_step()
        if broken(config) and state["step"] == 3:
            (folder / "log.txt").write_text("step 3\nMemoryError: out of memory\n")
            return -9
        text = json.dumps([state, config["model"], config["data"], config["train"]["seed"]])
        value = hashlib.sha256(text.encode()).hexdigest()
        state = {"step": state["step"] + 1, "value": value}
        if state["step"] % STEPS_BETWEEN_SAVES == 0:
            saved.write_text(json.dumps(state))
            with (folder / "metrics.jsonl").open("a") as log:
                log.write(json.dumps({"step": state["step"], "time/step": 0.5}) + "\n")
    model = config["model"]
    kinds = ["bbox"] + ["segm"] * (model["mask_branch"] != "none")
    kinds += ["keypoints"] * (model["keypoints"] > 0)
    (folder / worker.RESULT).write_text(json.dumps(result(state["value"], kinds)))
    return 0


def result(value, kinds=("bbox", "segm")):
    """What a worker writes, the metrics drawn from a text of hexadecimal digits."""
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    keys = [f"{kind}/{name}" for kind in kinds for name in names]
    metrics = {key: int(value[3 * i : 3 * i + 3], 16) / 4096 for i, key in enumerate(keys)}
    cost = {"parameters": 12_345, "gflops": 0.5, "canvas": [64, 96], "device": "1 x fake"}
    return {"status": "done", "metrics": metrics, "seconds_per_step": 0.5, **cost}


def main(kill_at, argv):
    """The runner's exit status, unless it was killed."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from experiments import run

    taken = 0

    def count():
        nonlocal taken
        taken += 1
        if taken == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    run.launch = lambda folder: launch(folder, count)
    return run.main(argv)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
