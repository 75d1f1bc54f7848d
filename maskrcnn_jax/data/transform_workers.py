"""Processes that apply the user's transforms beside each other, for the pipeline.

Python runs one thread at a time, so that threads would not keep up. What a worker returns depends
on the example and its seed alone, not on which worker it is.
"""

import concurrent.futures
import multiprocessing
import os
import threading
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from jaxtyping import Int32

from maskrcnn_jax.data import user_transforms
from maskrcnn_jax.data.user_transforms import Objects
from maskrcnn_jax.errors import UserError

_transforms: user_transforms.Transforms | None = None  # of a worker process


class Workers:
    """A pool of processes, each with the transforms of `data.albumentations`."""

    def __init__(self, text: str | list | tuple, number: int):
        """text: the field. number: of processes; 0: one per core.

        Raises:
          UserError: the transforms cannot be made; told before any process is started.
        """
        user_transforms.build(text)
        self.failure: UserError | None = None
        # "fork" would copy the locks of TensorFlow's and JAX's threads.
        self._pool = concurrent.futures.ProcessPoolExecutor(
            number or os.cpu_count(), multiprocessing.get_context("spawn"), _start, (text,)
        )

    def apply(self, example: Objects, seed: Int32[np.ndarray, "2"], name: str) -> Objects:
        """Transforms an example in one of the processes; may be called by many threads.

        name: of the picture, for messages. What goes wrong is raised, and kept as `failure`, for
        TensorFlow passes on no exception but its own.
        """
        try:
            return self._pool.submit(_apply, example, seed).result()
        except BrokenProcessPool as error:
            self.failure = UserError(
                "data.albumentations: a worker process ended; it may have run out of memory (try a "
                "smaller data.num_workers). A script that trains has to do so below "
                "`if __name__ == '__main__':`, as the workers import it"
            )
            raise self.failure from error
        except Exception as error:  # whatever the user's transforms raise
            self.failure = UserError(
                f"data.albumentations: the transforms fail on {name}: {type(error).__name__}: "
                f"{error}; change the list, or leave out the picture"
            )
            raise self.failure from error

    def close(self) -> None:
        """Ends the processes once they are idle."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _start(text: str | list | tuple) -> None:
    """Prepares a worker process."""
    global _transforms
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import cv2

    cv2.setNumThreads(1)  # the processes run beside each other
    _transforms = user_transforms.build(text)


def _end_with_parent() -> None:
    # A worker waits for work; if the run is killed, nobody would tell it.
    multiprocessing.parent_process().join()
    os._exit(1)


def _apply(example: Objects, seed: Int32[np.ndarray, "2"]) -> Objects:
    high, low = (int(x) for x in seed.view(np.uint32))
    return user_transforms.apply(_transforms, example, high << 32 | low)
