"""Spoilt annotation files: a UserError or counted findings, and nothing written elsewhere."""

import base64
import io
import itertools

import hypothesis
import mutate
import numpy as np
import pytest
from format_samples import (
    HW,
    coco_content,
    labelme_content,
    labelstudio_content,
    photo,
    via3_content,
    via_content,
    via_csv,
)
from PIL import Image

from maskrcnn_jax.data.formats import registry
from maskrcnn_jax.data.formats.draft import Options
from maskrcnn_jax.errors import UserError


def _bitmap():
    stream = io.BytesIO()
    Image.fromarray(np.eye(9, dtype=np.uint8) * 255).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _labelme():
    content = labelme_content()
    points = [[5, 5], [14, 14]]
    bitmap = {"label": "cat", "shape_type": "mask", "points": points, "mask": _bitmap()}
    content["shapes"].append(bitmap)
    return content


def _via1():
    content = via_content()
    for entry in content.values():
        entry["regions"] = {str(i): r for i, r in enumerate(entry["regions"])}
    return content


def _min():
    """Label Studio's JSON-MIN."""
    tasks = []
    for task in labelstudio_content():
        result = task["annotations"][0]["result"]
        sizes = {"original_width": HW[1], "original_height": HW[0]}
        tasks.append({"image": task["file_upload"], "id": 1, "label": []})
        tasks[-1]["label"] = [region["value"] | sizes for region in result]
    return tasks


SAMPLES = {
    "via": ("via", "a.json", via_content),
    "via1": ("via", "a.json", _via1),
    "via-project": ("via", "a.json", lambda: {"_via_img_metadata": via_content()}),
    "via3": ("via", "a.json", via3_content),
    "via-csv": ("via", "a.csv", via_csv),
    "labelme": ("labelme", "a.json", _labelme),
    "labelme-embedded": ("labelme", "b.json", lambda: _labelme() | {"imageData": _bitmap()}),
    "labelstudio": ("labelstudio", "a.json", labelstudio_content),
    "labelstudio-min": ("labelstudio", "a.json", _min),
    "coco": ("coco", "a.json", coco_content),
}


@pytest.fixture
def sandbox(tmp_path):
    """Pictures in a folder, and a decoy beside it that must never be read."""
    photo(tmp_path / "in" / "a.jpg")
    photo(tmp_path / "in" / "b.jpg", seed=1)
    photo(tmp_path / "in" / "c.png", seed=2)
    photo(tmp_path / mutate.DECOY, seed=3)
    return tmp_path


@pytest.mark.parametrize("name", SAMPLES)
def test_spoilt_files(name, sandbox):
    kind, file_name, make = SAMPLES[name]
    sample, source = make(), sandbox / "in" / file_name
    strategy = mutate.text_files if isinstance(sample, str) else mutate.json_files
    counter, read = itertools.count(), []

    @mutate.settings_for_fuzz
    @hypothesis.given(content=strategy(sample))
    def spoil(content):
        next(counter)
        source.write_bytes(content)
        draft = mutate.outcome(lambda: registry.read(source, kind, Options()), sandbox / "in")
        if draft is not None:
            read.append(len(draft.items))

    spoil()
    # Most files still have something to read; else this test would see one error path only.
    assert len(read) > next(counter) / 10 and max(read) > 0


@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_is_written_elsewhere(name, sandbox):
    kind, file_name, make = SAMPLES[name]
    sample, source = make(), sandbox / "in" / file_name
    strategy = mutate.text_files if isinstance(sample, str) else mutate.json_files

    @mutate.settings_for_writes
    @hypothesis.given(content=strategy(sample))
    def spoil(content):
        source.write_bytes(content)
        mutate.convert(source, kind, sandbox)

    spoil()


@mutate.settings_for_fuzz
@hypothesis.given(content=mutate.json_files(coco_content()))
def test_finding_out_the_kind_never_fails_otherwise(content, tmp_path_factory):
    source = tmp_path_factory.getbasetemp() / "some.json"
    source.write_bytes(content)
    try:
        module = registry.detect(source)
    except UserError:
        return
    assert module in registry.FORMATS
