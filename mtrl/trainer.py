"""The training loop, and what it calls on: logging, evaluation, checkpoints."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.agent import Agent, Metrics
from mtrl.collector import Collector
from mtrl.config import Config
from mtrl.device.compilation import Compilation
from mtrl.device.cuda_graph import CapturedUpdate
from mtrl.device.memory import peak_memory_mib
from mtrl.envs.goals import lane_goals
from mtrl.envs.vector import VectorEnv
from mtrl.evaluation import Evaluation, Evaluator, agent_policy, goals_at
from mtrl.gradients.diagnostics import Diagnostics
from mtrl.gradients.schedule import reset_due, schedule, updates_due
from mtrl.options.first_update import check_first_update
from mtrl.replay import ReplayBuffer
from mtrl.reward_scale import create_scale
from mtrl.run import checkpoint
from mtrl.run.callbacks import Callback
from mtrl.run.directory import RunDirectory, Status
from mtrl.run.log_window import LogWindow
from mtrl.run.recorder import Recorder
from mtrl.run.stopping import Stopped, TrainingError
from mtrl.run.timing import StageTimer
from mtrl.videos import record

SUCCESS_WINDOW = 10  # episodes per task in train/episode_success


class Trainer:
    """One run. `loop` is the algorithm; everything else serves it."""

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        envs: VectorEnv,
        device: torch.device,
        stack: ExitStack,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """`stack` ends what the run starts: evaluation workers, threads and open files."""
        self.callbacks, self._asked_to_stop = callbacks, False
        self.config, self.run, self.device, self.stack = config, run, device, stack
        self.envs = envs
        self.evaluator = Evaluator(config)
        self.writer = checkpoint.Writer(config.checkpoint.keep)
        stack.callback(self.writer.close)
        stack.callback(self.evaluator.close)
        observation_dim, action_dim = envs.observation_dim, envs.action_dim
        self.agent = Agent(config, observation_dim, action_dim, device)
        self.reward_scale = create_scale(config, action_dim, device)
        self.replay = ReplayBuffer(
            config.num_tasks,
            config.replay.capacity,
            observation_dim,
            action_dim,
            self.reward_scale,
            device,
            envs_per_task=config.train.envs_per_task,
            gamma=config.agent.gamma,
            n_step=config.agent.n_step,
        )
        self.collector = Collector(self.agent, self.replay, observation_dim)
        self.per_task_batch = config.replay.batch_size // config.num_tasks
        self.total = config.whole_steps
        self.step = 0
        self.episodes = np.zeros(config.num_envs, dtype=np.int64)
        self.recent_success: list[list[float]] = [[] for _ in config.task_names]
        self.best_success = -1.0
        self.last_success = math.nan
        self.elapsed = 0.0
        self.stop_signal = 0
        self._compiling: Compilation | None = None
        self._captured: dict[tuple[bool, bool], CapturedUpdate] = {}
        """By whether the update is the actor's too, and whether it gives the Gramians."""
        self.updates = 0
        self.diagnostics = Diagnostics()
        self.timer = StageTimer()
        self.window = LogWindow(config.task_names, envs, self.timer, device, Metrics._fields)
        self.last_evaluation: Evaluation | None = None

    def open_recorder(self) -> None:
        """Once the step is known (zero, or a checkpoint's)."""
        self.recorder = Recorder(self.run, self.config, self.step, self.total)
        self.stack.callback(self.recorder.close)

    @property
    def has_learned(self) -> bool:
        return self.updates > 0

    @property
    def finished(self) -> bool:
        return self.step >= self.total

    def longer_than(self, stored: Config) -> str:
        """A warning, where step sizes had begun to fall towards the end of a shorter run."""
        settings = self.config.agent
        was, now = (
            schedule(settings, (n - self.step) / n) for n in (stored.whole_steps, self.total)
        )
        if was == now:
            return ""
        return (
            f"agent.lr_decay = {settings.lr_decay:g} follows the new length: step sizes had fallen "
            f"to {was:.0%} and continue from {now:.0%}; a run of this length from the start is "
            "another one"
        )

    def prepare_updates(self) -> None:
        """Compile them as configured, in a thread during the warm-up."""
        if self.config.learner.compile == "on":
            batch = self.replay.sample(self.per_task_batch, torch.Generator(self.device))
            self._compiling = Compilation(
                partial(self.agent.compile, batch, self._return_bound()),
                partial(self.replay.compile, self.per_task_batch),
            )

    def _begin_learning(self) -> None:
        """After the warm-up: nothing may be compiled while something is captured."""
        if self._compiling is not None:
            self._wait_for(self._compiling)
        generator = torch.Generator(self.device)
        sample = partial(self.replay.sample, self.per_task_batch, generator)
        check_first_update(self.config, self.agent, sample, self._return_bound())
        if self._compiling is not None and self._compiling.failure:
            failure = self._compiling.failure
            self._warn(f"torch.compile failed, continuing without: {failure}")
        self._compiling = None
        if self.config.learner.capture == "on":
            parts = self.agent.parts.values()
            for part in parts:
                part.optimizer.make_capturable()
            smtos = [part.smto for part in parts]
            actors = (True,) if self.config.agent.actor_every == 1 else (True, False)
            kinds = (False, True) if self.config.diagnostics.every else (False,)
            for actor, diagnostic in itertools.product(actors, kinds):
                self._captured[actor, diagnostic] = CapturedUpdate(
                    partial(self._update, actor=actor, gramians=diagnostic),
                    smtos,
                    self.agent.generators,
                    self.device,
                    self._warn,
                )
            self.collector.capture(self._warn)

    def _warn(self, text: str) -> None:
        self.recorder.message(f"warning: {text}")

    def _wait_for(self, compilation: Compilation) -> None:
        """But not deaf: a dead worker or a signal is answered meanwhile."""
        while compilation.is_alive():
            self.envs.check()
            if self.stop_signal and self.step % self.config.episode_steps == 0:
                self._save_and_stop()  # every episode has just ended
            compilation.join(0.1)
        self.timer.lap("compile")

    # -- the algorithm --------------------------------------------------------------------------

    def loop(self) -> None:
        config, envs, collector = self.config, self.envs, self.collector
        lap = self.timer.lap
        n = config.num_envs
        warmup = math.ceil(config.train.warmup_steps / n) * n
        collector.begin(envs.reset(self._goals(self.episodes)))
        solved = np.zeros(n, dtype=np.bool_)
        next_goals = self._goals(self.episodes + 1)
        learning = False

        while not self.finished:
            if self.step >= warmup and not learning:
                learning = True
                self._begin_learning()
            actions = collector.act(random=not learning)
            self._check_finite("action", actions)
            envs.send(actions, next_goals)
            lap("act")
            if learning:  # on what is stored, while the workers simulate
                self._learn(updates_due(config.agent, (self.step - warmup) // n))
            outcome = envs.receive()
            lap("simulate")
            self._check_finite("observation", outcome.next_observations, outcome.observations)
            self._check_finite("reward", outcome.rewards)
            collector.store(outcome)
            lap("store")
            self.step += n
            solved |= outcome.success
            done = outcome.ended
            if done.any():
                self._finish_episodes(done, solved)
                next_goals = self._goals(self.episodes + 1)
            if self.step == warmup:
                if config.network.observation_norm:
                    self.agent.encoder.set_statistics(*self.replay.observation_statistics())
                self.reward_scale.refresh()
            self._reset_networks()
            self._log_evaluate_save(may_save=bool(done.all()) or not config.episodes_end_together)
        self.writer.wait()

    def _reset_networks(self) -> None:
        last = self.step - self.config.num_envs
        number = reset_due(self.config.agent, last, self.step, self.total)
        if number is not None:
            self.agent.reset(number)
            self.reward_scale.refresh()

    def _learn(self, updates: int) -> None:
        if self.config.agent.lr_decay:
            left = (self.total - self.step) / self.total
            factor = schedule(self.config.agent, left)
            for part in self.agent.parts.values():
                part.optimizer.scale(factor)
        every = self.config.diagnostics.every
        for _ in range(updates):
            diagnostic = every > 0 and self.updates % every == 0
            actor = self.updates % self.config.agent.actor_every == 0
            if self._captured:
                self._captured[actor, diagnostic]()
            else:
                self._update(actor=actor, gramians=diagnostic)
            if diagnostic:
                self.diagnostics.add(self.agent.gramians, self.agent.certificates())
            self.timer.lap("update")
            self.updates += 1
            self.window.updates += 1

    def _update(self, *, actor: bool, gramians: bool = False) -> None:
        """One update on a fresh sample."""
        agent = self.agent
        alpha = agent.temperature.alpha()
        batch = self.replay.sample(self.per_task_batch, agent.generator, alpha)
        self.timer.lap("sample")
        metrics = agent.update(batch, self._return_bound(), actor=actor, gramians=gramians)
        self.window.add(torch.stack(metrics))

    def _return_bound(self) -> Tensor | None:
        if not self.config.agent.target_clip:
            return None
        return self.replay.return_bound(self.agent.temperature.alpha())

    # -- around it ------------------------------------------------------------------------------

    def _goals(self, episodes: NDArray[np.int64]) -> NDArray[np.int64]:
        config = self.config
        copies, count = config.train.envs_per_task, config.env.num_goals
        return lane_goals(config.seed, self.envs.names, episodes, copies, count)

    def _finish_episodes(self, done: NDArray[np.bool_], solved: NDArray[np.bool_]) -> None:
        for lane in np.flatnonzero(done):
            recent = self.recent_success[lane // self.config.train.envs_per_task]
            recent.append(float(solved[lane]))
            del recent[:-SUCCESS_WINDOW]
        self.episodes += done
        solved[done] = False

    def _log_evaluate_save(self, *, may_save: bool) -> None:
        config, final = self.config, self.finished
        if self._crossed(config.logging.every) or final:
            self.log()
        if self._crossed(config.evaluation.every) or final:
            self._start_evaluation(final=final)
        if final:
            self._collect_evaluation()
        if self._crossed(config.train.video_every):
            self._record_video()
        if may_save:
            if (self.stop_signal or self._asked_to_stop) and not final:
                self._save_and_stop()
            if final or self.step % config.checkpoint.every == 0:
                self.save()

    def _ask(self, answers: Iterable[bool | None]) -> None:
        """Every callback is heard, also after one that asks to stop."""
        self._asked_to_stop |= True in list(answers)

    def _crossed(self, every: int) -> bool:
        return every > 0 and self.step // every > (self.step - self.config.num_envs) // every

    def _check_finite(self, quantity: str, *arrays: NDArray[Any]) -> None:
        """TrainingError, which names a task, unless all of these arrays [lane, ...] are."""
        for values in arrays:
            if np.isfinite(values).all():
                continue
            self.log()  # a non-finite loss is the cause, if there is one: it is named instead
            lane = np.argwhere(~np.isfinite(values))[0, 0]
            task = self.envs.names[lane]
            raise TrainingError(f"non-finite {quantity} of task {task} at step {self.step}")

    def log(self) -> None:
        """Mean metrics since the last log; the one place where the loop waits for the device."""
        window, recorder = self.window, self.recorder
        if window.is_empty(self.step):
            return
        self.evaluator.check()
        self.writer.check()
        self.elapsed += window.seconds
        success = [float(np.mean(recent)) if recent else math.nan for recent in self.recent_success]
        sigma = self.reward_scale.moments.sigma.cpu().numpy()
        divisor = self.reward_scale.divisor(self.agent.temperature.alpha())
        values = window.times(self.step) | self.diagnostics.flush()
        values |= recorder.per_task("train/episode_success", success)
        values |= recorder.per_task("train/reward_std", sigma)
        if divisor is not None:
            values |= recorder.per_task("train/reward_scale", divisor.cpu().numpy())
        values["memory/learner_mib"] = peak_memory_mib(self.device)
        values |= window.metrics(self.step)
        recorder.scalars(self.step, values)
        self._ask(callback.on_log(self.step, values) for callback in self.callbacks)
        known = [s for s in success if s == s]
        recorder.progress(
            self.step,
            float(np.mean(known)) if known else math.nan,
            self.last_success,
            values["time/env_steps_per_s"],
            values["time/updates_per_s"],
        )
        self.status("running")
        window.restart(self.step)
        self.timer.lap("log")

    def _start_evaluation(self, *, final: bool) -> None:
        """Deterministic, in environments of its own; touches no training state."""
        self._collect_evaluation()
        goals = goals_at(self.config, self.step, final=final)
        self.evaluator.start(self.step, self.agent, goals)
        for loss, cosines in self.diagnostics.heat_maps.items():
            self.recorder.heat_map(self.step, f"gradients/{loss}/cosine", cosines)
        self._exclude(self.timer.lap("evaluate"))

    def _collect_evaluation(self) -> None:
        """Record the evaluation under way, if there is one, at the step of its snapshot.

        Waits for it, where the order of events asks for that: before the next evaluation, before
        a checkpoint of a later step, and at the end. So the log does not depend on the timing.
        """
        if self.evaluator.under_way is None:
            return
        started, (result, seconds) = self.evaluator.collect()
        self.last_success = result.success_mean
        self.recorder.evaluation(started.step, result.success, result.returns, seconds)
        self.last_evaluation = result
        self._ask(callback.on_evaluation(started.step, *result) for callback in self.callbacks)
        if result.success_mean >= self.best_success:  # of equals the one trained longest
            self.best_success = result.success_mean
            best = {"step": started.step, "agent": started.agent}
            self.writer.save(self.run.checkpoints / "best.pt", best)
        self._exclude(self.timer.lap("evaluate"))

    def final_evaluation(self) -> Evaluation:
        """Made again, only to be shown, where the run had been finished before."""
        if self.last_evaluation is None:
            goals = goals_at(self.config, self.step, final=True)
            self.evaluator.start(self.step, self.agent, goals)
            _, (self.last_evaluation, _) = self.evaluator.collect()
        return self.last_evaluation

    def _record_video(self) -> None:
        """In the background: what goes wrong here must not end it."""
        started = time.monotonic()
        try:
            path = record(self.config, agent_policy(self.agent), self.run.video_folder(self.step))
            self.recorder.video(self.step, path)
        except (RuntimeError, OSError) as error:
            self.recorder.message(f"warning: no video: {error}")
        self._exclude(time.monotonic() - started)

    def _exclude(self, seconds: float) -> None:
        """Keep time spent beside training out of the logged speeds."""
        self.elapsed += seconds
        self.window.exclude(seconds)

    # -- state ----------------------------------------------------------------------------------

    def status(self, status: Status) -> None:
        self.run.write_status(
            status,
            step=self.step,
            total_steps=self.total,
            elapsed_s=round(self.elapsed, 1),
            protocol=self.config.protocol_stamp,
            success_mean=None if math.isnan(self.last_success) else self.last_success,
            best_success_mean=max(self.best_success, 0.0),
        )

    def save(self) -> None:
        """A checkpoint of everything; where every episode has just ended, if they end together."""
        self.log()  # refuses non-finite losses: a bad state never replaces a good one
        started = self.evaluator.under_way
        if started is not None and started.step < self.step:
            self._collect_evaluation()
        evaluating = self.evaluator.under_way
        state = {
            "step": self.step,
            "episodes": self.episodes.tolist(),
            "recent_success": self.recent_success,
            "best_success": self.best_success,
            "last_success": self.last_success,
            # Of this step, then: a resumed run begins it again, from the same agent.
            "evaluating": None if evaluating is None else evaluating.goals.tolist(),
            "elapsed": self.elapsed,
            "updates": self.updates,
            "agent": self.agent.state_dict(),
            "replay": self.replay.state_dict(),
        }
        path = checkpoint.step_path(self.run.checkpoints, self.step)
        self.writer.save(path, state)
        self._ask(callback.on_checkpoint(self.step, path) for callback in self.callbacks)
        self._exclude(self.timer.lap("checkpoint"))

    def _save_and_stop(self) -> NoReturn:
        self.save()
        self.writer.wait()
        raise Stopped(self.stop_signal, self.run)

    def load(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError, before anything is changed, for a checkpoint of another run."""
        checkpoint.check_resumable(state, self.config.num_envs)
        self.agent.load_state_dict(state["agent"])
        self.step = state["step"]
        self.episodes = np.array(state["episodes"], dtype=np.int64)
        self.recent_success = state["recent_success"]
        self.best_success = state["best_success"]
        self.last_success = state["last_success"]
        self.elapsed = state["elapsed"]
        self.updates = state["updates"]
        self.replay.load_state_dict(state["replay"])
        if state.get("evaluating") is not None:  # absent in older checkpoints
            self.evaluator.start(self.step, self.agent, np.array(state["evaluating"]))
        self.window.restart(self.step)
