"""Where numbers go: metrics.jsonl (the truth), TensorBoard, and the console.

x axis everywhere: environment steps summed over tasks.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import imageio.v3
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from mtrl.device.stop_signals import leave_dead_terminal
from mtrl.files.atomic import write_atomically
from mtrl.run.console import open_console
from mtrl.run.dashboard import layout
from mtrl.run.directory import EVENTS, RunConfig, RunDirectory
from mtrl.run.sinks import open_sinks
from mtrl.run.state import read_metrics
from mtrl.schema import dump_yaml


class Recorder:
    def __init__(
        self,
        run: RunDirectory,
        config: RunConfig,
        step: int,
        total: int,
    ) -> None:
        """Continue at `step`: later lines of an interrupted run are dropped.

        What was measured at `step` itself is not logged again: an evaluation that was under way
        is made again from the same agent.
        """
        self.names, self.total = config.task_names, total
        self._first = step
        self._sinks = open_sinks(run, config, step)  # first: one may refuse, and nothing is lost
        self._logged = self._keep(run, step)
        self._file = open(run.metrics_file, "a", buffering=1)  # noqa: SIM115 - closed in close()
        # TensorBoard drops what earlier files of the run have from this step on; from zero on,
        # everything, where the run was killed before its first checkpoint.
        again = any(run.tensorboard.glob(f"{EVENTS}*"))
        purged = step + 1 if step else 0 if again else None
        self._tensorboard = SummaryWriter(str(run.tensorboard), purge_step=purged)
        if not step:
            text = f"protocol: **{config.protocol_stamp}**\n\n```yaml\n{dump_yaml(config)}```"
            self._tensorboard.add_text("config", text)
            self._tensorboard.add_custom_scalars(layout(self.names))
        self.console = open_console(errors=True)
        self._progress: Progress | None = None
        if sys.stderr.isatty():
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._progress.start()
            self._bar = self._progress.add_task(config.method, total=total, completed=step)

    @staticmethod
    def _keep(run: RunDirectory, step: int) -> set[str]:
        """Drop what metrics.jsonl has after `step`; -> the tags that it has at `step`."""
        if not run.metrics_file.exists():
            return set()
        kept: list[str] = []
        tags: set[str] = set()
        for record in read_metrics(run.metrics_file):
            if record["step"] <= step:
                kept.append(json.dumps(record) + "\n")
            if record["step"] == step:
                tags |= record.keys()
        write_atomically(run.metrics_file, "".join(kept))
        return tags

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl and one point per tag; NaN (not applicable) is left out."""
        known = self._logged if step == self._first else ()
        finite = {
            tag: float(value)
            for tag, value in values.items()
            if value == value and tag not in known
        }
        if not finite:
            return
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        for tag, value in finite.items():
            self._tensorboard.add_scalar(tag, value, step)
        for sink in self._sinks:
            sink.scalars(step, finite)

    def per_task(self, prefix: str, values: Sequence[float] | np.ndarray) -> dict[str, float]:
        """{"<prefix>/<task>": value, ...}"""
        pairs = zip(self.names, values, strict=True)
        return {f"{prefix}/{name}": float(value) for name, value in pairs}

    def evaluation(
        self, step: int, success: NDArray[np.bool_], returns: NDArray[np.float64], seconds: float
    ) -> None:
        """success, returns [task, episode]."""
        mean = float(success.mean())
        self.scalars(
            step,
            {
                "eval/success_mean": mean,
                **self.per_task("eval/success", success.mean(1)),
                **self.per_task("eval/return", returns.mean(1)),
                "time/eval_s": seconds,
            },
        )
        self.message(f"step {step:,}  evaluation: mean success {mean:.3f}")
        self._tensorboard.flush()

    def heat_map(self, step: int, tag: str, cosines: NDArray[np.float64]) -> None:
        """A TensorBoard image of values in [-1, 1], [task, task]."""
        self._tensorboard.add_image(tag, draw_heat_map(self.names, cosines), step)
        self._tensorboard.flush()

    def video(self, step: int, path: Path) -> None:
        """A video file as an animated image, which is what TensorBoard can show."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        gif, height, width = animated_gif(path)
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        summary = Summary(value=[Summary.Value(tag="videos/grid", image=image)])
        self._tensorboard._get_file_writer().add_summary(summary, step)
        self._tensorboard.flush()

    def progress(
        self,
        step: int,
        success: float,
        evaluated: float,
        env_rate: float,
        update_rate: float,
    ) -> None:
        """The bar's state on a terminal; one plain line elsewhere."""
        rates = f"{env_rate:,.0f} env steps/s, {update_rate:,.1f} updates/s"
        known = {"train": success, "eval": evaluated}
        seen = ", ".join(f"{key} {value:.2f}" for key, value in known.items() if value == value)
        if self._progress is not None:
            self._progress.update(
                self._bar, completed=step, description=f"success {seen or '-'} | {rates}"
            )
            return
        percent = 100 * step / self.total
        # Without updates steps are so fast that they foretell nothing.
        left = f"ETA {(self.total - step) / env_rate / 60:.0f} min" if update_rate else "warm-up"
        self.message(f"step {step:,} ({percent:.0f}%)  success {seen or '-'}  {rates}  {left}")

    def advance(self, step: int, text: str) -> None:
        """`progress` in the caller's words."""
        if self._progress is not None:
            self._progress.update(self._bar, completed=step, description=text)
        else:
            self.message(f"step {step:,} ({100 * step / self.total:.0f}%)  {text}")

    def message(self, text: str) -> None:
        try:
            self.console.print(text, soft_wrap=True)
        except OSError:  # a full disk under a log file is an error, a terminal that is gone is not
            if not leave_dead_terminal():
                raise

    def close(self) -> None:
        leave_dead_terminal()
        if self._progress is not None:
            self._progress.stop()
        self._file.close()
        self._tensorboard.close()
        for sink in self._sinks:
            sink.close()


def draw_heat_map(names: Sequence[str], cosines: NDArray[np.float64]) -> NDArray[np.uint8]:
    """RGB pixels [3, height, width]; red where tasks agree, blue where they conflict."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: half a second
    from matplotlib.figure import Figure

    m = len(names)
    side = 3.0 + 0.18 * m  # inches: room for the names, then a cell per task
    figure = Figure(figsize=(side + 0.6, side), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(cosines, cmap="coolwarm", vmin=-1.0, vmax=1.0)
    axes.set_xticks(range(m), names, rotation=90, fontsize=7)
    axes.set_yticks(range(m), names, fontsize=7)
    figure.colorbar(image, ax=axes, shrink=0.8)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def animated_gif(path: Path, *, every: int = 4, longest_side: int = 480) -> tuple[bytes, int, int]:
    """A video in a tenth of its size, by size and rate; -> GIF, height, width."""
    frames = []
    for index, frame in enumerate(imageio.v3.imiter(path)):
        if index % every == 0:
            frames.append(Image.fromarray(frame))
            frames[-1].thumbnail((longest_side, longest_side))
    file = io.BytesIO()
    frames[0].save(
        file, "GIF", save_all=True, append_images=frames[1:], duration=25 * every, loop=0
    )
    return file.getvalue(), frames[0].height, frames[0].width
