"""`prepare` of one file: the same frames at the same times, upright, in the same colours."""

from __future__ import annotations

import resource
import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import get_args

import av
import numpy as np
import pytest
import torch
from numbered import FILES, FRAMES, X264, numbered, numbers_in, write
from prepared import LOSSLESS, SETTINGS, contents

from tubelet.data.decode import Video
from tubelet.data.prepare.reencode import Codec, Settings, fit, make
from tubelet.errors import TubeletError


def made(path: Path, settings: Settings = SETTINGS) -> Path:
    target = path.parent / "made" / f"{path.name}.mp4"
    result = make((str(path), str(target)), settings)
    assert not result.error
    return target


@pytest.mark.parametrize("name", FILES)
def test_every_frame_is_there_at_its_time(name: str, tmp_path: Path) -> None:
    path = write(
        tmp_path / name,
        numbered(size=FILES[name].get("size", (48, 64))),
        **{key: value for key, value in FILES[name].items() if key != "size"},
    )
    with Video(path) as before, Video(made(path)) as after:
        count = before.info.frames
        assert after.info.frames == count
        assert numbers_in(after.frames(range(count))) == numbers_in(before.frames(range(count)))
        assert after.timestamps == pytest.approx(before.timestamps, abs=1e-6)
        assert after.info.fps == pytest.approx(before.info.fps, rel=1e-3)
        assert (after.info.codec, after.info.pixel_format) == ("mpeg2video", "yuv420p")
        assert min(after.info.height, after.info.width) == 32
        assert (after.info.height % 2, after.info.width % 2) == (0, 0)


@pytest.mark.parametrize("codec", get_args(Codec))
def test_times_of_a_variable_rate_are_kept(tmp_path: Path, codec: Codec) -> None:
    pts = np.cumsum(np.random.default_rng(0).integers(20, 300, FRAMES)).tolist()
    how = {"time_base": Fraction(1, 1000), "pts": pts, "options": X264 | {"bf": "0"}}
    path = write(tmp_path / "v.mkv", numbered(), **how)
    settings = replace(SETTINGS, codec=codec)
    with Video(path) as before, Video(made(path, settings)) as after:
        assert after.info.codec.startswith(codec)
        assert np.ptp(np.diff(before.timestamps)) > 0.2
        assert after.timestamps == pytest.approx(before.timestamps, abs=1e-6)
        assert after.info.fps == pytest.approx(before.info.fps, rel=0.02)
        assert numbers_in(after.frames([40, 3, 17])) == [40, 3, 17]


def test_one_frame_keeps_its_rate(tmp_path: Path) -> None:
    path = write(tmp_path / "one.mp4", numbered(1), options=X264)
    with Video(made(path)) as video:
        assert (video.info.frames, video.info.fps) == (1, 25)


@pytest.mark.parametrize("clockwise", [90, 180, 270])
def test_a_turned_video_is_upright(tmp_path: Path, clockwise: int) -> None:
    path = write(tmp_path / "turned.mp4", numbered(6), options=X264)
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[clockwise]
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    values = [v << 16 for v in (cos, sin, 0, -sin, cos, 0)] + [0, 0, 1 << 30]
    data[matrix : matrix + 36] = struct.pack(">9i", *values)
    path.write_bytes(data)
    with Video(path) as before, Video(made(path, LOSSLESS)) as after:
        assert before.info.rotation
        assert after.info.rotation == 0
        assert far(before.frames(range(6)), after.frames(range(6))) < 1


def far(before: torch.Tensor, after: torch.Tensor) -> float:
    return float((before.float() - after.float()).abs().mean())


@pytest.mark.parametrize(
    ("pixels", "more"),
    [("yuv420p", {}), ("yuvj420p", {"color_range": "pc"}), ("yuv420p", {"colorspace": "bt709"})],
)
def test_colours_are_what_they_were(tmp_path: Path, pixels: str, more: dict[str, str]) -> None:
    path = write(tmp_path / "a.mp4", numbered(3), options=X264 | more, pixels=pixels)
    with Video(path) as before, Video(made(path, LOSSLESS)) as after:
        assert torch.equal(before.frames(range(3)), after.frames(range(3)))
    # MPEG-2 at its best rounds, also from the full range of values to its own, and back.
    with Video(path) as before, Video(made(path, replace(LOSSLESS, codec="mpeg2"))) as after:
        assert far(before.frames(range(3)), after.frames(range(3))) < 1.5


@pytest.mark.parametrize("codec", get_args(Codec))
def test_frames_between_key_frames_are_skipped_by_a_loader(tmp_path: Path, codec: Codec) -> None:
    source = write(tmp_path / "a.mp4", numbered(60), options=X264)
    path = made(source, Settings(keyframe_every=12, codec=codec))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    shown = sorted(packets, key=lambda packet: packet.pts)
    assert [at for at, packet in enumerate(shown) if packet.is_keyframe] == [*range(0, 60, 12)]
    with Video(path) as video:
        video.frames(range(8, 57, 8))
        assert video.decoded < 22
        assert video._source.plain
        opened = video.decoded
        video.frames([13])
        assert video.decoded - opened < 4


def test_quality_has_one_scale(tmp_path: Path) -> None:
    source = write(tmp_path / "a.mp4", numbered(13), options=X264)
    apart: dict[str, list[float]] = {}
    for codec in get_args(Codec):
        for crf in (18, 23, 28):
            with (
                Video(source) as before,
                Video(made(source, Settings(crf=crf, codec=codec))) as after,
            ):
                apart.setdefault(codec, []).append(
                    far(before.frames(range(13)), after.frames(range(13)))
                )
        assert apart[codec] == sorted(apart[codec])
    assert apart["mpeg2"] == pytest.approx(apart["h264"], rel=0.6)


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((720, 1280), 256, (256, 456)),
        ((1280, 720), 256, (456, 256)),
        ((240, 426), 256, (240, 426)),
        ((255, 341), 256, (254, 340)),
        ((257, 257), 256, (256, 256)),
        ((1, 9), 256, (2, 8)),
    ],
)
def test_sizes(size: tuple[int, int], short: int, expected: tuple[int, int]) -> None:
    assert fit(*size, short) == expected


def test_what_cannot_be_read_whole_is_not_made(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.mkv", numbered(), options=X264).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("this is no video")
    reasons = {"cut.mkv": "the file is cut off", "text.mp4": "no video", "gone.mp4": "no such file"}
    for name, why in reasons.items():
        result = make((str(tmp_path / name), str(tmp_path / "made" / name)), SETTINGS)
        assert why in result.error
    assert not contents(tmp_path / "made")


def test_what_was_made_is_copied_and_not_made_from_itself(tmp_path: Path) -> None:
    path = made(write(tmp_path / "a.mp4", numbered(), options=X264))
    again = tmp_path / "again.mp4"
    smaller = Settings(short_side=16, keyframe_every=6, crf=18)
    other = replace(SETTINGS, codec="h264")
    for settings, copied in ((SETTINGS, True), (LOSSLESS, False), (smaller, False), (other, False)):
        assert make((str(path), str(again)), settings).copied is copied
        assert (again.read_bytes() == path.read_bytes()) is copied


def test_a_disk_that_is_full_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", numbered(), options=X264)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(
            TubeletError, match=r"cannot be written: .*What was made before is whole"
        ):
            make((str(path), str(tmp_path / "made/a.mp4")), SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not contents(tmp_path / "made")
