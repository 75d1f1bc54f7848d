"""From tables to runs: one config for each arm and seed, and the folder that it trains in.

No JAX here: a plan is printed, and its mistakes told, before anything heavy.
"""

import hashlib
import importlib.util
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import common
from experiments.settings import ROOT, Setting, digests, train_images
from experiments.table import Arm, Square, Table, Times
from maskrcnn_jax import config as config_lib
from maskrcnn_jax.errors import UserError

FOLDER = Path(__file__).resolve().parent
_TOOLS = (
    *("__init__", "costs", "noise", "plan", "plot", "report", "run", "settings", "table"),
    *("trunks", "worker"),
)

# Fields that leave the result as it is: another value of them is the same run.
_IRRELEVANT = (
    "data.cache_dir",
    "data.num_workers",
    "data.prefetch",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_last",
    "train.compile_cache",
    "eval.num_pictures",
    "eval.picture_thresh",
)


@dataclass(frozen=True)
class Run:
    """One training. arm_key: the same for all seeds of an arm. key: of this run alone. warnings: of
    the config's checks."""

    table: str
    arm: str
    seed: int
    config: config_lib.ConfigDict
    arm_key: str
    key: str
    folder: Path
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Loaded:
    """A table with its name and its question, the first line of its file."""

    name: str
    question: str
    table: Table


def table_names() -> list[str]:
    """The tables of this folder."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in _TOOLS)


def load_table(name: str) -> Loaded:
    """The table of that name in this folder, or in a Python file anywhere."""
    path = Path(name) if name.endswith(".py") else FOLDER / f"{name}.py"
    if not path.is_file() or path.stem in _TOOLS:
        raise UserError(
            f"{name}: there is no such table; give one of {', '.join(table_names())}, or a .py file"
        )
    spec = importlib.util.spec_from_file_location(f"_table_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file is the user's program: whatever it raises is told so
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    table = getattr(module, "TABLE", None)
    if not isinstance(table, Table):
        raise UserError(f"{path}: there is no TABLE = Table(...) in it")
    arms = [arm.name for arm in table.arms]
    if len(set(arms)) < max(2, len(arms)):
        raise UserError(f"{path}: a table has two or more arms of different names, not {arms}")
    if table.against and table.against not in arms:
        raise UserError(f"{path}: against={table.against!r} is none of its arms {arms}")
    question = (module.__doc__ or path.stem).strip().splitlines()[0]
    return Loaded(path.stem, question, table)


def make_runs(
    loaded: Loaded,
    setting: Setting,
    workdir: Path,
    seeds: int,
    data: Mapping[str, Any],
    overrides: Sequence[str] = (),
) -> list[Run]:
    """The runs of a table, all arms of a seed before the next seed.

    workdir: the runs' folders come below it. data: config fields of the user's data set. overrides:
    texts "field=value" of the command line, for all arms.

    Raises UserError for a config that is wrong, for an override that an arm would undo, and for
    arms that are the same training.
    """
    table = loaded.table
    # A factor is of what the command line says, and undoes nothing.
    varied = {
        name
        for arm in table.arms
        for name, value in arm.fields.items()
        if not isinstance(value, Times)
    }
    for text in overrides:
        if (field := text.partition("=")[0]) in varied:
            raise UserError(
                f"--config.{text}: the arms of {loaded.name} differ in {field}; leave it to them"
            )
    runs = []
    for seed in range(seeds):
        for arm in table.arms:
            fixed = [*overrides, f"train.seed={seed}"]
            config, warnings = _resolve(loaded, arm, setting, data, fixed)
            key = _hash(config)
            names = (loaded.name, arm.name, seed)
            folder = workdir / "runs" / key
            runs.append(Run(*names, config, arm_key(config), key, folder, tuple(warnings)))
    _refuse_equal_arms(table, runs[: len(table.arms)], setting)
    return runs


def _refuse_equal_arms(table: Table, runs: Sequence[Run], setting: Setting) -> None:
    fields = {arm.name: arm.fields for arm in table.arms}
    first: dict[str, Run] = {}
    for run in runs:
        if (other := first.setdefault(run.arm_key, run)) is run:
            continue
        flat = config_lib.flatten(run.config)
        ours, theirs = fields[run.arm], fields[other.arm]
        same = ", ".join(
            f"{name} is {flat[name]!r} in both"
            for name in {**theirs, **ours}
            if name not in ours or name not in theirs or ours[name] != theirs[name]
        )
        raise UserError(
            f"{run.table}: with --setting {setting.name}, the arms {other.arm!r} and {run.arm!r} "
            f"are the same training: {same or 'they set the same fields'}; change one, or leave it "
            "out"
        )


def in_place(value: Any, field: str, setting: Setting) -> Any:
    """What a setting takes in the place of an arm's value."""
    value = tuple(value) if isinstance(value, list) else value  # as in a config
    instead = setting.instead.get(field, {}).items()
    return next((taken for asked, taken in instead if asked == value), value)


def _resolve(
    loaded: Loaded, arm: Arm, setting: Setting, data: Mapping[str, Any], overrides: list[str]
) -> tuple[config_lib.ConfigDict, list[str]]:
    path, schema = ROOT / "configs" / setting.config, common.get_config()
    try:
        own = config_lib.load(path, [*_texts(setting.fields), *_texts(data)], schema=schema)
        base = _values(loaded.table.base, own, setting)
        # Twice, as an arm's factors are of the value that the command line has set.
        asked = [*_texts(setting.fields), *_texts(data), *_texts(base), *overrides]
        shared = config_lib.load(path, asked, schema=schema)
        arm_fields = _texts(_values(arm.fields, shared, setting))
        config = config_lib.load(path, [*asked, *arm_fields], schema=schema)
        warnings = config_lib.validate(config)
    except UserError as error:
        text = str(error).replace("command line: ", "")
        raise UserError(f"{loaded.name}, arm {arm.name!r}: {text}") from error
    return config, warnings


def _values(
    fields: Mapping[str, Any], config: config_lib.ConfigDict, setting: Setting
) -> dict[str, Any]:
    """The fields with the setting's values, factors multiplied out."""
    flat = config_lib.flatten(config)
    return {
        name: _derived(name, value, flat)
        if isinstance(value, Times | Square) and (getattr(value, "of", "") or name) in flat
        else in_place(value, name, setting)
        for name, value in fields.items()
    }


def _derived(name: str, value: Times | Square, flat: Mapping[str, Any]) -> Any:
    if isinstance(value, Square):
        side = 32 * math.ceil(max(flat["data.long"], flat["data.long_test"]) * value.factor / 32)
        return ((side, side),)
    source = value.of or name
    own = train_images(flat) if source == "data.limit" else flat[source]
    if own is None:
        raise UserError(
            f"data.limit: the number of images of data.name={flat['data.name']!r} is not known "
            "before it is made; set --config.data.limit to it"
        )
    try:
        return _multiply(own, value.factors)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{source}={own!r}: cannot be taken {value.factors!r} times; give a number a factor, a "
            "tuple of numbers a factor or a tuple of them"
        ) from error


def _multiply(value: Any, factors: float | Sequence[float]) -> Any:
    several = isinstance(factors, tuple | list)
    many = factors if several else (factors,)
    if isinstance(value, tuple) or several:
        largest = max(value) if isinstance(value, tuple) else value
        return tuple(_multiply(largest, factor) for factor in many)
    (factor,) = many
    if isinstance(value, int):
        return max(1, round(value * factor)) if factor else 0
    return value * float(factor)


def _texts(fields: Mapping[str, Any]) -> Iterable[str]:
    return [f"{name}={value}" for name, value in fields.items()]


def arm_key(config: Mapping[str, Any] | config_lib.ConfigDict) -> str:
    """The hash of a config's fields and data but for the seed; the same of one read from JSON."""
    return _hash(config, leave_out=("train.seed",))


def _hash(
    config: Mapping[str, Any] | config_lib.ConfigDict, leave_out: tuple[str, ...] = ()
) -> str:
    out = {*_IRRELEVANT, *leave_out}
    flat = {k: v for k, v in config_lib.flatten(config).items() if k not in out}
    flat |= digests(flat)
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:12]
