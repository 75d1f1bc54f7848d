"""The console command as a user meets it: folders, resume, broken files, mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_checkpoint
import tiny_run
from PIL import Image
from pycocotools.coco import COCO
from tiny_checkpoint import photo

import maskrcnn_jax
from maskrcnn_jax import checkpoint, cli, files, preprocess, traces
from maskrcnn_jax.errors import UserError


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tiny_checkpoint.make(tmp_path_factory.mktemp("cli") / "run")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of one stem, in a folder below, of an odd suffix, and three that are broken."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "below").mkdir()
    for i, name in enumerate(["a.jpg", "a.png", "below/a.jpg", "b.TIFF"]):
        Image.fromarray(photo(50, 70, i)).save(folder / name)
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


def maskrcnn(capsys, *argv):
    """Runs the command; returns its exit status, its output and its errors."""
    try:
        status = cli.main([str(a) for a in argv])
    except SystemExit as error:
        status = error.code
    out, err = capsys.readouterr()
    return status, out, err


def listing(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def found(workdir, photos, tmp_path_factory):
    """The output of one run over the folder, with everything."""
    out = tmp_path_factory.mktemp("out") / "found"
    argv = ["predict", "--weights", workdir, photos, "--output", out, "--masks"]
    assert cli.main([str(a) for a in argv]) == 0
    return out


def test_a_folder_of_pictures(found, workdir, photos):
    names = ["a.jpg", "a.png", "b.TIFF", "below/a.jpg"]
    table = read(found / "images.json")
    assert [entry["file_name"] for entry in table["images"]] == names
    assert [entry["id"] for entry in table["images"]] == [1, 2, 3, 4]
    assert {(e["height"], e["width"]) for e in table["images"]} == {(50, 70)}
    assert [c["name"] for c in table["categories"]] == tiny_checkpoint.NAMES
    assert sorted(Path(p).name for p in table["failed"]) == ["broken.jpg", "empty.png"]
    overlays = ["a.jpg", "a.png", "b.TIFF.png", "below/a.jpg"]
    assert listing(found / "overlays") == overlays
    for name in overlays:
        assert Image.open(found / "overlays" / name).size == (70, 50)
    assert not [name for name in listing(found) if "tmp" in name]

    predictor = maskrcnn_jax.load(workdir)
    rows = read(found / "results.json")
    for entry in table["images"]:
        prediction = predictor(photos / entry["file_name"])
        expected = json.loads(json.dumps(prediction.to_coco(entry["id"])))
        assert [row for row in rows if row["image_id"] == entry["id"]] == expected
        masks = sorted((found / "masks" / entry["file_name"]).iterdir())
        assert len(masks) == len(prediction) > 0
        for path, mask, name in zip(masks, prediction.masks, prediction.names, strict=True):
            pixels = np.asarray(Image.open(path))
            assert pixels.dtype == np.uint8 and set(np.unique(pixels)) <= {0, 255}
            np.testing.assert_array_equal(pixels == 255, mask)
            assert path.stem[4:] == name.replace(" ", "_").replace("/", "_")


def test_what_an_earlier_command_has_traced_predicts_the_same(
    found, workdir, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(traces, "beside_the_cache", lambda: traces.Traces(tmp_path / "traces"))
    before = None
    for name in ("first", "second"):
        argv = ["predict", "--weights", workdir, photos, "--output", tmp_path / name]
        assert cli.main([str(a) for a in argv]) == 0
        kept = [path.stat().st_mtime_ns for path in (tmp_path / "traces").iterdir()]
        assert len(kept) == 1 and kept == (before or kept)
        before = kept
        assert read(tmp_path / name / "results.json") == read(found / "results.json")


def test_results_are_read_by_pycocotools(found):
    truth = COCO()
    truth.dataset = {**read(found / "images.json"), "annotations": []}
    truth.createIndex()
    assert len(truth.loadRes(str(found / "results.json")).anns) > 0


def test_masks_equal_those_of_evaluation(found, workdir, photos, tmp_path):
    """Evaluation, on its own path through batches and canvases, writes the same rows."""
    from maskrcnn_jax import evaluate, logs, runtime
    from maskrcnn_jax.data.coco import load_coco
    from maskrcnn_jax.predict import _read_weights

    names = ["a.jpg", "a.png"]
    content = {
        "images": [
            {"id": i + 1, "file_name": name, "height": 50, "width": 70}
            for i, name in enumerate(names)
        ],
        "categories": [
            {"id": i, "name": name}
            for i, name in zip(tiny_checkpoint.CATEGORY_IDS, tiny_checkpoint.NAMES, strict=True)
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 3,
                "bbox": [5, 5, 20, 20],
                "area": 400,
                "iscrowd": 0,
                "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]],
            }
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    weights = _read_weights(workdir, print)
    config = weights.config
    config.data.canvases, config.eval.num_pictures = ((64, 96),), 0
    data, mesh = load_coco(str(path), str(photos)), runtime.make_mesh()
    model = maskrcnn_jax.build(config.model, 5)
    log = logs.RunLog(tmp_path, 0, 0, speaks=True, records=False)
    evaluator = evaluate.Evaluator(model, data, config, mesh, log.say)
    evaluator.run(runtime.replicate(weights.variables, mesh), tmp_path / "eval", log, 0)
    theirs = read(tmp_path / "eval" / "results.json")
    # Evaluation knows the data set's classes in the order of their ids, the checkpoint its own.
    ours = [r for r in read(found / "results.json") if r["image_id"] in (1, 2)]
    assert len(ours) == len(theirs) > 0 and jax.device_count() == 8
    for a, b in zip(ours, theirs, strict=True):
        assert a["segmentation"] == b["segmentation"]
        np.testing.assert_allclose(a["bbox"], b["bbox"], atol=2e-3)
        np.testing.assert_allclose(a["score"], b["score"], atol=1e-5)


def test_the_same_command_goes_on(workdir, photos, tmp_path, capsys):
    out, more = tmp_path / "out", tmp_path / "photos"
    more.mkdir()
    argv = ["predict", "--weights", workdir, photos / "a.jpg", more, "--output", out]
    status, _, err = maskrcnn(capsys, *argv)
    assert status == 2 and "no pictures here" in err and err.count("\n") == 1
    Image.fromarray(photo(40, 60)).save(more / "a.jpg")
    assert maskrcnn(capsys, *argv)[0] == 0
    journal = (out / "predictions.jsonl").read_bytes()
    assert listing(out / "overlays") == ["a-2.jpg", "a.jpg"]
    overlay = (out / "overlays" / "a.jpg").stat().st_mtime_ns
    results = read(out / "results.json")

    # Killed while it wrote the last line: that picture is done again, the other is not.
    (out / "predictions.jsonl").write_bytes(journal[:-20])
    Image.fromarray(photo(44, 66)).save(more / "c.png")
    status, text, _ = maskrcnn(capsys, *argv)
    assert status == 0 and "3 pictures" in text
    assert (out / "overlays" / "a.jpg").stat().st_mtime_ns == overlay
    images = read(out / "images.json")["images"]
    assert [i["file_name"] for i in images] == ["a.jpg", "a-2.jpg", "c.png"]
    assert [i["id"] for i in images] == [1, 2, 3]
    assert [r for r in read(out / "results.json") if r["image_id"] < 3] == results

    # A picture that changed is predicted again under its id.
    Image.fromarray(photo(40, 61, 9)).save(more / "a.jpg")
    assert maskrcnn(capsys, *argv)[0] == 0
    images = read(out / "images.json")["images"]
    assert {i["id"]: i["width"] for i in images} == {1: 70, 2: 61, 3: 66}
    assert len(listing(out / "overlays")) == 3

    # Other settings are refused, unless the folder may be begun anew.
    status, _, err = maskrcnn(capsys, *argv, "--score-thresh", "0.9")
    assert status == 2 and "score_thresh" in err and "--overwrite" in err
    status, text, _ = maskrcnn(capsys, *argv, "--score-thresh", "0.9", "--overwrite")
    assert status == 0 and read(out / "results.json") == [] and "0 objects" in text


def test_a_folder_of_other_files_is_left_alone(workdir, photos, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    argv = ["predict", "--weights", workdir, photos / "a.jpg", "--output", tmp_path]
    status, _, err = maskrcnn(capsys, *argv)
    assert status == 2 and "not empty" in err
    assert listing(tmp_path) == ["thesis.txt"]


def test_only_broken_pictures_is_a_failure(workdir, photos, tmp_path, capsys):
    argv = ["predict", "--weights", workdir, "--output", tmp_path / "out"]
    status, text, _ = maskrcnn(capsys, *argv, photos / "broken.jpg", photos / "empty.png")
    assert status == 1 and "truncated" in text and "the file is empty" in text
    assert "0 pictures, 0 objects, 2 skipped" in text
    assert read(tmp_path / "out" / "results.json") == []


def test_ids_from_annotations(workdir, photos, tmp_path, capsys):
    entries = [
        {"id": 10, "file_name": "elsewhere/b.TIFF"},
        {"id": 20, "file_name": "below/a.jpg"},
        {"id": 30, "file_name": "a.png", "height": 50, "width": 71},
    ]
    path, out = tmp_path / "instances.json", tmp_path / "out"
    path.write_text(json.dumps({"images": entries}))
    argv = ["predict", "--weights", workdir, "--annotations", path, "--no-overlays", photos]
    status, text, _ = maskrcnn(capsys, *argv, "--output", out)
    assert status == 0 and "width 71" in text
    assert f"{photos / 'a.jpg'}: {path} has no image of this name" in text
    images = read(out / "images.json")["images"]
    assert [(i["file_name"], i["id"]) for i in images] == [("b.TIFF", 10), ("below/a.jpg", 20)]
    assert {row["image_id"] for row in read(out / "results.json")} == {10, 20}
    assert not (out / "overlays").exists()

    twice = [*entries, {"id": 40, "file_name": "nowhere/b.TIFF"}]
    path.write_text(json.dumps({"images": twice}))
    status, _, err = maskrcnn(capsys, *argv, "--output", tmp_path / "out2")
    assert status == 2 and "2 images end in 'b.TIFF'" in err


def test_class_names_from_a_file(workdir, photos, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\n\nthree\nfour\nfive\n")
    argv = ["predict", "--weights", workdir, photos / "a.png", "--classes", names, "--masks"]
    assert maskrcnn(capsys, *argv, "--output", tmp_path / "out")[0] == 0
    table = read(tmp_path / "out" / "images.json")
    assert [c["name"] for c in table["categories"]] == ["one", "two", "three", "four", "five"]
    stems = {name.split("_")[-1] for name in listing(tmp_path / "out" / "masks")}
    assert stems <= {f"{c['name']}.png" for c in table["categories"]}


def test_rotated_photographs(workdir, tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(70, 50)).save(tmp_path / "phone.jpg", exif=exif)
    out = tmp_path / "out"
    assert maskrcnn(capsys, "predict", "--weights", workdir, tmp_path, "--output", out)[0] == 0
    (image,) = read(out / "images.json")["images"]
    assert (image["height"], image["width"]) == (50, 70)
    assert Image.open(out / "overlays" / "phone.jpg").size == (70, 50)
    # The output below the source is not a source.
    assert maskrcnn(capsys, "predict", "--weights", workdir, tmp_path, "--output", out)[0] == 0
    assert len(read(out / "images.json")["images"]) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_names_that_are_no_text(workdir, photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in (b"\xff.jpg", "Gr\u00fc\u00dfe \u732b.jpg".encode()):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write((photos / "a.jpg").read_bytes())
    with open(os.path.join(os.fsencode(folder), b"broken\xff.jpg"), "wb") as file:
        file.write(b"nothing")
    argv = ["predict", "--weights", str(workdir), str(folder), "--output", str(tmp_path / "out")]
    run = subprocess.run(
        [sys.executable, "-m", "maskrcnn_jax", *argv],
        cwd=tiny_run.ROOT,
        env=tiny_run.environment(tmp_path, LC_ALL="C.UTF-8"),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "2 pictures" in run.stdout and r"broken\udcff.jpg" in run.stdout
    names = {os.fsencode(p.name) for p in (tmp_path / "out" / "overlays").iterdir()}
    assert names == {b"\xff.jpg", "Gr\u00fc\u00dfe \u732b.jpg".encode()}


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"--weights": "gone"}, "gone"),
        ({"IMAGES": "gone/*.jpg"}, "gone/*.jpg"),
        ({"--score-thresh": "2"}, "score_thresh"),
        ({"--score-thresh": "high"}, "score-thresh"),
        ({"--batch-size": "0"}, "batch_size"),
        ({"--max-programs": "0"}, "max_programs"),
        ({"--output": "LIST"}, "is a file"),
        ({"--classes": "gone.txt"}, "gone.txt"),
        ({"--annotations": "gone.json"}, "gone.json"),
        ({"--annotations": "LIST"}, "'images'"),
        ({"--clases": "names.txt"}, "--clases"),
    ],
)
def test_mistakes_are_one_line(workdir, photos, tmp_path, capsys, change, reason):
    (tmp_path / "list.json").write_text("[1]")
    options = {"--weights": workdir, "--output": tmp_path / "out", **change}
    images = options.pop("IMAGES", photos / "a.jpg")
    values = [tmp_path / "list.json" if v == "LIST" else v for v in options.values()]
    argv = [x for pair in zip(options, values, strict=True) for x in pair]
    status, _, err = maskrcnn(capsys, "predict", images, *argv)
    assert status == 2
    assert reason in err.strip().splitlines()[-1] and "Traceback" not in err


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """A checkpoint whose norms other programs have."""
    fields = {"norm": "frozen", "head_norm": "none", "freeze_at": 2, "score_thresh": 0.05}
    return tiny_checkpoint.make(tmp_path_factory.mktemp("frozen") / "run", **fields)


@pytest.fixture(scope="module")
def bottlenecks(tmp_path_factory):
    """A checkpoint of a depth that Matterport has."""
    fields = {"depth": 50, "norm": "frozen", "head_norm": "none", "freeze_at": 2}
    folder = tmp_path_factory.mktemp("bottlenecks") / "run"
    return tiny_checkpoint.make(folder, is_noise=True, **fields)


def test_weights_go_to_matterport_and_back(bottlenecks, tmp_path, capsys):
    argv = ["export", bottlenecks, tmp_path / "weights", "--to", "matterport"]
    status, text, err = maskrcnn(capsys, *argv)
    assert status == 0 and "384 tensors for matterport" in text, err
    assert "model.roi_pool: 'crop' in matterport, 'align' here" in text
    status, text, err = maskrcnn(
        capsys, "import-weights", tmp_path / "weights.h5", tmp_path / "back"
    )
    assert status == 0 and "family   matterport" in text and "classes  5" in text, err
    before, after = (checkpoint.load_variables(f)[0] for f in (bottlenecks, tmp_path / "back"))
    # Through a variance of 1 - 1e-3, which float32 has not exactly.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)  # noqa: E731
    jax.tree.map(close, before, after)
    again = tmp_path / "again.h5"
    assert maskrcnn(capsys, "export", tmp_path / "back", again, "--to", "matterport")[0] == 0
    assert again.read_bytes() == (tmp_path / "weights.h5").read_bytes()


@pytest.mark.parametrize("program", ["detectron2", "torchvision"])
@pytest.mark.parametrize("kind", ["pth", "pkl", "safetensors"])
def test_weights_go_to_other_programs_and_back(frozen, tmp_path, capsys, program, kind):
    path = tmp_path / f"weights.{kind}"
    argv = ["export", frozen, tmp_path / "weights", "--to", program, "--format", kind]
    status, text, err = maskrcnn(capsys, *argv)
    assert status == 0 and f"tensors for {program}" in text, err
    status, text, err = maskrcnn(capsys, "import-weights", path, tmp_path / "back")
    assert status == 0 and f"family   {program}" in text and "classes  5" in text, err
    assert "preset   data.resize_rule" in text
    before, after = (checkpoint.load_variables(f)[0] for f in (frozen, tmp_path / "back"))
    # A file does not tell the epsilon of its norms; torchvision's are 0 or 1e-5 (see the warning).
    rtol = 1e-5 if program == "torchvision" else 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol), before, after)

    # And once more from what was imported: the same file.
    again = tmp_path / f"again.{kind}"
    assert maskrcnn(capsys, "export", tmp_path / "back", again, "--to", program)[0] == 0
    assert again.read_bytes() == path.read_bytes()


def test_the_mistakes_of_import_and_export(frozen, tmp_path_factory, tmp_path, capsys):
    group = tiny_checkpoint.make(tmp_path_factory.mktemp("group") / "run", norm="group")
    cases = [
        (["import-weights", "gone.pth", tmp_path / "a"], "gone.pth"),
        (["import-weights", frozen, tmp_path / "a"], "needs no import"),
        (["export", "gone", tmp_path / "a.pth", "--to", "detectron2"], "gone"),
        (["export", frozen, tmp_path / "a.pth", "--to", "mmdetection"], "mmdetection"),
        (["export", group, tmp_path / "a.pth", "--to", "detectron2"], "the model has no"),
        (["export", frozen, tmp_path / "a.pth", "--to", "matterport"], "end with .h5"),
        (["export", frozen, tmp_path / "a.h5", "--to", "detectron2"], "end with .pth, .pkl"),
        (["export", frozen, tmp_path / "a.h5", "--to", "matterport"], "depth=50"),
    ]
    (tmp_path / "b.pkl").write_bytes(b"mine")
    cases.append((["export", frozen, tmp_path / "b.pkl", "--to", "detectron2"], "--overwrite"))
    for argv, reason in cases:
        status, _, err = maskrcnn(capsys, *argv)
        assert status == 2 and reason in err and "Traceback" not in err
    assert listing(tmp_path) == ["b.pkl"]
    assert maskrcnn(capsys, *cases[-1][0], "--overwrite")[0] == 0
    assert (tmp_path / "b.pkl").stat().st_size > 10_000


def test_help_has_an_example_and_costs_no_jax():
    code = (
        "import sys\nfrom maskrcnn_jax import cli\n"
        "for argv in (['--help'], *([verb, '--help'] for verb in cli.VERBS)):\n"
        "    try:\n        cli.main(argv)\n    except SystemExit as end:\n"
        "        assert not end.code\n"
        "assert 'jax' not in sys.modules, 'jax was imported'\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny_run.ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("example:") == len(cli.VERBS)


def test_module_and_console_script_are_the_same_command(tmp_path):
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "maskrcnn_jax",
            "predict",
            "gone",
            "--weights",
            "w",
            "--output",
            "o",
        ],
        cwd=tiny_run.ROOT,
        env=tiny_run.environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and run.stderr.startswith("error: gone:")
    setup = (tiny_run.ROOT / "setup.cfg").read_text()
    assert "maskrcnn = maskrcnn_jax.cli:main" in setup


def test_find_images_of_files_folders_and_patterns(photos, tmp_path):
    names = [p.name for p in files.find_images([str(photos)])]
    assert names == ["a.jpg", "a.png", "b.TIFF", "below/a.jpg", "broken.jpg", "empty.png"]
    twice = files.find_images([str(photos / "*.jpg"), str(photos), str(photos / "notes.txt")])
    assert [p.name for p in twice][:2] == ["a.jpg", "broken.jpg"]
    assert len(twice) == len({p.path for p in twice}) == 7
    deep = files.find_images([str(photos / "**" / "*.jpg")])
    assert [p.path.name for p in deep] == ["a.jpg", "a.jpg", "broken.jpg"]
    for wrong in (tmp_path, tmp_path / "x.jpg", photos / "*.gif"):
        with pytest.raises(UserError, match="no pictures here"):
            files.find_images([str(wrong)])


def test_free_names():
    taken = set()
    for name in ("a.jpg", "A.JPG", "a-2.jpg", "a.jpg", "a.png"):
        taken.add(files.free_name(name, taken).casefold())
    assert taken == {"a.jpg", "a-2.jpg", "a-2-2.jpg", "a-3.jpg", "a.png"}


def test_a_real_folder(shared_data, workdir, tmp_path, capsys):
    """Phone pictures, scans and web pictures of an unprepared collection: read or reported."""
    source = sorted(files.find_images([str(shared_data / "labelme_date_fig_hazelnut")]))[:3]
    argv = ["predict", "--weights", workdir, "--output", tmp_path / "out"]
    assert maskrcnn(capsys, *argv, *[p.path for p in source])[0] == 0
    for entry in read(tmp_path / "out" / "images.json")["images"]:
        assert preprocess.load_image(entry["path"]).shape[:2] == (entry["height"], entry["width"])
