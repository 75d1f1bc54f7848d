"""From a data set and weights to AP, COCO results and pictures."""

import functools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from maskrcnn_jax import (
    checkpoint,
    conventions,
    initial,
    postprocess,
    postprocess_keypoints,
    preprocess,
    results,
    runtime,
    tta,
    visualize,
)
from maskrcnn_jax.data.coco import CocoData, instance_mask
from maskrcnn_jax.datasets import check_classes, classes_of, load_data
from maskrcnn_jax.errors import Stopped, UserError
from maskrcnn_jax.logs import RunLog, write_atomic
from maskrcnn_jax.models.families import build, variable_shapes
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.traces import Traces
from maskrcnn_jax.types import Detections
from maskrcnn_jax.views import View

# Smaller pictures are enlarged, so that the labels leave something to see.
_PICTURE_SIDE = 512


class _Batch(NamedTuple):
    """Rows of the data set that share their canvases; -1 fills the last batch."""

    canvases: tuple[tuple[int, int], ...]  # for each size at which pictures are seen
    rows: np.ndarray


class Pending(NamedTuple):
    """An evaluation whose images are predicted, while its precision is still being computed."""

    step: int
    folder: Path
    scores: Future | None  # of results.Evaluation, on the first host alone

    @property
    def is_done(self) -> bool:
        """Whether this host could tell the precision at once."""
        return self.scores is not None and self.scores.done()


class Evaluator:
    """Evaluates one model on one data set as often as asked; programs are compiled once."""

    def __init__(
        self,
        model: MaskRCNN,
        data: CocoData,
        config: Any,
        mesh: Mesh,
        say: Callable[[str], None],
        classes: dict[str, Any] | None = None,
        traces: Traces | None = None,
    ):
        """config: the whole tree; its `data` (sizes) and `eval` groups are read.

        classes: the model's, {"names", "category_ids"}, where it has more than the data; detections
        of the others do not count. traces: of earlier processes, told the model.
        """
        classes = classes or classes_of(data)
        self._names, self._category_ids = classes["names"], classes["category_ids"]
        self._data, self._eval, self._mesh, self._say = data, config.eval, mesh, say
        self._iou_types = results.IOU_TYPES if model.mask_head is not None else ("bbox",)
        self._iou_types += ("keypoints",) if model.settings.keypoints else ()
        self._skips = config.data.on_bad_image == "skip"
        self._unreadable: dict[int, str] = {}  # row -> why, of this host's pictures
        self._rule, self._sizes = config.data.resize_rule, tta.sizes(config)
        devices = jax.device_count()
        batch_size = -(-config.eval.batch_size // devices) * devices
        self._batches = _plan(data.sizes, self._rule, self._sizes, batch_size)
        self._detect = tta.make_detector(model, config, mesh, say, traces)

    def run(
        self, variables: dict[str, Any], folder: Path, log: RunLog, step: int, last: bool = True
    ) -> dict[str, float]:
        """`begin` and `finish` in one: predicts every image once and returns the metrics."""
        return self.finish(self.begin(variables, folder, step), log, last)

    def begin(self, variables: dict[str, Any], folder: Path, step: int) -> Pending:
        """Predicts every image once; then a thread of the first host computes the precision.

        variables: replicated over the mesh, and no longer needed on return. Writes pictures/, and
        the thread results.json and metrics.json, into `folder`.
        """
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        found: list[dict] = []
        dropped = 0
        with ThreadPoolExecutor(runtime.num_threads()) as pool:
            # The next batch is read and the last one pasted while the device computes this one.
            waiting: list[Any] = []
            for batch, views in self._load(pool):
                out = self._detect(variables, views)
                found += _collect(waiting)
                host = jax.tree.map(runtime.local_rows, out)
                rows = self._own(batch.rows)
                dropped += int(host.num_dropped[rows >= 0].sum())
                waiting = [
                    pool.submit(
                        self._finish, int(row), jax.tree.map(lambda x, i=i: x[i], host), folder
                    )
                    for i, row in enumerate(rows)
                    if row >= 0 and row not in self._unreadable
                ]
            found += _collect(waiting)
        if dropped:
            self._say(
                f"WARNING: {dropped} candidates exceeded model.max_candidates before NMS; "
                "raise it, or model.score_thresh"
            )
        ids = self._readable_ids()
        parts = runtime.gather_bytes(json.dumps(found).encode())
        if jax.process_index():
            return Pending(step, folder, None)
        score = functools.partial(self._score, parts, ids, folder, step)
        return Pending(step, folder, runtime.in_background(score))

    def finish(self, pending: Pending, log: RunLog, last: bool = True) -> dict[str, float]:
        """Waits for what `begin` began and returns the metrics, the same on every host.

        last: print the table by class, too. An error of the computation is raised here; on the
        other hosts as Stopped, so that none waits for ever.
        """
        error = pending.scores and pending.scores.exception()
        found = results.Evaluation({}, [], {})
        if pending.scores and not error:
            found = pending.scores.result()
        outcome = json.dumps([found.metrics, repr(error) if error else ""]).encode()
        metrics, failure = json.loads(runtime.gather_bytes(outcome)[0])
        if error:
            raise error
        if failure:
            raise Stopped(f"step {pending.step}: the first host could not evaluate: {failure}")
        rows = found.per_class if last else []
        self._tell(log, pending.step, metrics, rows, found.reasons, pending.folder)
        return metrics

    def _readable_ids(self) -> list[int]:
        """The images to evaluate: all but those that some host could not read."""
        bad = {str(self._data.image_ids[row]): why for row, why in self._unreadable.items()}
        parts = runtime.gather_bytes(json.dumps(bad).encode())
        left_out = {int(i): why for part in parts for i, why in json.loads(part).items()}
        if left_out:
            why = next(iter(left_out.values()))
            self._say(f"WARNING: {len(left_out)} pictures are not evaluated; the first: {why}")
        return [int(i) for i in self._data.image_ids if int(i) not in left_out]

    def _score(
        self, parts: list[bytes], ids: list[int], folder: Path, step: int
    ) -> results.Evaluation:
        """The precision of what all hosts found; writes the two files."""
        everything = [entry for part in parts for entry in json.loads(part)]
        everything.sort(key=lambda e: (e["image_id"], -e["score"]))
        found = results.evaluate_coco(
            self._data.annotations,
            everything,
            self._iou_types,
            ids,
            keypoint_sigmas=self._eval.keypoint_sigmas,
        )
        report = {**found.metrics, "reasons": found.reasons, "step": step, "images": len(ids)}
        write_atomic(folder / "results.json", json.dumps(everything))
        write_atomic(folder / "metrics.json", json.dumps(report, indent=1))
        return found

    def _own(self, rows: np.ndarray) -> np.ndarray:
        """This host's rows of a global batch."""
        return np.split(rows, jax.process_count())[jax.process_index()]

    def _load(self, pool: ThreadPoolExecutor) -> Iterator[tuple[_Batch, tuple[View, ...]]]:
        dtype = conventions.RESIZE_RULES[self._rule].dtype

        def read(row: int, canvases: tuple[tuple[int, int], ...]) -> tuple[View, ...]:
            # One pixel, not none: an empty image would leave no valid anchor.
            pixel = np.array([0, 0, 1, 1], np.float32)
            blank = tuple(
                View(np.zeros((*c, 3), dtype), np.ones(2, np.int32), pixel) for c in canvases
            )
            if row < 0:
                return blank
            size = tuple(int(x) for x in self._data.sizes[row])
            try:
                image = preprocess.load_image(Path(self._data.file_paths[row]), hw=size)
            except UserError as error:
                if not self._skips:
                    raise
                self._unreadable[row] = str(error)
                return blank
            return tuple(map(functools.partial(self._view, image), self._sizes, canvases))

        def begin(batch: _Batch) -> list:
            return [pool.submit(read, int(row), batch.canvases) for row in self._own(batch.rows)]

        upcoming = begin(self._batches[0]) if self._batches else []
        for i, batch in enumerate(self._batches):
            current, upcoming = upcoming, []
            if i + 1 < len(self._batches):
                upcoming = begin(self._batches[i + 1])
            rows = [future.result() for future in current]
            views = jax.tree.map(lambda *x: np.stack(x), *rows)
            yield batch, runtime.shard_batch(views, self._mesh)

    def _view(self, image: np.ndarray, size: tta.Size, canvas: tuple[int, int]) -> View:
        pixels, placement = conventions.prepare_input(
            image, self._rule, size.short, size.long, canvas
        )
        window = np.array(placement.window, np.float32)
        return View(pixels, np.array(placement.image_hw, np.int32), window)

    def _finish(self, row: int, found: Detections, folder: Path) -> list[dict]:
        """COCO results of one image; draws it when it is among the first."""
        data = self._data
        hw = tuple(int(x) for x in data.sizes[row])
        rule, size = self._eval.paste_rule, self._sizes[0]
        window = conventions.place(hw, self._rule, size.short, size.long).window
        boxes, has_area = conventions.boxes_to_image(found.boxes, window, hw, rule)
        keep = has_area & found.valid
        boxes, scores, classes = boxes[keep], found.scores[keep], found.classes[keep]
        keypoints = postprocess_keypoints.keypoints_to_image(
            postprocess_keypoints.heatmaps_to_keypoints(found.keypoints[keep], found.boxes[keep]),
            window,
            hw,
        )
        rles = (
            found.masks
            if found.masks is None
            else [
                conventions.mask_to_rle(mask, box, hw, rule, self._eval.mask_thresh)
                for mask, box in zip(found.masks[keep], boxes, strict=True)
            ]
        )
        if row < self._eval.num_pictures:
            self._draw(row, boxes, scores, classes, rles, keypoints, folder)
        image_id = int(data.image_ids[row])
        rows = results.to_coco_results(
            boxes, scores, classes, rles, image_id, self._category_ids, keypoints
        )
        return [row for row in rows if row["category_id"] in data.category_ids]

    def _draw(
        self,
        row: int,
        boxes: np.ndarray,
        scores: np.ndarray,
        classes: np.ndarray,
        rles: list | None,
        keypoints: np.ndarray,
        folder: Path,
    ) -> None:
        data = self._data
        size = tuple(int(x) for x in data.sizes[row])
        image = preprocess.load_image(Path(data.file_paths[row]), hw=size)
        own = np.flatnonzero((data.inst_image == row) & ~data.inst_crowd)
        truth = visualize.draw(
            image,
            data.inst_box[own],
            data.inst_class[own],
            None,
            [instance_mask(data, int(i)) for i in own],
            data.names,
            min_side=_PICTURE_SIDE,
            keypoints=data.inst_keypoints[own],
            skeleton=data.skeleton,
        )
        sure = np.flatnonzero(scores >= self._eval.picture_thresh)
        masks = [] if rles is None else [postprocess.rle_to_mask(rles[i]) for i in sure]
        seen = visualize.draw(
            image,
            boxes[sure],
            classes[sure],
            scores[sure],
            masks,
            self._names,
            min_side=_PICTURE_SIDE,
            keypoints=keypoints[sure],
            skeleton=data.skeleton,
        )
        path = folder / "pictures" / f"{int(data.image_ids[row])}.png"
        Image.fromarray(visualize.side_by_side(truth, seen)).save(path)

    def _tell(
        self,
        log: RunLog,
        step: int,
        metrics: dict[str, float],
        per_class: list[tuple],
        reasons: dict[str, str],
        folder: Path,
    ) -> None:
        kinds = ("AP", "AP50", "AP75", "APs", "APm", "APl")
        # COCO has no figure for keypoints of small objects.
        shown = {name: f"{value:.3f}" for name, value in metrics.items()}
        rows = [
            [iou, *(shown.get(f"{iou}/{kind}", "") for kind in kinds)] for iou in self._iou_types
        ]
        log.table(f"step {step}, {len(self._data.sizes)} images", ["", *kinds], rows)
        header = ["class", *(f"{iou} AP" for iou in self._iou_types), "objects", "found"]
        cells = [
            [c.name]
            + [f"{ap:.3f}" for ap in (c.bbox_ap, c.segm_ap, c.keypoints_ap) if ap is not None]
            + [str(c.num_objects), str(c.num_detections)]
            for c in per_class
        ]
        if cells:
            log.table("by class", header, cells)
        for text in sorted(set(reasons.values())):
            names = ", ".join(name for name, reason in reasons.items() if reason == text)
            log.say(f"{names}: {text}")
        for path in sorted((folder / "pictures").glob("*.png")):
            log.picture(step, f"eval/{path.stem}", np.asarray(Image.open(path)))
        log.say(f"results, metrics and pictures: {folder}")


def _collect(futures: list) -> list[dict]:
    return [entry for future in futures for entry in future.result()]


def _plan(
    sizes: np.ndarray, rule: str, seen: tuple[tta.Size, ...], batch_size: int
) -> list[_Batch]:
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for row, (height, width) in enumerate(sizes):
        hw = int(height), int(width)
        groups.setdefault(tuple(_canvas(hw, rule, size) for size in seen), []).append(row)
    batches = []
    for canvases, rows in groups.items():
        for start in range(0, len(rows), batch_size):
            padded = np.full(batch_size, -1)
            part = rows[start : start + batch_size]
            padded[: len(part)] = part
            batches.append(_Batch(canvases, padded))
    return batches


def _canvas(hw: tuple[int, int], rule: str, size: tta.Size) -> tuple[int, int]:
    own = conventions.place(hw, rule, size.short, size.long)
    return own.canvas if own.fixed else preprocess.choose_canvas(own.image_hw, size.canvases)


def evaluate_run(config: Any, workdir: Path, traces: Traces | None = None) -> dict[str, float]:
    """Evaluates init.checkpoint, or else the workdir's best or last checkpoint, on the val set.

    traces: of earlier processes.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    log = RunLog(workdir, 0, 0, speaks=jax.process_index() == 0, records=False)
    mesh = runtime.make_mesh()
    for line in runtime.describe_devices():
        log.say(line)
    _, data = load_data(config, train=False)
    path = config.init.checkpoint or workdir
    imported = initial.read_foreign(config, log.say)
    classes = classes_of(data)
    if imported is None:
        variables, meta = checkpoint.load_variables(path)
        check_classes(meta["classes"], data, str(path))
    else:
        classes = initial.evaluated_classes(imported, data, str(path))
        initial.adopt_preset(config, imported, log.say, evaluates=True)
        variables, meta = imported.variables, {"step": 0}
    model = build(config.model, len(classes["names"]))
    fresh = variable_shapes(model)
    for name in variables:
        shapes = checkpoint.shapes_of(variables[name]), checkpoint.shapes_of(fresh[name])
        checkpoint.check_same(*shapes, where=str(path))
    kept = (traces or Traces()).about_model(config.model, len(classes["names"]))
    evaluator = Evaluator(model, data, config, mesh, log.say, classes, kept)
    return evaluator.run(runtime.replicate(variables, mesh), workdir / "eval", log, meta["step"])
