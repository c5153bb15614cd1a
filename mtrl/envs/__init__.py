"""Importing this package registers the tasks with Gymnasium: `gymnasium.make("mtrl/reach-v3")`."""

import gymnasium

from mtrl.config.benchmarks import MT50, TOY

for _name in MT50:
    gymnasium.register(f"mtrl/{_name}", "mtrl.envs.tasks:make_env", kwargs={"task_name": _name})
for _name in TOY:
    gymnasium.register(
        f"mtrl/{_name}", "mtrl.envs.tasks:make_env", kwargs={"task_name": _name, "horizon": 20}
    )
