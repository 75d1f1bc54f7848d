"""What a run tells: the console, metrics.jsonl, TensorBoard."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.files import replacing


def write_atomic(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


class RunLog:
    """The log of one run. Only the first host speaks and writes."""

    def __init__(
        self, workdir: Path, start_step: int, num_steps: int, speaks: bool, records: bool = True
    ):
        """start_step: lines of metrics.jsonl after it are of a killed run, and are cut.

        speaks: False on all hosts but the first. records: False leaves metrics.jsonl and
        TensorBoard as they are.
        """
        writes = speaks and records
        self._writes = writes
        self._path = workdir / "metrics.jsonl"
        self._console = Console(quiet=not speaks, soft_wrap=True)
        self._num_steps = num_steps
        self._progress: Progress | None = None
        self._spoken = 0.0
        self._board = None
        if writes:
            self.history = _cut(self._path, start_step)
            self._board = _summary_writer(workdir / "tensorboard", start_step)
        else:
            self.history = read_metrics(self._path, start_step)

    def say(self, text: str) -> None:
        """Prints a line, above the progress bar where there is one."""
        self._console.print(text, markup=False, highlight=False)

    def table(self, title: str, header: list[str], rows: list[list[str]]) -> None:
        """Prints a table."""
        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Adds a line to metrics.jsonl and to `history`, and the scalars to TensorBoard.

        Lines are in the order of their steps: a line that comes late does not follow later ones.
        """
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        line = {"step": step, **finite}
        late = bool(self.history) and step < self.history[-1]["step"]
        self.history.append(line)
        if late:
            self.history.sort(key=lambda line: line["step"])
        if not self._writes:
            return
        if late:
            _write_lines(self._path, self.history)
        else:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            tag = name if "/" in name else f"train/{name}"
            self._board.add_scalar(tag, value, step)

    def picture(self, step: int, tag: str, image: np.ndarray) -> None:
        """Puts a uint8 [H, W, 3] picture into TensorBoard."""
        if self._writes:
            self._board.add_image(tag, image, step, dataformats="HWC")

    def advance(self, step: int, values: dict[str, float]) -> None:
        """Moves the progress bar; where the output is no terminal, prints a line now and then."""
        text = (
            f"loss {values['loss']:.4f} (rpn {values['rpn_cls']:.3f}+{values['rpn_box']:.3f}, "
            f"cls {values['cls']:.3f}, box {values['box']:.3f}, mask {values['mask']:.3f}) "
            f"lr {values['lr']:.2e}, {values['time/images_per_s']:.1f} img/s, "
            f"step {values['time/step']:.3f} s, waits for data {values['time/data_wait']:.3f} s"
        )
        if self._console.is_terminal:
            if self._progress is None:
                self._progress = Progress(
                    BarColumn(20),
                    MofNCompleteColumn(),
                    TimeRemainingColumn(),
                    TextColumn("{task.description}"),
                    console=self._console,
                )
                self._progress.add_task("", total=self._num_steps, completed=step)
                self._progress.start()
            self._progress.update(self._progress.task_ids[0], completed=step, description=text)
        elif time.monotonic() - self._spoken > 10 or step >= self._num_steps:
            self._spoken = time.monotonic()
            left = (self._num_steps - step) * values["time/step"]
            self.say(f"step {step}/{self._num_steps}, {_clock(left)} left: {text}")

    def close(self) -> None:
        """Ends the progress bar and flushes what is buffered."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if self._board is not None:
            # On a full disk, the error that ended the run is the one to tell.
            with suppress(OSError):
                self._board.close()


class ProgressBar:
    """A bar with the time left; where the output is no terminal, a line now and then instead."""

    def __init__(self, unit: str):
        """unit: of what is counted, in the plural."""
        self._console = Console(soft_wrap=True)
        self._unit, self._done, self._total = unit, 0, 0
        self._started = self._spoken = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line, above the bar."""
        self._console.print(text, markup=False, highlight=False)

    def begin(self, total: int) -> None:
        """Starts to count to `total`."""
        self._total, self._started = total, time.monotonic()
        if self._console.is_terminal:
            columns = BarColumn(30), MofNCompleteColumn(), TimeRemainingColumn()
            self._bar = Progress(*columns, TextColumn(self._unit), console=self._console)
            self._bar.add_task("", total=total)
            self._bar.start()

    def advance(self) -> None:
        """One more is done."""
        self._done += 1
        now = time.monotonic()
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0])
        elif now - self._spoken > 10:
            self._spoken = now
            left = (now - self._started) / self._done * (self._total - self._done)
            self.say(f"{self._done}/{self._total} {self._unit}, {_clock(left)} left")


def read_metrics(path: Path, last_step: int) -> list[dict[str, Any]]:
    """The complete lines of a metrics.jsonl up to a step."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # a line that a kill cut in the middle
        if line["step"] <= last_step:
            lines.append(line)
    return lines


def _cut(path: Path, last_step: int) -> list[dict[str, Any]]:
    kept = read_metrics(path, last_step)
    _write_lines(path, kept)
    return kept


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))


def _summary_writer(folder: Path, start_step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError(
            "training needs tensorboardX, which is not installed: pip install 'maskrcnn_jax[train]'"
        ) from error
    return SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


class StepClock:
    """Seconds per step, without the pauses, and the part of them that waited for data."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._started, self._spent = time.perf_counter(), {"waits": 0.0, "pauses": 0.0}

    def waiting(self) -> AbstractContextManager:
        """Counts the block as waiting for data."""
        return self._count("waits")

    def pausing(self, pause: bool) -> AbstractContextManager:
        """Takes the block out of the time of the steps: compiling, evaluating, saving."""
        return self._count("pauses") if pause else nullcontext()

    @contextmanager
    def _count(self, kind: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._spent[kind] += time.perf_counter() - begin

    def lap(self, steps: int) -> tuple[float, float]:
        """Seconds a step, and seconds of it that waited for data, since the last call."""
        total = time.perf_counter() - self._started - self._spent["pauses"]
        result = max(total, 1e-9) / steps, self._spent["waits"] / steps
        self._begin()
        return result
