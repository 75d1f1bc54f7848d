"""Imports go down only; TensorFlow and Flax stay in their rooms; no path of one machine."""

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "maskrcnn_jax"

# The floor of every module; a room's floor holds for its files unless they are named themselves.
FLOORS = {
    "": 3,  # the package's public names
    "train": 3,
    "train_step": 3,
    "evaluate": 3,
    "cli": 4,
    "__main__": 4,
    "commands": 4,
    "initial": 3,
    "transfer": 3,
    "run_length": 3,
    "parameter_table": 3,
    "predict": 3,
    "predict_folder": 3,
    "journal": 3,
    "files": 3,
    "prediction": 3,
    "canvases": 3,
    "checkpoint": 3,
    "optimizer": 3,
    "visualize": 3,
    "report_data": 3,
    "flight": 3,
    "logs": 3,
    "runtime": 3,
    "traces": 3,
    "results": 3,
    "datasets": 3,
    "own_data": 3,
    "config": 3,
    "config_rules": 3,
    "config_rules_data": 3,
    "config_parts": 3,
    "config_rules_keypoints": 3,
    "config_rules_tta": 3,
    "tta": 3,
    "models.mask_rcnn": 2,
    "models.cascade": 2,
    "models.families": 2,
    "models": 1,
    "assignment": 1,
    "targets": 1,
    "selection": 1,
    "settings": 0,
    "losses": 1,
    "data": 1,
    "weights": 1,
    "weights.importer": 3,  # joins the families with the model and our checkpoints
    "weights.exporter": 3,
    "preprocess": 1,
    "postprocess": 1,
    "postprocess_keypoints": 1,
    "preprocess_matterport": 1,
    "postprocess_matterport": 1,
    "conventions": 1,
    "views": 1,
    "ops": 0,
    "types": 0,
    "errors": 0,
}

# Rooms beside the model: only they themselves, the loops of floor 3 and the commands import them.
SIDE_ROOMS = ("data", "weights")

# Which room alone may import a library, and what it is called.
OWNERS = {"tensorflow": "data", "tensorflow_datasets": "data", "array_record": "data"}
OWNERS |= {"flax": "models"}

FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
NAMES = {}  # dotted name inside the package -> file
for file in FILES:
    parts = file.relative_to(ROOT / PACKAGE).with_suffix("").parts
    NAMES[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file


def room(module):
    return module.partition(".")[0]


def floor(module):
    """The floor of a module or of the nearest room around it; None for an unknown one."""
    while module and module not in FLOORS:
        module = module.rpartition(".")[0]
        if not module:
            return None
    return FLOORS[module]


def imports(file):
    """Every absolute dotted name that a file imports, lazily or not."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}, line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inner_imports(module):
    """The modules of the package that a module imports; names inside a module count as it."""
    for name in imports(NAMES[module]):
        if name.partition(".")[0] != PACKAGE:
            continue
        target = name.partition(".")[2]
        while target and target not in NAMES:
            target = target.rpartition(".")[0]
        yield target


@pytest.mark.parametrize("module", sorted(NAMES))
def test_imports_go_down(module):
    own = floor(module)
    assert own is not None, f"{module}: add it to FLOORS"
    for target in inner_imports(module):
        assert floor(target) <= own, f"{module} imports {target}, which is a floor above"
        if room(target) in SIDE_ROOMS and room(target) != room(module):
            assert own >= 3, f"{module} imports {target}: only the loops join {room(target)}"


@pytest.mark.parametrize("module", sorted(NAMES))
def test_libraries_stay_in_their_room(module):
    for name in imports(NAMES[module]):
        owner = OWNERS.get(name.partition(".")[0])
        assert owner in (None, room(module)), f"{module} imports {name}: only {owner}/ may"


@pytest.mark.parametrize("module", sorted(m for m in NAMES if room(m) == "ops"))
def test_ops_know_only_arrays(module):
    allowed = {"ops", "types"}
    assert {room(target) for target in inner_imports(module)} <= allowed
    outer = {name.partition(".")[0] for name in imports(NAMES[module])}
    assert outer <= {"jax", "numpy", "jaxtyping", PACKAGE, *sys.stdlib_module_names}


@pytest.mark.parametrize("module", ["config", "config_rules", "config_parts", "errors"])
def test_configs_are_checked_without_jax(module):
    outer = {name.partition(".")[0] for name in imports(NAMES[module])}
    assert outer <= {"ml_collections", "numpy", PACKAGE, *sys.stdlib_module_names}


# Floor 4 beside the package: it imports the package, and is neither imported by it nor installed.
TOP_ROOMS = ("configs", "experiments", "benchmarks", "tests")


@pytest.mark.parametrize("module", sorted(NAMES))
def test_the_package_does_not_know_the_rooms_above(module):
    for name in imports(NAMES[module]):
        assert name.partition(".")[0] not in TOP_ROOMS, f"{module} imports {name}"


def test_experiments_leave_models_and_data_to_the_package():
    for file in (ROOT / "experiments").glob("*.py"):
        heavy = {name.partition(".")[0] for name in imports(file)} & OWNERS.keys()
        assert not heavy, f"{file.name} imports {heavy}"


def test_only_the_package_is_installed():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert settings["options"]["packages"] == "find:"
    assert settings["options.packages.find"]["include"].split() == [f"{PACKAGE}*"]


def test_no_import_cycles():
    done, path = set(), []

    def visit(module):
        assert module not in path, f"cycle: {' -> '.join([*path, module])}"
        if module in done:
            return
        path.append(module)
        for target in inner_imports(module):
            if target != module:
                visit(target)
        path.pop()
        done.add(module)

    for module in NAMES:
        visit(module)


def python(code):
    """Runs code in a fresh process in the repository; its output, or a failure with its text."""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_importing_the_package_leaves_tensorflow_out():
    heavy = "('tensorflow', 'tensorflow_datasets', 'array_record', 'tensorboardX')"
    code = f"import sys, {PACKAGE}; print([m for m in {heavy} if m in sys.modules])"
    assert python(code).strip() == "[]"


def test_all_but_the_data_room_imports_without_tensorflow():
    modules = [f"{PACKAGE}.{m}" for m in NAMES if m and room(m) != "data"]
    code = (
        "import importlib, sys\n"
        "for name in ('tensorflow', 'tensorflow_datasets', 'array_record', 'tensorboardX'):\n"
        "    sys.modules[name] = None\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
    )
    python(code)


def tracked_files():
    try:
        run = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
        names = run.stdout.splitlines() if run.returncode == 0 else []
    except FileNotFoundError:
        names = []
    found = (ROOT / name for name in names) if names else sorted(ROOT.rglob("*.*"))
    return [p for p in found if p.is_file() and p.suffix not in (".npz", ".png", ".pyc", ".jpg")]


def test_no_file_names_a_path_of_one_machine():
    homes = r"/(?:home|Users|root)/\w"
    pattern = re.compile(rf"(?<![\w.:]){homes}|{re.escape(str(ROOT))}\b")
    for path in tracked_files():
        found = pattern.search(path.read_text(encoding="utf-8", errors="replace"))
        assert not found, f"{path.relative_to(ROOT)}: {found.group()}"


def test_the_package_is_typed():
    assert (ROOT / PACKAGE / "py.typed").is_file()
