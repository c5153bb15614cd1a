"""What a user of the chosen methods and networks should know when a run starts."""

from __future__ import annotations

from mtrl.agent import Agent
from mtrl.config import Config
from mtrl.networks.registry import Body


def notes(config: Config, agent: Agent) -> list[str]:
    networks = {"critic": agent.critic, "actor": agent.actor}
    found = of_rewards(config)
    found += [
        f"the {loss} network has layers that are not recorded (mtrl.networks.layers): its task "
        "gradients are computed the general way, which is slower"
        for loss, part in networks.items()
        if not part.is_recorded
    ]
    bodies = (part.network.body for part in networks.values())
    said = [line for body in bodies if isinstance(body, Body) for line in body.warnings()]
    found += dict.fromkeys(said)  # once, although both say it
    return found + [
        f"method {config.smto_of(loss).name} needs positive losses, but the {loss} loss can be "
        "negative: it gets losses above a lower bound tracked from those seen so far"
        for loss, part in agent.parts.items()
        if loss != "critic" and part.smto.wants_positive_losses
    ]


def of_rewards(config: Config) -> list[str]:
    """Rewards whose scale the chosen critics do not expect."""
    way, kind = config.replay.reward_normalization, config.critic.kind
    by_returns = way.startswith("return_")
    found = []
    if kind == "categorical" and not by_returns:
        found.append(
            f"critic.kind = categorical with replay.reward_normalization = {way}: returns outside "
            f"of +-{config.critic.support:g} (critic.support) are clipped; return_range fits them"
        )
    if kind == "popart" and way == "none":
        found.append(
            "critic.kind = popart normalises the critics' loss alone: with "
            "replay.reward_normalization = none the actor's follows the tasks with large rewards"
        )
    too_short = config.whole_warmup < config.episode_steps
    if by_returns and too_short and config.episodes_end_together:
        found.append(
            f"train.warmup_steps = {config.train.warmup_steps:,} end before the first episodes "
            f"of {config.episode_steps:,} steps: until one has ended, "
            f"replay.reward_normalization = {way} counts its rewards as 0"
        )
    return found
