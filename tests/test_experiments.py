"""The runner of experiments/: plans, interruptions, failures, shards, what the tables say."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import fake_training
import pytest
import tiny_coco

from experiments import noise, plan, plot, report, run, worker
from experiments.settings import SETTINGS
from maskrcnn_jax import config as config_lib
from maskrcnn_jax import files
from maskrcnn_jax.errors import Interrupted, Stopped, UserError

ROOT = Path(__file__).parents[1]
OWN = """'''Does the seed matter more than the RPN?'''

from experiments.table import Arm, Table, masks

TABLE = Table(
    against="wide",
    arms=[
        Arm("narrow", {"model.rpn_channels": 16}, masks(30.0, 50.0)),
        Arm("wide", {"model.rpn_channels": 32}, masks(31.5)),
    ],
)
"""


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory) -> Path:
    """A data set laid out like COCO."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        annotations, images = tiny_coco.boxes_set(folder / split)
        text = annotations.read_text()
        for kind in ("instances", "person_keypoints"):
            (folder / "annotations" / f"{kind}_{split}.json").write_text(text)
    return folder


@pytest.fixture
def own(tmp_path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return str(path)


@pytest.fixture
def faked(monkeypatch):
    """No training; returns the list of the folders that were trained."""
    trained = []

    def launch(folder):
        trained.append(folder)
        return fake_training.launch(folder)

    monkeypatch.setattr(run, "launch", launch)
    return trained


def command(workdir, *argv, steps=6):
    fields = [] if steps is None else [f"--config.train.num_steps={steps}"]
    return [*argv, "--workdir", str(workdir), *fields]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", plan.table_names())
def test_dry_run_of_every_table(name, setting, coco_folder, tmp_path, capsys):
    data = ["--data", str(coco_folder)] if setting == "real" else []
    argv = command(tmp_path / "w", name, "--setting", setting, "--dry-run", *data, steps=None)
    assert run.main(argv) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    loaded = plan.load_table(name)
    assert loaded.question in printed
    for arm in loaded.table.arms:
        assert re.search(rf"│ {re.escape(arm.name)} +│.*│ 3 to do │ \d+ ", printed), arm.name
    assert f"{3 * len(loaded.table.arms)} to do" in printed and "unknown" in printed
    assert not (tmp_path / "w").exists()


def test_arms_differ_and_seeds_and_data_do_not(tmp_path):
    for name in plan.table_names():
        loaded = plan.load_table(name)
        runs = plan.make_runs(loaded, SETTINGS["shapes"], tmp_path, 2, {})
        assert len({r.key for r in runs}) == len(runs), f"{name}: two arms are the same"
        assert len({r.arm_key for r in runs}) == len(loaded.table.arms)
        assert [r.seed for r in runs] == sorted(r.seed for r in runs)
        varied = {field for arm in loaded.table.arms for field in arm.fields}
        for r in runs:
            changed = {field for field, *_ in config_lib.diff(runs[0].config, r.config)}
            assert changed <= varied | {"train.seed"}, (name, r.arm)
            assert r.config.train.seed == r.seed


def test_killed_three_times_the_table_is_the_same(own, tmp_path):
    def start(workdir, kill_at):
        program = [sys.executable, str(ROOT / "tests" / "fake_training.py"), str(kill_at)]
        argv = command(tmp_path / workdir, own, "--seeds", "3")
        return subprocess.run([*program, *argv], capture_output=True, text=True, check=False)

    for kill_at in (4, 9, 16):  # of 36 steps in all, of which some are taken twice
        killed = start("killed", kill_at)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    last = start("killed", 0)
    assert last.returncode == 0, last.stderr
    assert "done before" in last.stdout and "begun" in last.stdout
    assert start("undisturbed", 0).returncode == 0
    for name in ("mine.md", "mine.csv"):
        ours, theirs = ((tmp_path / w / name).read_text() for w in ("killed", "undisturbed"))
        assert ours == theirs, name
    assert len(list((tmp_path / "killed" / "runs").iterdir())) == 6


def test_finished_runs_are_not_repeated_and_changed_ones_are_new(own, faked, tmp_path, capsys):
    assert run.main(command(tmp_path, own, "--seeds", "2")) == 0
    assert len(faked) == 4
    assert run.main(command(tmp_path, own, "--seeds", "2", "--config.data.num_workers=3")) == 0
    assert len(faked) == 4, "where the number of threads changes, the result does not"
    assert run.main(command(tmp_path, own, "--seeds", "3")) == 0
    assert len(faked) == 6
    assert run.main(command(tmp_path, own, "--seeds", "3", "--config.optim.base_lr=0.5")) == 0
    assert len(faked) == len(set(faked)) == 12
    capsys.readouterr()
    assert run.main(command(tmp_path, own, "--seeds", "4", "--dry-run", steps=6)) == 0
    printed = capsys.readouterr().out
    assert "3 done, 1 to do" in printed and "2 to do, 12 steps, about 6 s" in printed


def test_a_failed_run_is_recorded_and_the_others_go_on(own, tmp_path, monkeypatch, capsys):
    broken = {"now": True}

    def is_broken(config):
        return broken["now"] and config["model"]["rpn_channels"] == 16

    trained = []

    def launch(folder):
        trained.append(folder)
        return fake_training.launch(folder, broken=is_broken)

    monkeypatch.setattr(run, "launch", launch)
    assert run.main(command(tmp_path, own, "--seeds", "2")) == 1
    text = (tmp_path / "mine.md").read_text()
    assert "narrow, seed 1: failed (ended by signal 9): `MemoryError: out of memory`" in text
    assert "| wide | 2 |" in text and "| narrow | 0 |" in text
    assert "against" not in text, "nothing to compare with"
    assert run.main(command(tmp_path, own, "--seeds", "2")) == 1
    assert len(trained) == 4, "failed runs wait for --retry"
    capsys.readouterr()
    for retry, told in ((), "0 to do"), (("--retry",), "2 to do, 8 steps"):
        assert run.main(command(tmp_path, own, "--seeds", "2", "--dry-run", *retry)) == 0
        assert told in capsys.readouterr().out, "the first two of six steps are saved"
    broken["now"] = False
    assert run.main(command(tmp_path, own, "--seeds", "2", "--retry")) == 0
    assert len(trained) == 6
    assert "failed" not in (tmp_path / "mine.md").read_text()
    capsys.readouterr()


def test_shards_share_the_runs(own, faked, tmp_path, capsys):
    assert run.main(command(tmp_path / "whole", own)) == 0
    everything = {folder.name for folder in faked}
    parts = []
    for i in (1, 2, 3, 4):
        faked.clear()
        run.main(command(tmp_path / "parts", own, "--shard", f"{i}/4"))
        parts.append([folder.name for folder in faked])
    assert sorted(map(len, parts)) == [1, 1, 2, 2]
    assert sorted(sum(parts, [])) == sorted(everything)
    faked.clear()
    assert run.main(command(tmp_path / "parts", own, "--report")) == 0 and not faked
    for name in ("mine.md", "mine.csv"):
        assert (tmp_path / "parts" / name).read_text() == (tmp_path / "whole" / name).read_text()
    with pytest.raises(SystemExit):
        run.main(command(tmp_path, own, "--shard", "5/4"))
    assert "i/n" in capsys.readouterr().err


def test_equal_arms_of_two_tables_are_trained_once(own, faked, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(OWN.replace('"narrow"', '"slim"').replace("32}", "48}").replace("31.5", "3"))
    assert run.main(command(tmp_path, own, str(other), "--seeds", "2")) == 0
    assert len(faked) == len(set(faked)) == 6
    rows = [list(csv.DictReader((tmp_path / f"{n}.csv").open())) for n in ("mine", "other")]
    narrow, slim = ([r for r in part if r["arm"] in ("narrow", "slim")] for part in rows)
    assert [r["segm/AP"] for r in narrow] == [r["segm/AP"] for r in slim]


def test_the_report_says_what_is_measured(own, faked, tmp_path):
    assert run.main(command(tmp_path, own, "--seeds", "3")) == 0
    rows = list(csv.DictReader((tmp_path / "mine.csv").open()))
    narrow = [100 * float(r["segm/AP"]) for r in rows if r["arm"] == "narrow"]
    wide = [100 * float(r["segm/AP"]) for r in rows if r["arm"] == "wide"]
    mean = sum(narrow) / 3
    deviation = (sum((x - mean) ** 2 for x in narrow) / 2) ** 0.5
    text = (tmp_path / "mine.md").read_text()
    assert f"| narrow | 3 | {mean:.1f} ± {deviation:.1f} |" in text
    assert "| 30.0 / 50.0 / – |" in text
    assert f"AP of masks, narrow against wide: {mean - sum(wide) / 3:+.1f} (" in text
    assert "The paper has -1.5." in text and noise.RULE in text
    assert "| narrow | 0.01 | 0.50 at 64 x 96 | 0.500 ± 0.000 | 1 x fake |" in text
    if "pip install" not in text:
        assert (tmp_path / "mine.png").read_bytes()[1:4] == b"PNG"


def test_one_seed_claims_nothing(own, faked, tmp_path):
    assert run.main(command(tmp_path, own, "--seeds", "1")) == 0
    text = (tmp_path / "mine.md").read_text()
    assert "not judged: one seed tells nothing about the noise" in text
    assert "exceeds the noise (p" not in text and "± " not in text.split("GFLOPs")[0]


def test_noise_is_welchs_test():
    # t = -1 / sqrt(1/3 + 4/3), 2.94 degrees of freedom; p by numerical integration of its density.
    ours, theirs = (1.0, 2.0, 3.0), (1.0, 3.0, 5.0)
    t, df = -1 / (1 / 3 + 4 / 3) ** 0.5, (5 / 3) ** 2 / ((1 / 3) ** 2 / 2 + (4 / 3) ** 2 / 2)
    import numpy as np

    x = np.linspace(-2000, t, 4_000_001)
    density = (1 + x**2 / df) ** (-(df + 1) / 2)
    inner = np.linspace(t, 0, 100_001)
    half = np.trapezoid((1 + inner**2 / df) ** (-(df + 1) / 2), inner)
    tail = np.trapezoid(density, x)
    found = noise.compare(ours, theirs)
    assert found.difference == pytest.approx(-1)
    assert found.p == pytest.approx(tail / (tail + half), rel=1e-3) and not found.exceeds
    assert noise.compare((1.0, 1.1, 0.9), (5.0, 5.1, 4.9)).exceeds
    assert noise.compare((1.0,), (5.0, 5.1)).p is None
    assert noise.compare((1.0, 1.0), (5.0, 5.0)).p is None


def test_without_matplotlib_the_table_says_so(own, faked, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run.main(command(tmp_path, own, "--seeds", "1")) == 0
    assert "pip install 'maskrcnn_jax[plot]'" in (tmp_path / "mine.md").read_text()
    assert not (tmp_path / "mine.png").exists()
    assert "no plot" in plot.draw(tmp_path / "x.png", plan.load_table(own), {"narrow": {}})


def test_the_readmes_example_runs_and_its_results_can_be_written(faked, tmp_path, capsys):
    text = (ROOT / "experiments" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    mine, readme = tmp_path / "mine.py", tmp_path / "README.md"
    mine.write_text(code)
    readme.write_text(text)
    shutil.copytree(ROOT / "experiments" / "plots", tmp_path / "plots")
    assert run.main(command(tmp_path / "w", str(mine), "--seeds", "2")) == 0
    for _ in range(2):  # the second time in the place of the first
        argv = command(tmp_path / "w", str(mine), "--seeds", "2", "--report", str(readme))
        assert run.main(argv) == 0
    written = readme.read_text()
    assert written.count("### mine, shapes") == 1 and "narrow against" not in written
    assert "wide against narrow" in written
    begin, end = written.index(report.BEGIN), written.index(report.END)
    assert begin < written.index("### mine, shapes") < end
    assert written[:begin] == text[: text.index(report.BEGIN)]
    assert written[end:] == text[text.index(report.END) :]
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", written):
        assert (tmp_path / picture).is_file()
    readme.write_text("no marks")
    assert run.main(argv) == 2
    assert report.BEGIN in capsys.readouterr().err
    for name in plan.table_names():
        assert f"| `{name}` |" in text, f"{name} is not in experiments/README.md"


MISTAKES = {
    "no such table": (["table_9"], "give one of class_agnostic, image_size"),
    "not a table": (["run"], "there is no such table"),
    "an arm's own field": (["norm", "--config.model.norm=group"], "differ in model.norm"),
    "misspelt": (["norm", "--config.model.wdth=3"], "the nearest is 'model.width'"),
    "data for shapes": (["norm", "--data", "x"], "generates its own"),
    "no data": (["norm", "--setting", "real"], "--data FOLDER"),
    "strange data": (["norm", "--setting", "real", "--data", "x"], "0 files are called"),
}


@pytest.mark.parametrize("argv, message", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_before_anything_is_trained(argv, message, tmp_path, capsys):
    assert run.main(command(tmp_path / "w", *argv, steps=None)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


BROKEN_TABLES = {
    "a misspelt field": (OWN.replace("rpn_channels", "rpn_chanels"), "arm 'narrow': there is no"),
    "a wrong value": (OWN.replace("16}", "'x'}"), "model.rpn_channels='x'"),
    "one name twice": (OWN.replace('"narrow"', '"wide"'), "different names"),
    "an unknown reference": (OWN.replace('against="wide"', 'against="w"'), "none of its arms"),
    "no table": ("x = 1", "there is no TABLE"),
    "a crash": ("1 / 0", "ZeroDivisionError"),
}


@pytest.mark.parametrize("text, message", BROKEN_TABLES.values(), ids=BROKEN_TABLES)
def test_broken_tables_are_told(text, message, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(text)
    assert run.main(command(tmp_path / "w", str(tmp_path / "mine.py"), "--dry-run")) == 2
    assert message in capsys.readouterr().err


# A worker that says that it trains, and when it is stopped, that it saves.
STOPPABLE = """
import signal, sys
def save(*_):
    print("saved", flush=True)
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
print("trains", flush=True)
signal.pause()
"""


def test_an_interruption_is_passed_on_and_is_no_failure(own, tmp_path):
    (tmp_path / "stoppable.py").write_text(STOPPABLE)
    program = (
        f"import signal, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        # Who starts the tests in the background has them ignore it, children included.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from experiments import run, worker\n"
        f"worker.__file__ = {str(tmp_path / 'stoppable.py')!r}\n"
        f"sys.exit(run.main({command(tmp_path / 'w', own)!r}))\n"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in runner.stdout:
        if "trains" in line:
            break
    runner.send_signal(signal.SIGINT)
    runner.communicate(timeout=120)
    assert runner.returncode == 1
    (folder,) = (tmp_path / "w" / "runs").iterdir()
    assert worker.read_result(folder) is None
    assert (folder / worker.ASKED).is_file()


def test_a_worker_does_not_outlive_its_runner(tmp_path):
    program = (
        f"import signal, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from experiments import worker\n"
        "worker.work = lambda folder: signal.pause()\n"
        "worker.main(['x'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    process.stdin.close()
    assert process.wait(timeout=120) == -signal.SIGTERM


def test_a_second_worker_waits_for_the_first(tmp_path, capsys):
    found = []
    with worker._alone(tmp_path):
        second = threading.Thread(target=lambda: found.append(worker.work(tmp_path)))
        second.start()
        (tmp_path / worker.RESULT).write_text(json.dumps(fake_training.result("0" * 64)))
    second.join(timeout=120)
    assert found and found[0]["status"] == "done"


def test_the_real_command_starts(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "run.py"), "--list"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in plan.table_names():
        assert f"{name}: {plan.load_table(name).question}" in done.stdout


def test_reports_that_are_written_at_once_do_not_meet(tmp_path):
    path, both_write = tmp_path / "table.md", threading.Barrier(2)
    failures = []

    def write(text):
        try:
            with files.replacing(path) as temporary:
                temporary.write_text(text)
                both_write.wait(timeout=60)
        except OSError as error:
            failures.append(error)

    texts = "of one shard", "of another"
    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not failures and path.read_text() in texts
    with pytest.raises(KeyError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]


def test_neither_texts_nor_plots_have_a_fixed_temporary_name(own, faked, tmp_path):
    assert run.main(command(tmp_path, own, "--seeds", "1")) == 0
    for name in ("mine.md", "mine.csv", "mine.png"):
        (tmp_path / f"{name}.tmp").mkdir()  # what another shard would be writing
    assert run.main(command(tmp_path, own, "--seeds", "1")) == 0


def arms_of(name, setting, workdir, *argv):
    """arm -> flat config of the plan that a command makes; the data it names are read."""
    args, overrides = run._parse([name, "--setting", setting, *argv])
    loaded = plan.load_table(name)
    data = run._data(args, overrides, loaded.table)
    runs = plan.make_runs(loaded, SETTINGS[setting], workdir, 1, data, overrides)
    return {r.arm: config_lib.flatten(r.config) for r in runs}


def four_fields(folder):
    return [
        f"--config.data.{split}.{kind}={folder / path}"
        for split in ("train", "val")
        for kind, path in (
            ("annotations", f"annotations/instances_{split}2017.json"),
            ("images", f"{split}2017/images"),
        )
    ]


def test_parts_of_the_images_are_of_those_that_there_are(coco_folder, tmp_path):
    def limits(setting, *argv):
        return [
            arm["data.limit"] for arm in arms_of("num_images", setting, tmp_path, *argv).values()
        ]

    assert limits("shapes") == [100, 400, 1600]
    assert limits("shapes", "--config.data.shapes_train=400")[:2] == [25, 100]
    assert limits("shapes", "--config.data.limit=800") == [50, 200, 800]
    assert limits("coco") == [7393, 29572, 0]
    fields = four_fields(coco_folder)
    for setting in ("real", "coco"):
        assert limits(setting, *fields) == [1, 2, 0], "of nine pictures"
    assert limits("real", "--data", str(coco_folder)) == [1, 2, 0]
    assert limits("real", *fields, "--config.data.limit=8") == [1, 2, 8]
    with pytest.raises(UserError, match="set --config.data.limit"):
        limits("coco", "--config.data.name=mine", "--config.data.module=m.py")


@pytest.mark.parametrize("setting", ["shapes", "coco"])
def test_pictures_of_all_sizes_come_in_the_same_order(setting, tmp_path):
    arms = arms_of("image_size", setting, tmp_path)
    for arm in arms.values():
        ((height, width),) = arm["data.canvases"]  # one, and so one group of pictures
        assert height == width >= arm["data.long"] == arm["data.long_test"] > width - 32
    longs = [arm["data.long"] for arm in arms.values()]
    assert longs == sorted(set(longs))
    assert len({arm["train.seed"] for arm in arms.values()}) == 1


def test_factors_are_of_what_the_command_line_says(tmp_path):
    steps = arms_of("table_8", "shapes", tmp_path, "--config.train.num_steps=50")
    assert sorted({arm["train.num_steps"] for arm in steps.values()}) == [50, 100]


def test_lists_serve_as_tuples_and_strange_values_are_told(tmp_path, capsys):
    def plan_of(value):
        text = OWN.replace('{"model.rpn_channels": 16}', value)
        (tmp_path / "mine.py").write_text(text.replace("import Arm", "import Arm, Times"))
        return run.main(command(tmp_path / "w", str(tmp_path / "mine.py"), "--dry-run"))

    assert plan_of('{"model.pixel_std": [57.375, 57.12, 58.395]}') == 0
    assert "(64.0, 64.0, 64.0)" in capsys.readouterr().out, "what the setting has for it"
    assert plan_of('{"data.short": Times([0.5, 1.0])}') == 0
    wrong = ("[50]", "{50: 1}", "Times((1, 2))")
    for value in (*(f'{{"model.depth": {v}}}' for v in wrong), '{"model.neck": Times(2)}'):
        assert plan_of(value) == 2, value
        told = capsys.readouterr().err
        assert re.search(r"error: mine, arm 'narrow': .*model\.", told), value
    assert "a number a factor" in told


def test_arms_that_a_setting_makes_equal_are_refused(tmp_path, capsys):
    text = OWN.replace("rpn_channels", "depth").replace("16}", "18}").replace("32}", "50}")
    (tmp_path / "mine.py").write_text(text)
    argv = [str(tmp_path / "mine.py"), "--dry-run", "--workdir", str(tmp_path / "w")]
    assert run.main(argv) == 2
    told = capsys.readouterr().err
    assert "--setting shapes, the arms 'narrow' and 'wide' are the same training" in told
    assert "model.depth is 18 in both" in told


def test_other_data_under_the_same_name_are_another_run(coco_folder, tmp_path):
    def keys():
        args, overrides = run._parse(["norm", "--setting", "real", *four_fields(tmp_path / "d")])
        loaded = plan.load_table("norm")
        data = run._data(args, overrides, loaded.table)
        runs = plan.make_runs(loaded, SETTINGS["real"], tmp_path, 1, data, overrides)
        again = [plan.arm_key(json.loads(json.dumps(r.config.to_dict()))) for r in runs]
        assert again == [r.arm_key for r in runs], "of a config that was read from JSON"
        return [r.key for r in runs]

    shutil.copytree(coco_folder, tmp_path / "d")
    before = keys()
    for split in ("train", "val"):
        file = tmp_path / "d" / "annotations" / f"instances_{split}2017.json"
        text = file.read_text()
        file.write_text(text)
        assert keys() == before, "written again, with the same content"
        file.write_text(text + " ")
        assert not set(keys()) & set(before), split
        file.write_text(text)


def test_each_arm_has_the_heads_that_it_trains(faked, tmp_path):
    arms = arms_of("table_5", "shapes", tmp_path)
    assert [arm["model.keypoints"] for arm in arms.values()] == [0, 0, 5, 5]
    assert {arm["data.min_keypoints"] for arm in arms.values()} == {1}
    own = arms_of("table_5", "coco", tmp_path, "--config.model.keypoints=21")
    assert [arm["model.keypoints"] for arm in own.values()] == [0, 0, 21, 21]
    assert run.main(command(tmp_path, "table_5", "--seeds", "2")) == 0
    text = (tmp_path / "table_5.md").read_text()
    keypoint_rows = text.split("| keypoints |")[1].split("\n\n")[0]
    assert "| boxes, masks | 2 | – | – |" in keypoint_rows
    assert "AP of keypoints, boxes, keypoints against" in text
    assert "AP of keypoints, boxes, masks against" not in text


@pytest.mark.parametrize("status", [worker.INTERRUPTED, -signal.SIGTERM])
def test_a_run_that_was_stopped_goes_on_with_the_same_command(
    status, own, tmp_path, monkeypatch, capsys
):
    stops = [status]

    def launch(folder):
        return stops.pop() if stops else fake_training.launch(folder)

    monkeypatch.setattr(run, "launch", launch)
    assert run.main(command(tmp_path, own, "--seeds", "1")) == 1
    assert "narrow, seed 0: not finished." in capsys.readouterr().out
    assert run.main(command(tmp_path, own, "--seeds", "1")) == 0
    assert "failed" not in (tmp_path / "mine.csv").read_text()


def test_a_worker_tells_an_interruption_from_a_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(worker, "_follow_the_runner", lambda: None)
    for error, status in ((Interrupted("saved"), 3), (Stopped("not finite"), 1)):

        def work(folder, error=error):
            raise error

        monkeypatch.setattr(worker, "work", work)
        assert worker.main([str(tmp_path)]) == status
    assert capsys.readouterr().err == "saved\nnot finite\n"


def test_the_report_says_how_long_arms_were_trained(own, faked, tmp_path):
    assert run.main(command(tmp_path, own, "--seeds", "2", steps=None)) == 0
    text = (tmp_path / "mine.md").read_text()
    each = "600 steps of 8 images, 1,600 training images, at most 160 x 192."
    assert f"- Each run: {each}" in text
    assert "- All 4 finished runs: 20 min of training" in text, "4 x 600 x 0.5 s"
    argv = command(tmp_path, "num_images", "--seeds", "1", "--config.data.shapes_train=800")
    assert run.main(argv) == 0
    text = (tmp_path / "num_images.md").read_text()
    for arm, number in ("1/16", 50), ("1/4", 200), ("all", 800):
        assert f"- Each run of {arm}: 6 steps of 8 images, {number} training images," in text
