"""Frames by number: against a plain decode from the start, and against numbers in the pictures."""

from __future__ import annotations

import os
import pickle
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numbered import FILES, FRAMES, HEIGHT, VP, WIDTH, X264, numbered, numbers_in, plain, write
from PIL import Image

from tubelet.data import packets
from tubelet.data.decode import DecodeError, Video, available_decoders
from tubelet.errors import TubeletError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def b_frames(folder: Path) -> Path:
    return write(folder / "shared.mp4", numbered(), options=X264)


@pytest.mark.parametrize("kept", [packets.KEPT_BYTES, 0], ids=["kept", "read again"])
@pytest.mark.parametrize("name", FILES)
def test_any_frames_in_any_order_are_those_of_a_plain_decode(
    folder: Path, name: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small file all packets are kept; in a large one they are sought."""
    monkeypatch.setattr(packets, "KEPT_BYTES", kept)
    how = FILES[name]
    path = write(folder / name, numbered(size=how.get("size", (HEIGHT, WIDTH))), **how)
    expected = plain(path)
    cut = 7 if name == "edited.mp4" else 0  # the edit list leaves out what is before time 0
    with Video(path) as video:
        assert video.info.frames == len(expected) == FRAMES - cut
        rng = np.random.default_rng(1)
        for count in (1, 1, 1, 2, 3, 5, 8, 8):
            asked = rng.integers(0, len(expected), count)
            assert np.array_equal(video.frames(asked).numpy(), expected[asked]), asked
        everything = video.frames(range(len(expected)))
    assert np.array_equal(everything.numpy(), expected)
    if name != "moving.gif":
        assert numbers_in(everything) == list(range(cut, FRAMES))


def test_facts_of_a_file(b_frames: Path) -> None:
    with Video(b_frames) as video:
        info = video.info
        assert (info.frames, info.fps, info.height, info.width) == (FRAMES, 25.0, HEIGHT, WIDTH)
        assert (info.codec, info.pixel_format, info.rotation) == ("h264", "yuv420p", 0)
        assert info.duration_seconds == pytest.approx(FRAMES / 25)
        assert video.timestamps == pytest.approx(np.arange(FRAMES) / 25)
        frames = video.frames([3, 1, 1])
    assert frames.dtype == torch.uint8
    assert frames.shape == (3, HEIGHT, WIDTH, 3)


def test_no_frames_asked_for(b_frames: Path) -> None:
    with Video(b_frames) as video:
        assert video.frames([]).shape == (0, HEIGHT, WIDTH, 3)


def test_variable_frame_rate(folder: Path) -> None:
    gaps = np.random.default_rng(2).integers(10, 90, FRAMES - 1)
    pts = [500, *(500 + np.cumsum(gaps)).tolist()]  # milliseconds
    path = write(folder / "vfr.mp4", numbered(), options=X264, pts=pts, time_base=Fraction(1, 1000))
    with Video(path) as video:
        assert video.timestamps == pytest.approx((np.array(pts) - 500) / 1000, abs=1e-4)
        assert video.info.fps == pytest.approx((FRAMES - 1) / (pts[-1] - 500) * 1000, rel=1e-3)
        assert numbers_in(video.frames([30, 2, 17])) == [30, 2, 17]


@pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
def test_rotation_is_undone(folder: Path, clockwise: int) -> None:
    """The display matrix of the track header, written as a phone held on its side does."""
    path = write(folder / f"turn{clockwise}.mp4", numbered(6), options=X264)
    expected = np.rot90(plain(path), -clockwise // 90, axes=(1, 2))
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[clockwise]
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    turned = (cos, sin, 0, -sin, cos, 0)
    values = [v << 16 for v in turned] + [0, 0, 1 << 30]
    data[matrix : matrix + 36] = struct.pack(">9i", *values)
    path.write_bytes(data)
    with Video(path) as video:
        assert (video.info.height, video.info.width) == expected.shape[1:3]
        assert video.info.rotation == -clockwise % 360
        assert np.array_equal(video.frames(range(6)).numpy(), expected)


def test_edit_list_with_a_late_start(folder: Path) -> None:
    """A list that starts 10 frames in: those before are decoded but not part of the video."""
    path = write(folder / "list.mp4", numbered(), options=X264)
    data = bytearray(path.read_bytes())
    media_time = data.index(b"elst") + 4 + 4 + 4 + 4
    start = struct.unpack_from(">i", data, media_time)[0]
    struct.pack_into(">i", data, media_time, start + 10 * 512)  # ticks of 1/12800 s
    path.write_bytes(data)
    with Video(path) as video:
        assert video.info.frames == len(plain(path)) == FRAMES - 10
        assert numbers_in(video.frames([0, 5, 30])) == [10, 15, 40]
        assert video.timestamps[0] == 0


def test_a_stream_that_changes_its_size_keeps_the_first(folder: Path) -> None:
    one = write(folder / "one.h264", numbered(5), options=X264, container="h264")
    other = write(folder / "other.h264", numbered(5, (96, 128)), options=X264, container="h264")
    path = folder / "both.h264"
    path.write_bytes(one.read_bytes() + other.read_bytes())
    with Video(path) as video:
        assert video.info.frames == 10
        assert numbers_in(video.frames(range(10))) == [*range(5), *range(5)]


def test_each_frame_is_decoded_once(b_frames: Path) -> None:
    with Video(b_frames) as video:
        for start in range(0, FRAMES, 8):  # windows over a file: no window starts over
            video.frames(range(start, min(start + 8, FRAMES)))
        assert video.decoded == FRAMES


def test_repeats_are_decoded_once(b_frames: Path) -> None:
    with Video(b_frames) as video:
        assert numbers_in(video.frames([40] * 5 + [0, 20, 20])) == [40] * 5 + [0, 20, 20]
        assert video.decoded <= FRAMES


@pytest.mark.parametrize("kept", [packets.KEPT_BYTES, 0])
def test_seeks_to_the_key_frame_before_a_far_frame(
    folder: Path, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packets, "KEPT_BYTES", kept)
    path = write(folder / "far.mp4", numbered(60), options=X264 | {"bf": "0"})
    with Video(path) as video:
        opened = video.decoded
        assert numbers_in(video.frames([50])) == [50]
        assert video.decoded - opened <= 3  # 48 is a key frame
        assert numbers_in(video.frames([1])) == [1]


def test_frames_that_nobody_needs_are_not_decoded(folder: Path) -> None:
    options = X264 | {"g": "250", "x264-params": "b-adapt=0:b-pyramid=none:scenecut=0"}
    path = write(folder / "skip.mp4", numbered(), options=options)
    expected = plain(path)
    with Video(path) as video:
        asked = [0, 16, 32]
        assert np.array_equal(video.frames(asked).numpy(), expected[asked])
        assert video.decoded < FRAMES / 2
        asked = [33, 34, 35, 7]  # goes on, and goes back
        assert np.array_equal(video.frames(asked).numpy(), expected[asked])


@pytest.mark.parametrize("b_frames", [0, 3])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_rest_of_a_group_is_left(folder: Path, b_frames: int, threads: int) -> None:
    """Of key frames at 0, 12, 24, 36 and so on, some frames of some groups are wanted."""
    options = X264 | {"bf": str(b_frames), "x264-params": "scenecut=0"}
    path = write(folder / f"groups_{b_frames}.mp4", numbered(60), options=options)
    expected = plain(path)
    with Video(path, threads=threads) as video:
        for asked in ([1, 13, 37, 49], [0, 2, 12, 26, 59], [3, 11, 12, 47], [14]):
            before = video.decoded
            assert np.array_equal(video.frames(asked).numpy(), expected[asked]), asked
            if asked[0] == 1 and threads == 1 and not b_frames:
                assert video.decoded - before <= 8  # two of each group; one is there already


@pytest.mark.parametrize("name", ["b_frames.mp4", "guessed_times.avi"])
def test_threads_do_not_change_frames(folder: Path, name: str) -> None:
    path = write(folder / f"threads_{name}", numbered(), **FILES[name])
    expected = plain(path)
    with Video(path, threads=3) as video:
        for asked in ([30, 2], [3, 4, 5, 39], [0]):
            assert np.array_equal(video.frames(asked).numpy(), expected[asked])


@pytest.mark.parametrize("name", ["a:b.mp4", "100% of it.mp4", "für é.mp4", "-i.mp4", "x[1].mp4"])
def test_file_names(folder: Path, name: str) -> None:
    path = write(folder / "name.mp4", numbered(3), options=X264).rename(folder / name)
    with Video(path) as video:
        assert video.info.frames == 3


def test_colours_of_hd_follow_the_tag_of_the_stream(folder: Path) -> None:
    """A flat colour, encoded as BT.709: decoded with BT.601 green would be 20 levels off."""
    y, u, v = 133, 85, 63  # BT.709 for RGB (30, 180, 60), limited range
    frame = av.VideoFrame(64, 48, "yuv420p")
    for plane, value in zip(frame.planes, (y, u, v), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    path = folder / "hd.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.colorspace = 1
        stream.codec_context.color_range = 1
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    luma, blue, red = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    r, b = luma + 1.5748 * red, luma + 1.8556 * blue
    g = (luma - 0.2126 * r - 0.0722 * b) / 0.7152
    with Video(path) as video:
        got = video.frames([0])[0, 20, 30].numpy()
    assert got == pytest.approx(255 * np.array([r, g, b]), abs=2)


# Pictures


@pytest.mark.parametrize("name", ["p.png", "p.jpg", "p.webp"])
def test_a_picture_is_a_video_of_one_frame(tmp_path: Path, name: str) -> None:
    pixels = np.tile(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (20, 1, 3))
    Image.fromarray(pixels).save(tmp_path / name, quality=95)
    with Video(tmp_path / name) as video:
        assert (video.info.frames, video.info.fps) == (1, 1.0)
        assert (video.info.height, video.info.width) == (20, 60)
        frames = video.frames([0, 0])
    assert frames.shape == (2, 20, 60, 3)
    assert np.abs(frames[1].numpy().astype(int) - pixels).max() <= 6


def test_a_picture_is_turned_by_its_exif_tag(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(pixels).save(tmp_path / "p.png", exif=exif)
    with Video(tmp_path / "p.png") as video:
        assert np.array_equal(video.frames([0])[0].numpy(), np.rot90(pixels, -1))


def test_a_picture_of_16_bits(tmp_path: Path) -> None:
    grey = (np.arange(48, dtype=np.uint16) * 1300).reshape(6, 8)
    Image.fromarray(grey).save(tmp_path / "p.png")
    with Video(tmp_path / "p.png") as video:
        assert np.array_equal(video.frames([0])[0, :, :, 0].numpy(), grey >> 8)


def test_an_animated_picture_is_refused(tmp_path: Path) -> None:
    first, *rest = (Image.fromarray(frame) for frame in numbered(3))
    first.save(tmp_path / "p.webp", save_all=True, append_images=rest)
    with pytest.raises(DecodeError, match=r"animation.*convert it to \.mp4"):
        Video(tmp_path / "p.webp")


# What cannot be read


@pytest.mark.parametrize(
    ("name", "how", "readable"),
    [
        ("cut.mp4", {"options": X264, "mux": {"movflags": "faststart"}}, range(4, 35)),
        ("cut.mkv", {"options": X264}, range(4, 35)),
        ("cut.webm", {"codec": "libvpx-vp9", "options": VP}, range(4, 35)),
        ("cut.avi", {"codec": "mpeg4", "options": {"g": "12", "b": "900k"}}, range(4, 35)),
        ("cut_b.avi", {"codec": "mpeg4", "options": {"bf": "2", "b": "900k"}}, range(4, 35)),
    ],
)
def test_a_cut_off_file_says_how_much_can_be_read(
    folder: Path, name: str, how: dict[str, Any], readable: range
) -> None:
    path = write(folder / name, numbered(), **how)
    expected = plain(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    with Video(path) as video:
        assert video.info.frames == FRAMES == len(video.timestamps)
        with pytest.raises(DecodeError, match=rf"frame 40 .* of {FRAMES} could be read") as caught:
            video.frames([0, 40])
        count = int(caught.value.reason.split("only ")[1].split()[0])
        assert count in readable
        assert np.array_equal(video.frames(range(count)).numpy(), expected[:count])


def test_a_cut_off_file_without_its_index(b_frames: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(b_frames.read_bytes()[:-2000])
    with pytest.raises(DecodeError, match=r"cut off or damaged: its index is missing"):
        Video(path)


def test_damage_in_the_middle_spares_the_other_frames(folder: Path) -> None:
    path = write(folder / "hole.mkv", numbered(), options=X264 | {"bf": "0"})
    expected = plain(path)
    with av.open(str(path)) as container:
        at = [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    start, size = at[30]
    data[start + 12 : start + size] = bytes(size - 12)  # frame 30: zeros
    path.write_bytes(data)
    with Video(path) as video:
        assert video.info.frames == FRAMES
        asked = [0, 29, 36, 40]  # 36 is a key frame
        assert np.array_equal(video.frames(asked).numpy(), expected[asked])


def test_a_frame_that_is_lost_is_named(folder: Path) -> None:
    path = write(folder / "lost.mov", numbered(12), **FILES["mjpeg.mov"])
    expected = plain(path)
    with av.open(str(path)) as container:
        at = [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    data[at[5][0] : sum(at[5])] = bytes(at[5][1])
    path.write_bytes(data)
    with Video(path) as video:
        assert np.array_equal(video.frames([4, 6]).numpy(), expected[[4, 6]])
        with pytest.raises(DecodeError, match=r"frame 5 was wanted, .* damaged there"):
            video.frames([4, 5, 6])


NO_VIDEO = {
    "empty.mp4": (b"", "empty"),
    "text.mp4": (b"this is a text, and it is not short either\n" * 40, "no video"),
    "subtitles.mp4": (b"1\n00:00:00,000 --> 00:00:02,000\nhello\n\n" * 3, "no video stream"),
    "list.mp4": (b"ffconcat version 1.0\nfile 'other.mp4'\n", "list of other files"),
    "playlist.mp4": (b"#EXTM3U\n#EXTINF:9,\nhttp://localhost/x.ts\n", "list of other files"),
    "picture.jpg": (b"no picture", "cannot be read as a picture"),
}


@pytest.mark.parametrize("name", NO_VIDEO)
def test_what_is_no_video(tmp_path: Path, name: str) -> None:
    content, reason = NO_VIDEO[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DecodeError, match=reason) as caught:
        Video(tmp_path / name)
    assert caught.value.path == str(tmp_path / name)
    assert caught.value.path in str(caught.value)
    assert caught.value.reason in str(caught.value)


def test_sound_only(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 8000), np.float32), format="fltp", layout="mono"
        )
        sound.sample_rate = 8000
        out.mux(stream.encode(sound))
        out.mux(stream.encode(None))
    with pytest.raises(DecodeError, match=r"no video stream \(only: audio\)"):
        Video(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="no such file"):
        Video(tmp_path / "nothing.mp4")
    with pytest.raises(DecodeError, match="is a folder"):
        Video(tmp_path)


@pytest.mark.parametrize("index", [-1, FRAMES])
def test_a_frame_outside(b_frames: Path, index: int) -> None:
    with (
        Video(b_frames) as video,
        pytest.raises(DecodeError, match=rf"frame {index} .*it has {FRAMES} frames \(0 to 40\)"),
    ):
        video.frames([0, index])


def test_the_error_survives_the_way_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("a.mp4", "it is empty.")))
    assert (error.path, error.reason) == ("a.mp4", "it is empty.")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
def test_files_are_closed(b_frames: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video at all\n" * 20)
    before = len(os.listdir("/proc/self/fd"))
    held = []
    for _ in range(5):
        with Video(b_frames) as video:
            video.frames([30, 0])
        held.append(video)
        with pytest.raises(DecodeError) as caught:
            Video(tmp_path / "text.mp4")
        held.append(caught)
    assert len(os.listdir("/proc/self/fd")) == before


# Decoders


def test_available_decoders_name_a_version_or_a_reason() -> None:
    found = available_decoders()
    assert found["pyav"].startswith(av.__version__)
    assert found["torchcodec"][0].isdigit() or "pip install" in found["torchcodec"]


def test_an_unknown_decoder(b_frames: Path) -> None:
    with pytest.raises(TubeletError, match="'pyav' or 'torchcodec'"):
        Video(b_frames, decoder="decord")  # pyright: ignore[reportArgumentType]


@pytest.mark.skipif(
    not available_decoders()["torchcodec"].startswith("missing"), reason="torchcodec is installed"
)
def test_torchcodec_missing_says_how_to_get_it(b_frames: Path) -> None:
    with pytest.raises(TubeletError, match=r"torchcodec.*pip install"):
        Video(b_frames, decoder="torchcodec")


@pytest.mark.skipif(
    available_decoders()["torchcodec"].startswith("missing"), reason="torchcodec is not installed"
)
@pytest.mark.parametrize("name", [name for name in FILES if name != "refresh.mkv"])
def test_torchcodec_gives_the_same_frames(folder: Path, name: str) -> None:
    how = FILES[name]
    path = write(folder / f"tc_{name}", numbered(size=how.get("size", (HEIGHT, WIDTH))), **how)
    with Video(path) as ours, Video(path, decoder="torchcodec") as theirs:
        asked = [5, 0, 5, ours.info.frames - 1, 20]
        assert ours.info == theirs.info
        a, b = ours.frames(asked), theirs.frames(asked)
    if (
        "ten_bit" in name or "odd" in name
    ):  # two versions of FFmpeg may interpolate colour differently
        assert numbers_in(a) == numbers_in(b)
    else:
        assert torch.equal(a, b)
