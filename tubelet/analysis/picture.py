"""Drawing clips: a sheet of rows (what) and columns (when), still or moving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PAPER, INK, SOFT, ALARM = "#ffffff", "#1c1c1e", "#6e6e73", "#c8102e"
MARGIN, GAP, ROW_GAP = 20, 4, 8  # pixels
LEAST, MOST = 112, 224  # pixels: height that a frame is shown at
HOLD_SECONDS = 0.8  # the last frame of an animation stays


@dataclass(frozen=True)
class Sheet:
    """Clips of equal shape, one above the other; float [C,T,H,W] in [0,1]."""

    rows: tuple[tuple[str, Tensor], ...]
    seconds: tuple[float, ...]  # [T]
    title: str = ""
    note: str = ""
    figure: str = ""  # a number to read beside the picture
    most: int = MOST  # pixels: what is higher is shown smaller
    warning: bool = False  # the note in alarm colour, and a red frame around the last row


def strip(sheet: Sheet, columns: Sequence[int]) -> Image.Image:
    """The sheet with one column for each of the frames `columns`; text grows with large frames."""
    pictures = [[_image(clip, at, sheet.most) for at in columns] for _, clip in sheet.rows]
    width, height = pictures[0][0].size
    scale = max(1.0, height / MOST)
    margin, gap, row_gap = (round(n * scale) for n in (MARGIN, GAP, ROW_GAP))
    name, small = _font(15 * scale), _font(13 * scale)
    left = margin + max(_measure(label, name)[0] for label, _ in sheet.rows) + row_gap * 2
    body = left + len(columns) * (width + gap) - gap
    text = [(sheet.title, 18), (sheet.note, 14), (sheet.figure, 14)]
    needed = margin + max(_measure(line, _font(size * scale))[0] for line, size in text)
    top = margin + round(62 * scale)
    bottom = top + len(pictures) * (height + row_gap)
    size = (max(body, needed) + margin, bottom + round(24 * scale) + margin)
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    _head(draw, sheet, scale)
    for row, (label, _) in enumerate(sheet.rows):
        y = top + row * (height + row_gap)
        last = sheet.warning and row == len(sheet.rows) - 1
        at = (left - row_gap * 2, y + height / 2)
        draw.multiline_text(at, label, ALARM if last else INK, name, anchor="rm", align="right")
        for column, image in enumerate(pictures[row]):
            page.paste(image, (left + column * (width + gap), y))
        if last:
            draw.rectangle((left - 3, y - 3, body + 2, y + height + 2), outline=ALARM, width=2)
    for column, frame in enumerate(columns):
        at = (left + column * (width + gap) + width / 2, bottom)
        draw.text(at, f"{sheet.seconds[frame]:.2f} s", SOFT, small, anchor="ma")
    return page


def animate(sheet: Sheet, path: Path) -> None:
    """A GIF of the rows side by side, at the pace of the video."""
    frames = [_beside(sheet, at) for at in range(len(sheet.seconds))]
    steps = np.diff(np.array(sheet.seconds)) * 1000
    usual = float(np.median(steps[steps > 0])) if (steps > 0).any() else 100.0
    # GIF counts in hundredths of a second, and viewers slow down what is below two of them.
    tick = max(20, round(usual / 10) * 10)
    durations = [tick] * (len(frames) - 1) + [tick + int(HOLD_SECONDS * 1000)]
    small = [frame.quantize(256, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]
    small[0].save(
        path, save_all=True, append_images=small[1:], duration=durations, loop=0, optimize=False
    )


def _beside(sheet: Sheet, at: int) -> Image.Image:
    pictures = [_image(clip, at, sheet.most) for _, clip in sheet.rows]
    width, height = pictures[0].size
    body = 2 * MARGIN + len(pictures) * (width + 2 * GAP) - 2 * GAP
    size = 13
    lines = [*_wrapped(sheet.title, size, body), *_wrapped(sheet.note, size, body)]
    marked = len(_wrapped(sheet.title, size, body))
    top = MARGIN // 2 + len(lines) * (size + 5) + 26
    page = Image.new("RGB", (body, top + height + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        colour = INK if number < marked else ALARM if sheet.warning else SOFT
        draw.text((MARGIN, MARGIN // 2 + number * (size + 5)), line, colour, _font(size))
    for column, ((label, _), image) in enumerate(zip(sheet.rows, pictures, strict=True)):
        x = MARGIN + column * (width + 2 * GAP)
        last = sheet.warning and column == len(pictures) - 1
        label = label.replace("\n", " ")
        draw.text((x + width / 2, top - 6), label, ALARM if last else INK, _font(13), anchor="ms")
        page.paste(image, (x, top))
    return page


def _head(draw: ImageDraw.ImageDraw, sheet: Sheet, scale: float) -> None:
    note = ALARM if sheet.warning else SOFT
    lines = [(sheet.title, 14, INK, 18), (sheet.note, 40, note, 14), (sheet.figure, 58, SOFT, 14)]
    for text, y, colour, size in lines:
        draw.text((MARGIN * scale, y * scale), text, colour, _font(size * scale))


def _image(clip: Tensor, at: int, most: int) -> Image.Image:
    """Frame `at` of [C,T,H,W]; small ones enlarged by a whole factor, so that pixels stay pixels."""
    frame = clip[:3, at] if clip.shape[0] >= 3 else clip[:1, at].expand(3, -1, -1)
    array = (frame.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
    image = Image.fromarray(array)
    width, height = image.size
    if height < LEAST:
        factor = -(-LEAST // height)
        return image.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    if height > most:
        return image.resize((round(width * most / height), most), Image.Resampling.LANCZOS)
    return image


def _font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size
    )


def _measure(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Width and height in pixels."""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    x0, y0, x1, y1 = draw.multiline_textbbox((0, 0), text, font=font)
    return int(x1 - x0) + 1, int(y1 - y0) + 1


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """The text in lines that fit."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _measure(longer, _font(size))[0] <= width - 2 * MARGIN:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
