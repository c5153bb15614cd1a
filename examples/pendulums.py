"""Gymnasium's Pendulum under three gravities, as three tasks: environments of your own in mtrl.

mtrl train examples/pendulums.yaml
"""

import gymnasium
from gymnasium.envs.classic_control.pendulum import PendulumEnv


class UprightPendulum(PendulumEnv):
    """Says when the task is solved: upright and nearly at rest."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        cosine, _, speed = observation
        solved = cosine > 0.95 and abs(speed) < 1.0
        return observation, reward, terminated, truncated, info | {"success": bool(solved)}


for name, gravity in {"light": 5.0, "usual": 10.0, "heavy": 12.0}.items():
    gymnasium.register(f"pendulum-{name}-v0", UprightPendulum, kwargs={"g": gravity})
