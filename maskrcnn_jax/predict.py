"""From a weights file and pictures to masks.

    predictor = maskrcnn_jax.load("runs/shapes")
    found = predictor("photo.jpg")
    found.boxes, found.scores, found.names, found.masks

The sizes, the resize rule and the thresholds come with the weights: from the config that a run
saved, or from the preset of the checkpoint's family. No TensorFlow, no data set.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from maskrcnn_jax import checkpoint, conventions, postprocess_keypoints, preprocess, runtime
from maskrcnn_jax.canvases import CanvasPlan
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.families import build, forward_predict
from maskrcnn_jax.prediction import Prediction
from maskrcnn_jax.traces import Traces
from maskrcnn_jax.types import Detections
from maskrcnn_jax.weights import importer
from maskrcnn_jax.weights.presets import PRESETS

HW = tuple[int, int]
Say = Callable[[str], None]


class Weights(NamedTuple):
    """What a weights file tells."""

    variables: dict[str, Any]  # {"params", "batch_stats"}, NumPy
    config: ConfigDict  # the groups model, data and eval
    names: tuple[str, ...]  # of the classes
    category_ids: tuple[int, ...]  # of the classes in the data set
    origin: str  # the file or folder that holds them


class Item(NamedTuple):
    """One picture that went through `Predictor.stream`; either a prediction or an error."""

    index: int  # of the source
    image: np.ndarray | None  # uint8 RGB [H, W, 3]
    prediction: Prediction | None
    error: UserError | None


class _Ready(NamedTuple):
    """A picture that is read and resized."""

    index: int
    image: np.ndarray
    pixels: np.ndarray
    placement: conventions.Placement


def load(
    path: str | Path,
    *,
    score_thresh: float | None = None,
    class_names: Sequence[str] | None = None,
    batch_size: int = 1,
    canvases: str = "exact",
    max_programs: int = 8,
    say: Say | None = None,
    traces: Traces | None = None,
) -> "Predictor":
    """Reads weights and returns the predictor that they make.

    Args:
      path: folder of a run (its best, else its last checkpoint) or of one checkpoint; or a file of
        Detectron2, torchvision, MMDetection or Matterport; or a name such as
        "detectron2/mask_rcnn_R_50_FPN_3x", which is fetched. The kind is told by the content.
      score_thresh: least score of a detection; by default that of the weights' config.
      class_names: one per class, in place of the weights' own.
      batch_size: pictures that go through the model together, once their canvas is the same. More
        than 1 takes memory in proportion and pays on accelerators.
      canvases: "exact" pads a picture to the next multiples of 32, as the peers do, until the limit
        of programs is near; "bucketed" takes a few canvases for all sizes from the start.
      max_programs: at most so many canvas sizes are compiled, each takes time once.
      say: gets lines for the log, of each compilation for example; by default the logger
        "maskrcnn_jax".
      traces: of earlier processes; by default all is traced.

    Raises:
      UserError: no weights there, of another architecture than their config, or wrong arguments.
    """
    say = say or logging.getLogger("maskrcnn_jax").info
    weights = _read_weights(path, say)
    if class_names is not None:
        if len(class_names) != len(weights.names):
            raise UserError(
                f"class names: {len(class_names)} are given, but {path} has {len(weights.names)} "
                "classes; give one name for each, in their order"
            )
        weights = weights._replace(names=tuple(class_names))
    runtime.use_compile_cache("")
    chosen = weights, score_thresh, batch_size, canvases, max_programs
    return Predictor(*chosen, say, traces or Traces())


class Predictor:
    """Finds objects in pictures; made by `load`. One program is compiled per canvas size."""

    def __init__(
        self,
        weights: Weights,
        score_thresh: float | None,
        batch_size: int,
        canvases: str,
        max_programs: int,
        say: Say,
        traces: Traces,
    ):
        """Arguments as of `load`."""
        self.config, self.names, self.category_ids, self.origin = weights[1:]
        own_thresh = self.config.model.score_thresh
        self.score_thresh = own_thresh if score_thresh is None else float(score_thresh)
        if not 0 <= self.score_thresh <= 1:
            raise UserError(f"score_thresh={score_thresh}: give a score from 0 to 1")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: give 1 or more")
        data = self.config.data
        self._resize = (data.resize_rule, data.short_test, data.long_test)
        self._batch_size, self._say = batch_size, say
        self._canvases = CanvasPlan(canvases, max_programs, *self._resize, say)
        # Above the model's own threshold the program stays the same, and detections are left out
        # afterwards: those with a lower score have no influence on the others.
        model_config = ConfigDict(self.config.model)
        model_config.score_thresh = min(own_thresh, self.score_thresh)
        model = build(model_config, len(self.names))
        _check_shapes(weights.variables, model)
        self._variables = jax.device_put(weights.variables)
        step = jax.jit(lambda v, images, hw, window: forward_predict(model, v, images, hw, window))
        traces = traces.about("one device").about_model(model_config, len(self.names))
        self._programs = runtime.Programs(step, "prediction", say, traces)
        self._tells_of_caps = True

    @property
    def num_programs(self) -> int:
        """How many programs are compiled by now."""
        return len(self._programs)

    def __call__(self, images: Any) -> Any:
        """Finds the objects of a picture, or of each of a list of pictures.

        A picture is a path, the bytes of a file, a Pillow image, or uint8 RGB [H, W, 3] in NumPy.
        Files and Pillow images are turned as their EXIF data say. Pictures of the same canvas size
        go through the model in batches.

        Returns a Prediction, or a list of them in the order of the pictures.
        Raises UserError for a picture that cannot be read.
        """
        if not isinstance(images, list | tuple):
            return self([images])[0]
        found: list[Any] = [None] * len(images)
        for item in self.stream(images):
            if item.error is not None:
                raise item.error
            found[item.index] = item.prediction
        return found

    def stream(
        self, sources: Iterable[Any], read: Callable[[Any], np.ndarray] | None = None
    ) -> Iterator[Item]:
        """Yields the pictures with their predictions as they are ready; holds only a few at a time.

        They may overtake each other: `index` tells the source. A picture that cannot be read
        yields its error.

        read: makes a uint8 RGB array of a source, or raises UserError; by default
        `preprocess.read_image`. It is called in threads.
        """
        flying: list[tuple[list[_Ready], HW, Detections]] = []
        pending: dict[HW, list[_Ready]] = {}
        threads = min(runtime.num_threads(), 8)
        prepare = partial(self._prepare, read or preprocess.read_image)
        with ThreadPoolExecutor(threads) as pool:
            for ready in _ahead(pool, prepare, enumerate(sources), threads + self._batch_size):
                if isinstance(ready, Item):
                    yield ready
                    continue
                canvas = self._canvases.choose(ready.placement)
                pending.setdefault(canvas, []).append(ready)
                if len(pending[canvas]) == self._batch_size:
                    # The device computes this batch while the last one is finished here.
                    flying.append(self._dispatch(pending.pop(canvas), canvas))
                    if len(flying) > 1:
                        yield from self._finish(*flying.pop(0))
            for canvas, batch in pending.items():
                flying.append(self._dispatch(batch, canvas))
            for flight in flying:
                yield from self._finish(*flight)

    def _prepare(self, read: Callable, numbered: tuple[int, Any]) -> _Ready | Item:
        index, source = numbered
        try:
            image = read(source)
        except UserError as error:
            return Item(index, None, None, error)
        return _Ready(index, image, *conventions.prepare_input(image, *self._resize))

    def _dispatch(self, batch: list[_Ready], canvas: HW) -> tuple[list[_Ready], HW, Detections]:
        """Starts the program on a batch, filled up to its size with the last picture."""
        full = batch + batch[-1:] * (self._batch_size - len(batch))
        images = np.stack([preprocess.pad_image(ready.pixels, canvas) for ready in full])
        image_hw = np.array([ready.placement.image_hw for ready in full], np.int32)
        windows = np.array([ready.placement.window for ready in full], np.float32)
        inputs = (self._variables, images, image_hw, windows)
        return batch, canvas, self._programs.get(canvas, *inputs)(*inputs)

    def _finish(self, batch: list[_Ready], canvas: HW, out: Detections) -> Iterator[Item]:
        host = jax.device_get(out)
        for i, ready in enumerate(batch):
            found = jax.tree.map(lambda x, i=i: x[i], host)
            self._tell_of_caps(int(found.num_dropped))
            yield Item(ready.index, ready.image, self._predict(found, ready), None)

    def _predict(self, found: Detections, ready: _Ready) -> Prediction:
        e, hw = self.config.eval, ready.image.shape[:2]
        boxes, has_area = conventions.boxes_to_image(
            found.boxes, ready.placement.window, hw, e.paste_rule
        )
        keep = found.valid & has_area & (found.scores >= self.score_thresh)
        keypoints = postprocess_keypoints.heatmaps_to_keypoints(
            found.keypoints[keep], found.boxes[keep]
        )
        return Prediction(
            boxes=boxes[keep],
            scores=found.scores[keep],
            classes=found.classes[keep],
            box_masks=None if found.masks is None else found.masks[keep],
            image_hw=hw,
            class_names=self.names,
            category_ids=self.category_ids,
            paste_rule=e.paste_rule,
            mask_thresh=e.mask_thresh,
            keypoints=postprocess_keypoints.keypoints_to_image(
                keypoints, ready.placement.window, hw
            ),
        )

    def _tell_of_caps(self, num_dropped: int) -> None:
        if num_dropped and self._tells_of_caps:
            self._tells_of_caps = False
            self._say(
                f"WARNING: {num_dropped} candidates of a picture exceeded model.max_candidates "
                f"({self.config.model.max_candidates}) before NMS; a higher score threshold helps"
            )


def _ahead(pool: ThreadPoolExecutor, function: Callable, items: Iterable, depth: int) -> Iterator:
    """The results of a function on items, in order, at most `depth` of them ahead of their use."""
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read_weights(path: str | Path, say: Say) -> Weights:
    """Reads weights of any kind; tells what is odd about them."""
    located = importer.locate(path)
    imported = importer.import_weights(located)
    if imported.missing or not imported.classes["names"]:
        raise UserError(
            f"{path}: holds only a backbone, nothing that finds objects; give the weights of a "
            "whole Mask R-CNN, or train one with init.checkpoint and init.part='backbone'"
        )
    if imported.spec is not None:
        say(f"{path}: {imported.spec.family}, preset {imported.spec.preset}")
        for warning in imported.spec.warnings:
            say(f"WARNING: {warning}")
    classes = imported.classes
    return Weights(
        imported.variables,
        complete_config(imported.config),
        tuple(classes["names"]),
        tuple(classes["category_ids"]),
        str(checkpoint.find(located) if located.is_dir() else located),
    )


def complete_config(config: dict[str, Any]) -> ConfigDict:
    """The groups model, data and eval of a checkpoint's config.

    Fields that are younger than the checkpoint get what the model did before them.
    """
    groups = PRESETS["detectron2"]
    return ConfigDict({name: {**groups[name], **_tuples(config[name])} for name in groups})


def _tuples(value: Any) -> Any:
    """A tree from JSON with tuples in place of its lists, as configs have them."""
    if isinstance(value, dict):
        return {name: _tuples(entry) for name, entry in value.items()}
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def _check_shapes(variables: dict[str, Any], model: Any) -> None:
    images, hw = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.full((1, 2), 64, jnp.int32)
    wanted = jax.eval_shape(model.init, jax.random.key(0), images, hw)
    for name in ("params", "batch_stats"):
        shapes = [checkpoint.shapes_of(tree.get(name, {})) for tree in (variables, wanted)]
        checkpoint.check_same(*shapes, where="the weights")
