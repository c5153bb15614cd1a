"""Pictures for TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import imageio.v3
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def draw_heat_map(
    names: Sequence[str], cosines: NDArray[np.float64], title: str
) -> NDArray[np.uint8]:
    """RGB pixels [3, height, width]; red where tasks agree, blue where they conflict."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: half a second
    from matplotlib.figure import Figure

    m = len(names)
    side = 3.5 + 0.22 * m  # inches: room for the names, then a cell per task
    figure = Figure(figsize=(side + 1.2, side + 0.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(cosines, cmap="coolwarm", vmin=-1.0, vmax=1.0)
    axes.set_title(title, fontsize=11)
    axes.set_xticks(range(m), names, rotation=90, fontsize=9)
    axes.set_yticks(range(m), names, fontsize=9)
    if m <= 12:  # more would not fit the cells
        for (row, column), value in np.ndenumerate(cosines):
            colour = "white" if abs(value) > 0.6 else "black"
            text = f"{value:.1f}".replace("-0.0", "0.0")
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("cosine: 1 agree, -1 conflict", fontsize=9)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def animated_gif(path: Path, *, every: int = 4, longest_side: int = 480) -> tuple[bytes, int, int]:
    """A video in a tenth of its size, by size and rate; -> GIF, height, width."""
    frames = []
    for index, frame in enumerate(imageio.v3.imiter(path)):
        if index % every == 0:
            frames.append(Image.fromarray(frame))
            frames[-1].thumbnail((longest_side, longest_side))
    file = io.BytesIO()
    frames[0].save(
        file, "GIF", save_all=True, append_images=frames[1:], duration=25 * every, loop=0
    )
    return file.getvalue(), frames[0].height, frames[0].width
