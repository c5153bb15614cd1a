"""Updates on what is stored: how many, of which kind, compiled and captured as configured."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mtrl.agent import Agent
from mtrl.config import Config
from mtrl.device.compilation import Compilation
from mtrl.device.cuda_graph import CapturedUpdate
from mtrl.gradients.diagnostics import Diagnostics
from mtrl.gradients.schedule import schedule
from mtrl.replay import Batch, ReplayBuffer
from mtrl.run.log_window import LogWindow
from mtrl.run.timing import StageTimer


class Learner:
    def __init__(
        self,
        config: Config,
        agent: Agent,
        replay: ReplayBuffer,
        window: LogWindow,
        timer: StageTimer,
        warn: Callable[[str], None],
    ) -> None:
        """window: where the metrics of updates go. warn: what a user should know."""
        self.config, self.agent, self.replay = config, agent, replay
        self.window, self.timer, self.warn = window, timer, warn
        self.samples = config.replay.batch_size // config.num_tasks
        """Of each task in a batch."""
        self.updates = 0
        self.has_begun = False
        """Whether the warm-up is over, in this process."""
        self.diagnostics = Diagnostics()
        self._compiling: Compilation | None = None
        self.captured: dict[tuple[bool, bool], CapturedUpdate] = {}
        """By whether the update is the actor's too, and whether it gives the Gramians."""

    def learn(self, updates: int, left: float) -> None:
        """left: share of the run that is still to come, which step sizes follow."""
        settings = self.config.agent
        if settings.lr_decay:
            factor = schedule(settings, left)
            for part in self.agent.parts.values():
                part.optimizer.scale(factor)
        every = self.config.diagnostics.every
        for _ in range(updates):
            actor = self.updates % settings.actor_every == 0
            diagnostic = every > 0 and self.updates % every == 0
            if self.captured:
                self.captured[actor, diagnostic]()
            else:
                self._update(actor=actor, gramians=diagnostic)
            if diagnostic:
                gramians = {"critic": self.agent.critic.gramian}
                if actor:
                    gramians["actor"] = self.agent.actor.gramian
                self.diagnostics.add(gramians, self.agent.certificates(gramians))
            self.timer.lap("update")
            self.updates += 1
            self.window.updates += 1

    def _update(self, *, actor: bool, gramians: bool) -> None:
        """One update on a fresh sample."""
        agent = self.agent
        alpha = agent.temperature.alpha()
        batch = self.replay.sample(self.samples, agent.generator, alpha)
        self.timer.lap("sample")
        metrics = agent.update(batch, self.return_bound(), actor=actor, gramians=gramians)
        self.window.add(torch.stack(metrics))

    def trial_batch(self) -> Batch:
        """Like that of an update; no stream of the run is drawn from."""
        return self.replay.sample(self.samples, torch.Generator(self.agent.device))

    def return_bound(self) -> Tensor | None:
        if not self.config.agent.target_clip:
            return None
        return self.replay.return_bound(self.agent.temperature.alpha())

    def prepare(self) -> None:
        """Compile updates as configured, in a thread during the warm-up."""
        if self.config.learner.compile == "on":
            batch = self.trial_batch()
            self._compiling = Compilation(
                partial(self.agent.compile, batch, self.return_bound()),
                partial(self.replay.compile, self.samples),
            )

    def finish_compiling(self, meanwhile: Callable[[], None]) -> None:
        """Wait for it. meanwhile: called again and again."""
        if self._compiling is not None:
            while self._compiling.is_alive():
                meanwhile()
                self._compiling.join(0.1)
            self.timer.lap("compile")

    def begin(self) -> None:
        """After the warm-up, when nothing is compiled any more."""
        if self._compiling is not None and self._compiling.failure:
            self.warn(f"torch.compile failed, continuing without: {self._compiling.failure}")
        self._compiling, self.has_begun = None, True
        if self.config.learner.capture == "on":
            self._capture()

    def _capture(self) -> None:
        parts = self.agent.parts.values()
        for part in parts:
            part.optimizer.make_capturable()
        actors = (True,) if self.config.agent.actor_every == 1 else (True, False)
        kinds = (False, True) if self.config.diagnostics.every else (False,)
        for actor, diagnostic in itertools.product(actors, kinds):
            self.captured[actor, diagnostic] = CapturedUpdate(
                partial(self._update, actor=actor, gramians=diagnostic),
                [part.smto for part in parts],
                self.agent.generators,
                self.agent.device,
                self.warn,
            )
