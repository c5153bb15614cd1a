"""Where numbers go: metrics.jsonl (the truth), TensorBoard, and the console.

x axis everywhere: environment steps summed over tasks.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from mtrl.device.stop_signals import leave_dead_terminal
from mtrl.files.atomic import write_atomically
from mtrl.run import hyperparameters
from mtrl.run.console import open_console, say
from mtrl.run.dashboard import Dashboard
from mtrl.run.directory import EVENTS, RunConfig, RunDirectory
from mtrl.run.images import animated_gif, draw_heat_map
from mtrl.run.progress import GAP, ProgressLine
from mtrl.run.sinks import open_sinks
from mtrl.run.state import read_metrics
from mtrl.run.tags import per_task
from mtrl.run.timing import duration
from mtrl.schema import dump_yaml


class Recorder:
    def __init__(
        self,
        run: RunDirectory,
        config: RunConfig,
        step: int,
        total: int,
        dashboard: Dashboard,
    ) -> None:
        """Continue at `step`: later lines of an interrupted run are dropped.

        What was measured at `step` itself is not logged again: an evaluation that was under way
        is made again from the same agent. A run that starts from zero logs everything again.
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
            self._tensorboard.add_custom_scalars(dashboard.charts)
            for summary in hyperparameters.session_start(config, dashboard.scores):
                self._write(summary, 0)
            self._tensorboard.flush()
        self.console = open_console(errors=True)
        # What the line of progress says.
        self._step, self._success = step, dict[str, float]()
        self._shown: Sequence[str] = ()
        self._time_left = ""
        self._line: ProgressLine | None = None
        if sys.stderr.isatty():
            self._line = ProgressLine(self.console, step, total)

    @staticmethod
    def _keep(run: RunDirectory, step: int) -> set[str]:
        """Drop what metrics.jsonl has after `step`; -> the tags that it has at `step`."""
        if not run.metrics_file.exists():
            return set()
        kept: list[str] = []
        tags: set[str] = set()
        for record in read_metrics(run.metrics_file):
            if step > 0 and record["step"] <= step:
                kept.append(json.dumps(record) + "\n")
            if record["step"] == step > 0:
                tags |= record.keys()
        write_atomically(run.metrics_file, "".join(kept))
        return tags

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl and one point per tag. What is not finite, as NaN for what does
        not apply, is left out: JSON has no word for it."""
        known = self._logged if step == self._first else ()
        finite = {
            tag: float(value)
            for tag, value in values.items()
            if math.isfinite(value) and tag not in known
        }
        if not finite:
            return
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        for tag, value in finite.items():
            self._tensorboard.add_scalar(tag, value, step)
        for sink in self._sinks:
            sink.scalars(step, finite)

    def per_task(self, prefix: str, values: Sequence[float] | np.ndarray) -> dict[str, float]:
        """`tags.per_task` of this run's tasks."""
        return per_task(prefix, self.names, values)

    def evaluation(
        self, step: int, success: NDArray[np.bool_], returns: NDArray[np.float64], seconds: float
    ) -> None:
        """success, returns [task, episode]."""
        mean = float(success.mean())
        self.scalars(
            step,
            {
                **self.per_task("eval/success", success.mean(1)),
                "eval/success_mean": mean,
                **self.per_task("eval/return", returns.mean(1)),
                "time/eval_s": seconds,
            },
        )
        self.message(f"step {step:,}  evaluation: mean success {mean:.3f}")
        self._tensorboard.flush()
        self._success["eval"] = mean
        self._redraw()

    def heat_map(self, step: int, tag: str, cosines: NDArray[np.float64]) -> None:
        """A TensorBoard image of cosines of task gradients, [task, task]."""
        title = f"{tag}, step {step:,}"  # as in TensorBoard, and where the image is saved
        self._tensorboard.add_image(tag, draw_heat_map(self.names, cosines, title), step)
        self._tensorboard.flush()

    def video(self, step: int, path: Path) -> None:
        """A video file as an animated image, which is what TensorBoard can show."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        gif, height, width = animated_gif(path)
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        self._write(Summary(value=[Summary.Value(tag="videos/grid", image=image)]), step)
        self._tensorboard.flush()

    def _write(self, summary: Any, step: int) -> None:
        """What SummaryWriter has no method for."""
        self._tensorboard._get_file_writer().add_summary(summary, step)

    def progress(
        self, step: int, success: Mapping[str, float], env_rate: float, update_rate: float
    ) -> None:
        """success: {"train": mean over tasks, "eval": mean of the last evaluation}."""
        self._success = dict(success)
        rates = f"{env_rate:,.0f} env steps/s, {update_rate:,.1f} updates/s"
        # Without updates steps are so fast that they foretell nothing.
        self._show(step, [rates], self._left(step, env_rate) if update_rate else "warm-up")

    def advance(self, step: int, words: Sequence[str], rate: float) -> None:
        """`progress` in the caller's words, the most important first; rate: steps per second."""
        self._show(step, words, self._left(step, rate))

    def _left(self, step: int, rate: float) -> str:
        return f"ETA {duration((self.total - step) / rate)}" if rate else "ETA unknown"

    def _show(self, step: int, words: Sequence[str], left: str) -> None:
        """The state of the bar on a terminal; one plain line elsewhere."""
        self._step, self._shown, self._time_left = step, words, left
        if self._line is not None:
            self._redraw()
            return
        said = GAP.join([*self._success_words(), *words, left])
        self.message(f"step {step:,} ({100 * step / self.total:.0f}%)  {said}")

    def _redraw(self) -> None:
        if self._line is not None:
            words = [self._time_left, *self._success_words(), *self._shown]
            self._line.update(self._step, [word for word in words if word])

    def _success_words(self) -> list[str]:
        """Of runs that have a success rate."""
        known = [f"{key} {value:.2f}" for key, value in self._success.items() if value == value]
        return [f"success {', '.join(known) or '-'}"] if self._success else []

    def message(self, text: str) -> None:
        say(self.console, text)

    def close(self) -> None:
        leave_dead_terminal()
        if self._line is not None:
            self._line.close()
        if self._step >= self.total:
            self._write(hyperparameters.session_end(), self._step)
        self._file.close()
        self._tensorboard.close()
        for sink in self._sinks:
            sink.close()
