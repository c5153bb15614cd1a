"""Pictures for TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import imageio.v3
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CONFLICT, NEITHER, AGREE = (59, 76, 192), (221, 221, 221), (180, 4, 38)
"""Colours of the cosines -1, 0 and 1."""
GAP = 10
"""Pixels between parts, and to the edge."""


def draw_heat_map(
    names: Sequence[str], cosines: NDArray[np.float64], title: str
) -> NDArray[np.uint8]:
    """RGB pixels [3, height, width]; red where tasks agree, blue where they conflict.

    By Pillow, in milliseconds: the training loop waits for it.
    """
    font = ImageFont.load_default(13)
    m = len(names)
    cell = 34 if m <= 12 else 18  # more would not fit numbers
    longest = max(int(font.getlength(name)) for name in names)
    left, top, side = GAP + longest + GAP, 2 * GAP + 16, cell * m
    legend = "cosine: 1 agree, -1 conflict"
    width = max(left + side + 75, 2 * GAP + int(font.getlength(title)))
    height = top + max(side, int(font.getlength(legend))) + GAP + longest + GAP
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.text((GAP, GAP), title, "black", font)

    def sideways(text: str, x: int, y: int) -> None:
        """Read from below, its upper end at y."""
        line = Image.new("RGB", (int(font.getlength(text)) + 1, 18), "white")
        ImageDraw.Draw(line).text((0, 1), text, "black", font)
        image.paste(line.rotate(90, expand=True), (x, y))

    cells = Image.fromarray(_colours(cosines)).resize((side, side), Image.Resampling.NEAREST)
    image.paste(cells, (left, top))
    for i, name in enumerate(names):
        middle = int((i + 0.5) * cell)
        draw.text((left - GAP // 2, top + middle), name, "black", font, "rm")
        sideways(name, left + middle - 9, top + side + GAP // 2)
    if m <= 12:
        for (row, column), value in np.ndenumerate(cosines):
            at = left + int((column + 0.5) * cell), top + int((row + 0.5) * cell)
            text = f"{value:.1f}".replace("-0.0", "0.0")
            draw.text(at, text, "white" if abs(value) > 0.6 else "black", font, "mm")

    bar = Image.fromarray(_colours(np.linspace(1.0, -1.0, side)[:, None]))
    image.paste(bar.resize((14, side)), (left + side + GAP, top))
    for mark in (1, 0, -1):
        y = top + (1 - mark) * (side - 1) // 2
        draw.text((left + side + GAP + 18, y), str(mark), "black", font, "lm")
    sideways(legend, left + side + GAP + 38, top)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _colours(cosines: NDArray[np.float64]) -> NDArray[np.uint8]:
    """[..., 3]"""
    points = [-1.0, 0.0, 1.0]
    channels = zip(CONFLICT, NEITHER, AGREE, strict=True)
    mixed = [np.interp(cosines, points, channel) for channel in channels]
    return np.stack(mixed, axis=-1).round().astype(np.uint8)


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
