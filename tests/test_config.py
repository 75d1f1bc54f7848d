"""Every source of config values goes through one checked door."""

import json
import subprocess
import sys
from pathlib import Path

import ml_collections
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import common
from maskrcnn_jax import config as config_lib
from maskrcnn_jax import config_rules
from maskrcnn_jax.errors import UserError

ROOT = Path(__file__).parents[1]
SHIPPED = sorted(p for p in (ROOT / "configs").glob("*.py") if p.stem != "__init__")
PATHS = (
    "data.train.annotations=a.json",
    "data.train.images=a",
    "data.val.annotations=b.json",
    "data.val.images=b",
)


def load(*overrides, path=ROOT / "configs" / "common.py"):
    return config_lib.load(path, overrides, schema=common.get_config())


def write(folder, body, name="mine.py"):
    path = folder / name
    path.write_text(
        f"from configs import common\n\ndef get_config():\n    c = common.get_config()\n{body}"
        "    return c\n"
    )
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_configs_load_validate_and_document_themselves(path):
    config = load(path=path)
    fields = PATHS if config.data.name == "coco" else ()
    if config.init.heads == "match":
        fields += ("init.checkpoint=run",)
    config = load(*fields, path=path)
    config_lib.validate(config)
    assert config.is_locked
    text = path.read_text()
    if path.stem != "common":
        assert f"--config configs/{path.name}" in text
        for word in ("Hardware", "AP"):
            assert word in text.split('"""')[1]


def test_detectron2_milestones_fall_on_its_steps():
    steps = {"coco_r50": (60_000, 80_000), "coco_r101": (210_000, 250_000)}
    steps |= {"coco_x101": (210_000, 250_000), "coco_r50_lsj": (163_889, 177_546)}
    for name, expected in steps.items():
        config = load(path=ROOT / "configs" / f"{name}.py")
        found = [f * config.train.num_steps for f in config.optim.milestones]
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("optim.base_lr=0.01", 0.01),
        ("optim.base_lr=1", 1.0),
        ("optim.base_lr=1e-3", 1e-3),
        ("train.num_steps=90_000", 90_000),
        ("train.deterministic=true", True),
        ("train.deterministic=False", False),
        ("data.short=(480,512)", (480, 512)),
        ("data.short=640,800", (640, 800)),
        ("data.short=640", (640,)),
        ("model.anchor_sizes=[8,16,32,64,128]", (8.0, 16.0, 32.0, 64.0, 128.0)),
        ("data.canvases=(832,1344),(1344,832)", ((832, 1344), (1344, 832))),
        ("data.lsj_scale=0.1,2.0", (0.1, 2.0)),
        ("data.lsj_scale=", ()),
        ("optim.lr_rules=(('stem',0),('.*',1.0))", (("stem", 0.0), (".*", 1.0))),
        ("init.checkpoint=runs/a=b", "runs/a=b"),
    ],
)
def test_overrides_are_parsed_by_the_fields_type(text, value):
    field = text.partition("=")[0]
    found = config_lib.flatten(load(text))[field]
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, tuple):
        assert [type(x) for x in found] == [type(x) for x in value]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim.base_lrr=0.01", ["optim.base_lrr", "optim.base_lr'", "float"]),
        ("base_lr=0.01", ["'optim.base_lr'"]),
        ("model.anchor_size=1", ["'model.anchor_sizes'", "tuple"]),
        ("data.train.annotation=a", ["'data.train.annotations'", "text"]),
        ("optim=3", ["group", "optim.base_lr"]),
        ("optim.base_lr", ["field=value"]),
        ("optim.base_lr=fast", ["optim.base_lr='fast'", "float such as 0.02"]),
        ("train.num_steps=1e4", ["train.num_steps='1e4'", "int"]),
        ("train.deterministic=1", ["true or false"]),
        ("data.short=(a,b)", ["data.short", "tuple"]),
        ("data.short=640.5", ["data.short"]),
        ("data.canvases=wide", ["data.canvases", "pairs"]),
        ("optim.decay_rules=('a',1.0)", ["optim.decay_rules"]),
        ("=3", ["no field ''"]),
    ],
)
def test_wrong_overrides_name_field_and_type(text, words):
    with pytest.raises(UserError) as error:
        load(text)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("    c.optim.base_lrr = 0.01\n", ["'optim.base_lrr'", "'optim.base_lr'"]),
        ("    c.optim.extra = ml_collections.ConfigDict({'a': 1})\n", ["line 5", "NameError"]),
        ("    c.optm.base_lr = 0.01\n", ["line 5", "optm"]),
        ("    c.optim.base_lr = 'fast'\n", ["line 5", "base_lr"]),
        ("    del c.optim.base_lr\n    c.optim.base_lr = 'fast'\n", ["optim.base_lr='fast'"]),
        ("    c.model.anchor_sizes = ('a', 'b')\n", ["model.anchor_sizes"]),
        ("    c.model = 3\n", ["model"]),
        ("    c.model.depth = = 3\n", ["SyntaxError", "line 5"]),
        ("    import no_such_module\n", ["ModuleNotFoundError"]),
        ("    return {}\n", ["ConfigDict"]),
    ],
)
def test_mistakes_inside_a_config_file(tmp_path, body, words):
    path = write(tmp_path, body)
    with pytest.raises(UserError) as error:
        load(path=path)
    for word in (str(path), *words):
        assert word in str(error.value)


LIST = "[('ImageCompression', {'quality_range': (40, 90)}), ['RandomRain', {'p': 0.2}]]"
LIST_AS_JSON = '[["ImageCompression", {"quality_range": [40, 90]}], ["RandomRain", {"p": 0.2}]]'


def test_a_list_of_transforms_stands_in_the_file_as_python(tmp_path):
    config = load(path=write(tmp_path, f"    c.data.albumentations = {LIST}\n"))
    assert config.data.albumentations == LIST_AS_JSON
    config_lib.save(config, tmp_path / "config.json")
    assert config_lib.diff(load(path=tmp_path / "config.json"), config) == []
    for value in ("3", "[print]"):
        with pytest.raises(UserError, match=r"data\.albumentations.*expected a text"):
            load(path=write(tmp_path, f"    c.data.albumentations = {value}\n"))


def test_a_partial_config_keeps_the_defaults(tmp_path):
    path = tmp_path / "partial.py"
    path.write_text(
        "import ml_collections\nimport numpy as np\n\ndef get_config():\n"
        "    return ml_collections.ConfigDict({'optim': {'base_lr': np.float64(1.5)}})\n"
    )
    found = config_lib.diff(common.get_config(), load(path=path))
    assert found == [("optim.base_lr", 0.02, 1.5)]


@pytest.mark.parametrize("name", ["missing.py", "missing.json", "notes.txt", "folder"])
def test_unreadable_files(tmp_path, name):
    (tmp_path / "notes.txt").write_text("model:")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=name):
        load(path=tmp_path / name)


@pytest.mark.parametrize("text", ["{", "[1]", '{"optim": {"nope": 1}}', '{"optim": {"b2": "x"}}'])
def test_broken_json(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        load(path=path)


def test_json_round_trip_is_exact_and_leaves_no_other_file(tmp_path):
    config = load(*PATHS, path=ROOT / "configs" / "coco_r50_lsj.py")
    path = tmp_path / "run" / "config.json"
    config_lib.save(config, path)
    config_lib.save(config, path)
    again = load(path=path)
    assert again.to_dict() == config.to_dict()
    assert config_lib.diff(config, again) == []
    assert [p.name for p in path.parent.iterdir()] == ["config.json"]
    assert set(json.loads(path.read_text())) == set(config.keys())


def test_a_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "config.json"
    config_lib.save(common.get_config(), path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        config_lib.save(ml_collections.ConfigDict({"a": object()}), path)
    assert path.read_bytes() == before


def test_loaded_configs_are_independent_and_locked():
    schema = common.get_config()
    config = config_lib.load(ROOT / "configs/common.py", ["optim.base_lr=1"], schema=schema)
    assert schema.optim.base_lr == 0.02
    with pytest.raises(AttributeError):
        config.optim.base_lrr = 3


def test_configs_load_from_any_folder_in_a_bare_process(tmp_path):
    code = (
        "import sys, ml_collections, importlib.util\n"
        f"sys.path.append({str(ROOT)!r})\n"
        "from maskrcnn_jax import config\n"
        f"sys.path.remove({str(ROOT)!r})\n"
        "schema = ml_collections.ConfigDict({'model': {'depth': 50}})\n"
        "try:\n"
        f"    config.load({str(ROOT / 'configs' / 'coco_r101.py')!r}, schema=schema)\n"
        "except Exception as error:\n"
        "    assert 'there is no field' in str(error), error\n"
        "assert 'configs.common' in sys.modules\n"
        f"assert {str(ROOT)!r} not in sys.path\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_diff_names_changed_added_and_removed_fields():
    a = ml_collections.ConfigDict({"x": {"same": 1, "new": 2, "gone": 3}})
    b = ml_collections.ConfigDict({"x": {"same": 1, "new": 4, "here": 5}})
    expected = [("x.gone", 3, None), ("x.here", None, 5), ("x.new", 2, 4)]
    assert sorted(config_lib.diff(a, b)) == expected


INVALID = {
    "optim.base_lr=nan": "optim.base_lr=nan is not finite",
    "optim.base_lr=0": "optim.base_lr=0.0 must be greater than 0",
    "model.pixel_std=(1,0,1)": "model.pixel_std",
    "optim.clip_norm=-1": "0 or greater",
    "optim.momentum=1.0": "below 1",
    "data.flip=1.5": "within 0..1",
    "optim.milestones=60000,80000": "within 0..1",
    "optim.milestones=0.9,0.8": "must rise",
    "model.depth=42": "(10, 18, 34, 50, 101, 152)",
    "model.norm=sync": "'frozen', 'batch', 'group'",
    "model.channel_order=rbg": "bgr",
    "model.dtype=float16": "bfloat16",
    "optim.name=adam": "adamw",
    "optim.schedule=linear": "cosine",
    "data.on_bad_image=ignore": "skip",
    "data.name=coco2017": "coco_2017",
    "train.best_metric=AP": "segm/AP",
    "model.anchor_sizes=32,64": "has 2 values; give 5",
    "model.pixel_mean=1,2": "give 3",
    "data.short=": "data.short is empty",
    "train.accumulate=3": "divisible by train.accumulate=3",
    "data.mask_side=100": "multiple of 8",
    "data.lsj_size=1000": "multiple of 32",
    "data.lsj_scale=0.5": "smallest, largest",
    "data.lsj_scale=2.0,0.1": "must rise",
    "data.canvases=832,1344": "(height, width)",
    "data.rotate90=2": "within 0..1",
    "data.crop_range=0.9,0.5": "must rise",
    "data.crop_range=0,0.5": "begins with 0",
    "data.crop_range=0.5": "give 2",
    "data.blur_sigma=0,1": "greater than 0",
    "data.jpeg_quality=50,101": "exceeds 100",
    "data.module=mine.py": "set data.name",
    "data.canvases=((840,1344),)": "multiples of 32",
    "data.long=700": "raise data.long",
    "data.long_test=700": "raise data.long_test",
    "model.norm=batch": "freeze random layers",
    "model.rpn_iou_thresholds=0.7,0.3": "must rise",
    "model.max_candidates=10": "max_detections",
    "optim.lr_rules=(('(',1.0),)": "regular expression",
    "train.early_stop=3": "set eval.every",
    "optim.stages=": "optim.stages is empty",
    "optim.stages=((0.5,'.*'),)": "must begin at 0.0 and rise",
    "optim.stages=((0.0,'a'),(0.0,'b'))": "must begin at 0.0 and rise",
    "optim.stages=((0.0,'('),)": "regular expression",
    "optim.stages=((0.0,'a'),(40,'b'))": "within 0..1",
    "optim.layer_decay=1.5": "at most 1",
    "init.heads=names": "('strict', 'match')",
    "data.train.images=": "data.train.images is empty",
    "data.val.annotations=": "data.val.annotations is empty",
    "data.name=shapes": "set data.name=coco",
}


@pytest.mark.parametrize("override", INVALID)
def test_validate_names_field_value_and_remedy(override):
    with pytest.raises(UserError) as error:
        config_lib.validate(load(*PATHS, override))
    message = str(error.value)
    assert INVALID[override] in message
    assert override.partition("=")[0].rpartition(".")[2] in message
    assert all(line.startswith("config: ") for line in message.splitlines())


def test_validate_pairs_of_fields():
    for overrides in (
        ("model.depth=34", "model.groups=32"),
        ("model.norm=group", "model.freeze_at=0", "model.width=48"),
        ("model.head_norm=group", "model.fpn_channels=100"),
        ("init.heads=match", "init.skip_heads=true", "init.checkpoint=run"),
        ("data.rotate90=0.5", "data.canvases=((832,1344),)"),
    ):
        with pytest.raises(UserError):
            config_lib.validate(load(*PATHS, *overrides))
    assert config_lib.validate(load(*PATHS, "model.norm=batch", "model.freeze_at=0")) == []
    assert config_lib.validate(load(*PATHS, "init.checkpoint=run")) == []


def test_class_heads_without_weights_are_refused():
    """Fine-tuning that forgets its weights would train frozen random layers for hours."""
    config = load(*PATHS, path=ROOT / "configs" / "finetune.py")
    with pytest.raises(UserError, match=r"init\.checkpoint is empty.*init\.heads=strict"):
        config_lib.validate(config)
    config_lib.validate(config, "evaluate")
    config = load(*PATHS, "init.heads=strict", path=ROOT / "configs" / "finetune.py")
    assert "random weights stay unnormalised" in config_lib.validate(config)[0]


def test_validate_tells_all_mistakes_at_once():
    with pytest.raises(UserError) as error:
        config_lib.validate(load("optim.base_lr=nan", "model.depth=3", "data.flip=2"))
    assert len(str(error.value).splitlines()) == 3


def test_data_is_asked_for_by_mode():
    bare = load()
    with pytest.raises(UserError, match=r"data\.train\.annotations"):
        config_lib.validate(bare)
    with pytest.raises(UserError, match=r"data\.val\.annotations"):
        config_lib.validate(bare, "evaluate")
    assert config_lib.validate(bare, "replay") == []
    config_lib.validate(load("data.name=coco_2017"))


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("train.num_steps=2", "warmup_steps"),
        ("data.canvases=((832,1344),)", "1333 x 800"),
        ("init.checkpoint=", "unnormalised"),
    ],
)
def test_warnings(override, word):
    warnings = config_lib.validate(load(*PATHS, "init.checkpoint=run", override))
    assert len(warnings) == 1
    assert word in warnings[0]


def test_every_number_has_exactly_one_rule():
    fields = config_lib.flatten(common.get_config())
    rules = [f for names, _, _ in config_rules.RANGES for f in names] + list(config_rules.CHOICES)
    assert len(rules) == len(set(rules))
    assert set(rules) <= set(fields)
    untyped = {"data.canvases", "data.lsj_scale"}  # numbers, but empty by default
    assert {f for f, v in fields.items() if config_rules.numbers(v)} | untyped <= set(rules)


scalars = st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=8), st.none())


@given(st.dictionaries(st.sampled_from(sorted(config_lib.flatten(common.get_config()))), scalars))
def test_any_value_is_taken_in_its_type_or_refused(values):
    fields = config_lib.flatten(common.get_config())
    for field, value in values.items():
        try:
            config = load(f"{field}={value}")
        except UserError:
            continue
        assert type(config_lib.flatten(config)[field]) is type(fields[field])
        try:
            config_lib.validate(config)
        except UserError as error:
            assert str(error)
