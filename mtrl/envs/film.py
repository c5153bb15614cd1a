"""One task's episode as a video file, written where the environment is stepped.

Nothing here needs torch, nor MuJoCo before the environment is made: MUJOCO_GL is read when MuJoCo
is first imported, so a worker process renders with what it inherits.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mtrl.envs.success import is_solved

SIZE = 240  # pixels, both ways; a multiple of 16, as video encoders need it
STRIDE = 2  # environment steps per frame
FPS = 40  # Meta-World in real time: its step is 12.5 ms
HOLD = FPS  # frames for which the last picture stays
GREEN = (40, 200, 80)


class Filmed:
    """An environment of `factory` whose episode, up to its first success, becomes `path`.

    Needs `render()` -> pixels [height, width, 3]. Steps as without the camera.
    """

    def __init__(self, factory: Callable[[], gymnasium.Env], name: str, path: Path) -> None:
        self.env, self.name, self.path = factory(), name, path
        self._writer: Any = None

    def reset(self, **arguments: Any) -> tuple[NDArray[np.float64], dict[str, Any]]:
        import imageio.v2

        outcome = self.env.reset(**arguments)
        self._step = 0
        self._writer = imageio.v2.get_writer(self.path, fps=FPS, quality=7)
        self._add_frame(success=False)
        return outcome

    def step(self, action: NDArray[np.float32]) -> Any:
        outcome = self.env.step(action)
        _, _, terminated, truncated, info = outcome
        success = is_solved(self.name, info)
        ended = terminated or truncated or success
        self._step += 1
        if self._writer is not None and (ended or self._step % STRIDE == 0):
            self._add_frame(success=success, copies=HOLD if ended else 1)
        if self._writer is not None and ended:
            self._writer.close()
            self._writer = None
        return outcome

    def _add_frame(self, *, success: bool, copies: int = 1) -> None:
        pixels: Any = self.env.render()
        frame = annotate(pixels, self.name, self._step, success=success)
        for _ in range(copies):
            self._writer.append_data(frame)


def annotate(
    pixels: NDArray[np.uint8], name: str, step: int, *, success: bool
) -> NDArray[np.uint8]:
    """Pixels [height, width, 3] -> [SIZE, SIZE, 3] with task name, step and success."""
    image = Image.fromarray(pixels)
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=12)
    draw.rectangle((0, 0, SIZE, 16), fill=GREEN if success else (0, 0, 0))
    draw.text((5, 1), name, fill="white", font=font)
    label = f"solved at {step}" if success else f"step {step}"
    draw.text((SIZE - 5, 1), label, fill="white", font=font, anchor="ra")
    if success:
        draw.rectangle((0, 0, SIZE - 1, SIZE - 1), outline=GREEN, width=4)
    return np.asarray(image)
