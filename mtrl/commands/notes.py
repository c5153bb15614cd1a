"""What a user of the chosen methods and networks should know when a run starts."""

from __future__ import annotations

from mtrl.agent import Agent
from mtrl.config import Config
from mtrl.networks.registry import Body


def notes(config: Config, agent: Agent) -> list[str]:
    networks = {"critic": agent.critic, "actor": agent.actor}
    found = [
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
