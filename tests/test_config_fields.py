"""Every config field acts: a field that nobody reads is a promise broken."""

import ast
from pathlib import Path

import pytest

from configs import common
from maskrcnn_jax import config as config_lib

ROOT = Path(__file__).parents[1]
FIELDS = sorted(config_lib.flatten(common.get_config()))


def receiver(node):
    """The last name before the dot: `optim` of config.optim.base_lr, `data` of data[split].x."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return getattr(node, "attr", getattr(node, "id", ""))


def reads():
    """(holder, field) pairs read as `holder.field` in the package and main.py.

    Checking a value is not acting on it, so the checks do not count.
    """
    checkers = {"config.py", "config_rules.py"}
    files = [p for p in (ROOT / "maskrcnn_jax").rglob("*.py") if p.name not in checkers]
    return {
        (receiver(node.value).strip("_"), node.attr)
        for path in [*files, ROOT / "main.py"]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


@pytest.fixture(scope="module")
def read():
    return reads()


@pytest.mark.parametrize("field", FIELDS)
def test_field_is_read(field, read):
    *groups, name = field.split(".")
    # What may hold a group: a variable called like it or by its initial, or the model's Settings.
    holders = {"config", "settings", "s", "split", *groups, *(f"{g}_config" for g in groups)}
    holders |= {group[0] for group in groups}
    assert any((holder, name) in read for holder in holders), f"nothing reads {field}"


def test_nothing_reads_with_a_default():
    for path in (ROOT / "maskrcnn_jax").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for group in ("config", "model", "data", "optim", "train", "eval", "init"):
            assert f"config.{group}.get(" not in text, path
        assert "config.get(" not in text, path
