"""How much does a multi-task optimiser change the course of training, and how much does chance?

    python scripts/method_influence.py runs/quickstart/unitary/seed_1 --methods pcgrad mgda
    python scripts/method_influence.py RUN --updates 1 10 100 1000 -- --agent.optimizer sgd

From one checkpoint the agent is trained again and again, on batches of the checkpoint's replay:
by plain scalarisation (`unitary`), by it on other batches, and by each method on the first batches.
What follows `--` changes the run's settings, for all of them alike. d: how far a network has moved,
as a vector. For each loss and number of updates:

- cosine between d and that of plain scalarisation;
- length of d, in lengths of plain scalarisation's.

A method whose line is like that of other batches changes the course no more than chance does.
Methods start without memory. So do the optimisers, unless they are those of the run.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from gradient_noise import LOSSES, Saved, read
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector as flat

from mtrl.config import Config, Loss, LossSmtoConfig, SmtoConfig
from mtrl.gradients.schedule import schedule
from mtrl.options.command_line import with_overrides
from mtrl.options.methods import check_methods
from mtrl.run.checkpoint import CheckpointError
from mtrl.schema import ConfigError

UNITARY = "unitary"
Course = dict[int, dict[Loss, Tensor]]
"""{number of updates: {loss: how far its network has moved [parameter]}}"""


def of_method(config: Config, method: str) -> Config:
    """The configuration with this method on both losses."""
    none = LossSmtoConfig()
    agent = dataclasses.replace(
        config.agent, smto=SmtoConfig(method), critic_smto=none, actor_smto=none
    )
    return dataclasses.replace(config, agent=agent)


def train(saved: Saved, numbers: Sequence[int], seed: int | None) -> Course:
    """numbers: of updates, at which to look; seed: of the batches, None = the run's next ones."""
    agent, config = saved.agent, saved.config
    if seed is not None:
        agent.generator.manual_seed(seed)
    left = 1.0 - saved.step / config.whole_steps  # a finished run's step sizes would be zero
    for part in agent.parts.values():
        part.optimizer.scale(schedule(config.agent, left) if left else 1.0)
    networks: dict[Loss, nn.Module] = {"critic": agent.critic.network, "actor": agent.actor.network}
    start = {loss: flat(network.parameters()).detach() for loss, network in networks.items()}
    course: Course = {}
    for number in range(1, max(numbers) + 1):
        actor = (number - 1) % config.agent.actor_every == 0
        agent.update(*saved.sample(config.replay.batch_size // config.num_tasks), actor=actor)
        if number in numbers:
            course[number] = {
                loss: flat(network.parameters()).detach() - start[loss]
                for loss, network in networks.items()
            }
    return course


def row(name: str, course: Course, plain: Course) -> str:
    cells = [name]
    for loss in LOSSES:
        for number, moved in course.items():
            own, other = moved[loss].double(), plain[number][loss].double()
            cosine = float(torch.cosine_similarity(own, other, dim=0))
            cells.append(f"{cosine:.3f} ({float(own.norm() / other.norm()):.2f})")
    return f"| {' | '.join(cells)} |"


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run's directory")
    parser.add_argument("--checkpoint", type=Path, help="one of its files; else the latest")
    parser.add_argument("--methods", nargs="*", default=["pcgrad", "mgda"])
    parser.add_argument("--updates", type=int, nargs="+", default=[1, 10, 100, 1000])
    here = words.index("--") if "--" in words else len(words)
    chosen = parser.parse_args(words[:here])
    numbers = sorted(set(chosen.updates))
    if numbers[0] < 1:
        parser.error("--updates must be at least 1")
    try:
        stored, state = read(chosen.run, chosen.checkpoint)
        config = with_overrides(stored, "method_influence.py", words[here + 1 :])
        configs = {method: of_method(config, method) for method in (UNITARY, *chosen.methods)}
        for each in configs.values():
            check_methods(each)
    except (ConfigError, CheckpointError) as error:
        parser.error(f"{chosen.checkpoint or chosen.run}: {error}")

    new = [f"{loss}_smto" for loss in LOSSES]
    if config.agent.optimizer != stored.agent.optimizer:
        new += [f"{loss}_optimizer" for loss in LOSSES]

    def course(method: str, seed: int | None = None) -> Course:
        return train(Saved(configs[method], state, new), numbers, seed)

    plain = course(UNITARY)
    print(f"{chosen.run}, step {state['step']:,}; cosine with {UNITARY} (length)\n")
    heads = [f"{loss}, {number:,}" for loss in LOSSES for number in numbers]
    print(f"| after updates | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for seed in (1, 2):
        print(row(f"{UNITARY}, other batches", course(UNITARY, seed), plain), flush=True)
    for method in chosen.methods:
        print(row(method, course(method), plain), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
