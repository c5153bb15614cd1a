"""One task's episodes as a video file, written where the environment is stepped.

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

STRIDE = 2  # environment steps per frame
FPS = 40  # Meta-World in real time: its step is 12.5 ms
HOLD = FPS  # frames for which the last picture stays
GREEN = (40, 200, 80)


class Filmed:
    """An environment of `factory` whose episodes, each up to its first success, become `path`.

    Needs `render()` -> pixels [height, width, 3]. Steps as without the camera.
    """

    def __init__(
        self,
        factory: Callable[[], gymnasium.Env],
        name: str,
        path: Path,
        size: int = 240,
        episodes: int = 1,
    ) -> None:
        """size: pixels, both ways; a multiple of 16, as video encoders need it."""
        self.env, self.name, self.path = factory(), name, path
        self.size, self.episodes = size, episodes
        self._episode = 0
        self._writer: Any = None

    def reset(self, **arguments: Any) -> tuple[NDArray[np.float64], dict[str, Any]]:
        import imageio.v2

        outcome = self.env.reset(**arguments)
        self._step = 0
        self._episode += 1
        if self._episode == 1:
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
        if self._writer is not None and ended and self._episode == self.episodes:
            self._writer.close()
            self._writer = None
        return outcome

    def _add_frame(self, *, success: bool, copies: int = 1) -> None:
        pixels: Any = self.env.render()
        below = f"episode {self._episode} of {self.episodes}" if self.episodes > 1 else ""
        frame = annotate(pixels, self.size, self.name, self._step, success=success, below=below)
        for _ in range(copies):
            self._writer.append_data(frame)


def annotate(
    pixels: NDArray[np.uint8],
    size: int,
    name: str,
    step: int,
    *,
    success: bool,
    below: str = "",
) -> NDArray[np.uint8]:
    """Pixels [height, width, 3] -> [size, size, 3] with task name, step and success."""
    image = Image.fromarray(pixels)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    bar = size // 15
    font, edge = ImageFont.load_default(size=size // 20), size // 48
    draw.rectangle((0, 0, size, bar), fill=GREEN if success else (0, 0, 0))
    draw.text((edge, bar // 2), name, fill="white", font=font, anchor="lm")
    label = f"solved at {step}" if success else f"step {step}"
    draw.text((size - edge, bar // 2), label, fill="white", font=font, anchor="rm")
    if below:
        box = draw.textbbox((edge, size - edge), below, font=font, anchor="ld")
        draw.rectangle(box, fill=(0, 0, 0))
        draw.text((edge, size - edge), below, fill="white", font=font, anchor="ld")
    if success:
        draw.rectangle((0, 0, size - 1, size - 1), outline=GREEN, width=size // 60)
    return np.asarray(image)
