"""The input pipeline: from COCO files to batches in memory, ours against a torch DataLoader.

Ours reads the prepared records, whose masks are bitmaps already: that is part of what is measured.
The stages are cumulative, one thread, an example after another.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers_torch_data
from benchmarks.timing import Case, Setting

_BATCH = 4


def cases(setting: Setting) -> Iterator[Case]:
    """Whole batches, then the stages."""
    from configs.common import get_config
    from maskrcnn_jax.data.builder import prepare
    from maskrcnn_jax.data.coco import load_coco

    # So many steps that building the graph, which a run does once, counts little: the
    # DataLoader keeps its workers from round to round, too.
    short, long, steps = (64, 96, 2) if setting.small else (800, 1333, 120)
    config = get_config().data
    config.update({"short": (short,), "long": long, "num_workers": setting.threads})
    with tempfile.TemporaryDirectory() as folder:
        files = _files(setting, Path(folder))
        records = prepare(load_coco(*files), Path(folder) / "records", progress=False)
        peer = (*files, short, long)
        yield _batches(setting, records, config, peer, steps)
        count = min(len(records), 4 if setting.small else 16)
        for number, stage in enumerate(peers_torch_data.STAGES):
            ours = _stage(records, config, number, count)
            peers = {}
            if setting.has("torchvision"):
                peers["torch"] = _torch_stage(peer, stage, count)
            name = f"input, one thread, {count} pictures, until {stage}"
            yield Case(name, ours, peers, images=count)


def _files(setting: Setting, folder: Path) -> tuple[str, str]:
    if setting.annotations:
        return setting.annotations, setting.images
    from maskrcnn_jax.data import shapes

    return shapes.generate(folder / "shapes", 8 if setting.small else 64, 1)["train"]


def _batches(setting: Setting, records: Any, config: Any, peer: tuple, steps: int) -> Case:
    from maskrcnn_jax.data.pipeline import make_batches

    count = steps * _BATCH

    def ours() -> None:
        for _ in make_batches(records, config, _BATCH, 0, num_steps=steps):
            pass

    peers = {}
    if setting.has("torchvision"):
        peers[f"DataLoader, {setting.threads} workers"] = _loader(setting, peer, count)
    name = f"input, batches of {_BATCH}, shorter side {config.short[0]}, {setting.threads} workers"
    note = f"{count} pictures of {setting.annotations or 'generated shapes'}"
    return Case(name, ours, peers, images=count, note=note)


def _loader(setting: Setting, peer: tuple, count: int) -> Callable:
    from torch.utils.data import DataLoader, Subset

    pictures = peers_torch_data.CocoPictures(*peer)
    loader = DataLoader(
        Subset(pictures, [i % len(pictures) for i in range(count)]),
        _BATCH,
        num_workers=setting.threads,
        collate_fn=peers_torch_data.pad_and_stack,
        worker_init_fn=peers_torch_data.one_thread,
        # A fork would take the locks of JAX's and TensorFlow's threads with it.
        multiprocessing_context="spawn",
        persistent_workers=True,
    )

    def run() -> None:
        for _ in loader:
            pass

    return run


def _stage(records: Any, config: Any, number: int, count: int) -> Callable:
    """Our pipeline until a stage; nothing but one byte of an example leaves it."""
    import tensorflow as tf

    from maskrcnn_jax.data import augment, batch_shapes, pipeline, recipe

    groups, canvases = batch_shapes.canvas_groups(records.sizes, config)
    canvas, groups = tf.constant(canvases), tf.constant(groups)

    def until(row: tf.Tensor) -> tf.Tensor:
        example = pipeline._read(records, config, row, ())
        seed = tf.stack([tf.cast(row, tf.int32), 0])
        # The masks come with the record: there is no stage of them.
        if number == 2:
            example = augment.resize_shortest_edge(example, config.short, config.long, seed)
        elif number > 2:
            place = tf.gather(canvas, tf.gather(groups, row))
            stored = lambda *_: example  # noqa: E731
            none, upright = np.zeros(0, np.int64), tf.constant(False)
            example = recipe.make_example(stored, none, config, row, seed, place, upright)
            padded = pipeline._pad(example, config, row, place, seed)
            return tf.stack([padded["images"][0, 0, 0], padded["gt_masks"][0, 0, 0]])
        return tf.reduce_sum(tf.cast(example["image"][0], tf.int32))

    options = tf.data.Options()
    options.threading.max_intra_op_parallelism = 1
    options.threading.private_threadpool_size = 1
    dataset = tf.data.Dataset.range(count).map(until).with_options(options)

    def run() -> None:
        for _ in dataset:
            pass

    return run


def _torch_stage(peer: tuple, stage: str, count: int) -> Callable:
    import torch

    pictures = peers_torch_data.CocoPictures(*peer, stage=stage)

    def run() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for index in range(count):
            found = pictures[index]
            if stage == peers_torch_data.STAGES[-1]:
                peers_torch_data.pad_and_stack([found])
        torch.set_num_threads(threads)

    return run
