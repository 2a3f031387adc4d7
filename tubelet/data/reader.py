"""Exact frames by number from one video file, through PyAV.

Where the index of the file can be relied on (`packets.py`), the decoder starts at a key frame
when that saves work, and skips frames that nobody refers to. Elsewhere (AVI with B-frames, raw
streams, broadcast files) frames are what the decoder puts out, in that order: counted by decoding
once, and read from the start.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from tubelet.data.info import DecodeError, VideoInfo, why_not_open
from tubelet.data.packets import NO_TIME, Index, counted, say, scan

# Codecs whose frames marked as non-reference are needed by no other frame at all. (In HEVC they
# may still serve a higher temporal layer.)
_SKIPPABLE = frozenset({"h264", "mpeg4", "mpeg1video", "mpeg2video"})
_SEEK_PAYS_PACKETS = 8  # a seek in the file costs about as much as decoding a few packets


class Reader:
    """Decodes one file; not for several threads at once. Frames are numbered as shown."""

    def __init__(self, path: str, threads: int = 1) -> None:
        self.path = path
        self.decoded = 0  # frames that came out of the decoder
        self._threads = threads
        self._error = ""
        self._end = 1 << 62  # the place after the last whole packet
        self._needed: frozenset[int] = frozenset()  # places whose frames are wanted
        self._until = 0  # the last of them
        self._leaps: dict[int, int] = {}  # place -> the key packet to go on at instead
        self._kept: list[Packet[Any]] = []  # all packets, where they are few enough
        self._reformatter = VideoReformatter()
        self._open()
        try:
            self._index = self._make_index()
            self._numbers = {pts: number for number, pts in enumerate(self._index.pts.tolist())}
            self._first = self._first_frame()
            self.info, self.timestamps = self._describe()
        except BaseException:
            self.close()
            raise

    @property
    def plain(self) -> bool:
        """Whether any exact decoder gives these frames: the file is whole, its packets tell the
        frames, and decoding may start at any key frame."""
        return self._index.closed and self._index.readable == self._index.frames

    def close(self) -> None:
        self._ready.clear()
        self._kept.clear()
        self._container.close()

    def read(self, wanted: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """wanted [U] ascending, no repeats -> out [U,H,W,3] filled with RGB."""

        def fill(row: int, frame: VideoFrame) -> None:
            out[row] = self._rgb(frame)

        self._take(wanted, fill)

    def raw(self, wanted: NDArray[np.int64]) -> list[VideoFrame]:
        """wanted [U] ascending, no repeats -> the frames as the decoder put them out."""
        frames: dict[int, VideoFrame] = {}
        self._take(wanted, frames.__setitem__)
        return [frames[row] for row in range(len(wanted))]

    def _take(self, wanted: NDArray[np.int64], take: Callable[[int, VideoFrame], None]) -> None:
        """Gives `take` each frame wanted, with its row."""
        index = self._index
        if wanted.size and wanted[-1] >= index.readable:
            raise DecodeError(self.path, self._why_missing(int(wanted[-1])))
        rows = {int(frame): row for row, frame in enumerate(wanted)}
        missing = self._collect(rows, take, careful=index.counted)
        if missing and not index.counted:
            # A stream that a seek or a skip has upset: every frame, from the start.
            self._goto(0)
            missing = self._collect(missing, take, careful=True)
        if missing:
            raise DecodeError(self.path, self._why_missing(min(missing)))

    def stream(self) -> Iterator[VideoFrame]:
        """Every frame in order, as the decoder puts it out: neither turned nor scaled.

        Raises `DecodeError` where one cannot be had, for a file that is cut off before the first.
        """
        index = self._index
        if index.readable < index.frames:
            raise DecodeError(self.path, self._why_missing(index.readable))
        if self._last >= 0:
            self._goto(0)
        self._until, self._leaps = 0, {}  # skip nothing
        for number in range(index.frames):
            frame = self._next(number)
            if frame is None:
                raise DecodeError(self.path, self._why_missing(number))
            yield frame

    @property
    def clock(self) -> tuple[NDArray[np.int64], Fraction]:
        """When each frame is shown, int64 [n] from 0, and the unit of that in seconds.

        Exact where the file says so; else evenly, by its frame rate.
        """
        pts, unit = self._index.pts, self._stream.time_base
        if unit and pts[0] != NO_TIME and (np.diff(pts) > 0).all():
            return pts - pts[0], unit
        rate = Fraction(self.info.fps).limit_denominator(1001)
        return np.arange(len(pts)), 1 / rate

    @property
    def pixel_shape(self) -> Fraction:
        """Width to height of a pixel, as stored; 1 where the file does not say."""
        return self._stream.sample_aspect_ratio or Fraction(1)

    @property
    def comment(self) -> str:
        """What whoever made the file wrote into it."""
        return self._container.metadata.get("comment", "")

    def _why_missing(self, frame: int) -> str:
        index = self._index
        if index.readable < index.frames:
            why = f"only {index.readable} of {index.frames} could be read: the file is cut off"
        else:
            why = "the decoder gave none for it: the file is damaged there"
        return f"frame {frame} was wanted, but {why}{self._error}."

    # Opening

    def _open(self) -> None:
        try:
            # "file:" keeps a colon in a name from being read as a protocol, and the whitelist
            # keeps a playlist in disguise from opening anything else.
            self._container: InputContainer = av.open(
                f"file:{self.path}", options={"protocol_whitelist": "file"}
            )
        except (FFmpegError, OSError) as error:
            raise DecodeError(self.path, why_not_open(self.path, error)) from error
        try:
            self._stream = self._choose()
        except DecodeError:
            self._container.close()
            raise
        context = self._stream.codec_context
        context.thread_count = self._threads
        context.thread_type = "AUTO" if self._threads > 1 else "SLICE"
        self._skips = False  # what the decoder was told last
        self._rewind()

    def _choose(self) -> VideoStream:
        """The main video stream; the cover picture of a sound file is none."""
        streams = [
            stream
            for stream in self._container.streams.video
            if not stream.disposition & Disposition.attached_pic
        ]
        if not streams:
            kinds = sorted({stream.type for stream in self._container.streams})
            raise DecodeError(self.path, f"it has no video stream (only: {', '.join(kinds)}).")
        best = self._container.streams.best("video")
        chosen = best if isinstance(best, VideoStream) and best in streams else streams[0]
        if chosen.codec_context is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise DecodeError(self.path, "PyAV has no decoder for its video codec.")
        return chosen

    def _rewind(self) -> None:
        """The state of a decoder that has been given nothing yet."""
        self._packets: Iterator[Packet[Any]] = self._container.demux(self._stream)
        self._ready: deque[tuple[int, VideoFrame]] = deque()  # put out, not yet looked at
        self._at = 0  # the place of the next packet
        self._begin = 0  # packets before this place are not decoded
        self._last = -1  # no frame up to this number will come any more
        self._count = 0  # frames put out

    def _reopen(self) -> None:
        self._container.close()
        self._open()

    def _make_index(self) -> Index:
        """The index; the reader is left at the start."""
        found = scan(self._container, self._stream)
        if found.error:
            self._error = f" ({found.error})"
        self._end = found.packets
        if not found.packets:
            raise DecodeError(self.path, f"its video stream is empty{self._error}.")
        if found.index is not None:
            self._kept = found.kept
            if not self._seek(found.index, 0):
                self._reopen()
            return found.index
        self._reopen()
        pts: list[int | None] = []
        while (frames := self._put_out()) is not None:
            pts += [frame.pts for frame in frames]
        reordered = bool(self._stream.codec_context.has_b_frames)
        self._reopen()
        return counted(pts, found.declared, reordered)

    def _first_frame(self) -> VideoFrame:
        """The first frame, left where the next `read` finds it."""
        while not self._ready and self._feed():
            pass
        if not self._ready:
            raise DecodeError(self.path, f"no frame of it could be decoded{self._error}.")
        return self._ready[0][1]

    def _describe(self) -> tuple[VideoInfo, NDArray[np.float64]]:
        """The facts, and when each frame is shown, in seconds after the first."""
        index, first, stream = self._index, self._first, self._stream
        times = index.seconds(float(stream.time_base or 0))
        measured = (len(times) - 1) / times[-1] if times[-1] > 0 else 0.0
        stated = float(stream.average_rate or stream.guessed_rate or 0)
        # The stated rate is free of the rounding of time stamps, but it may be wrong.
        agree = stated > 0 and (not measured or abs(measured / stated - 1) < 0.01)
        fps = stated if agree else measured or 1.0
        if not measured:
            times = np.arange(len(times)) / fps
        lost = times[-1] + np.arange(1, index.frames - len(times) + 1) / fps
        rotation = round(first.rotation / 90) * 90 % 360
        size = (first.height, first.width)
        height, width = size[::-1] if rotation % 180 else size
        info = VideoInfo(
            frames=index.frames,
            fps=fps,
            duration_seconds=index.frames / fps,
            height=height,
            width=width,
            codec=stream.codec_context.codec.canonical_name,
            pixel_format=first.format.name,
            rotation=rotation,
        )
        return info, np.concatenate([times, lost])

    # Decoding

    def _collect(
        self, rows: dict[int, int], take: Callable[[int, VideoFrame], None], *, careful: bool
    ) -> dict[int, int]:
        """Gives `take` the frames asked for, and returns those that did not come.

        Careful: no seeking ahead, no skipping.
        """
        places = [] if careful else self._index.packet[list(rows)].tolist()
        self._leaps = self._index.leaps(places)
        skippable = self._stream.codec_context.codec.canonical_name in _SKIPPABLE
        self._needed = frozenset(places)
        self._until = max(places, default=0) if skippable else 0
        missing: dict[int, int] = {}
        for wanted, row in rows.items():
            self._approach(wanted, careful)
            frame = self._next(wanted)
            if frame is None:
                missing[wanted] = row
            else:
                take(row, frame)
        return missing

    def _next(self, wanted: int) -> VideoFrame | None:
        """Decodes up to the frame `wanted`; None where a later one or the end comes first."""
        while True:
            while self._ready:
                number, frame = self._ready[0]
                if number > wanted:
                    return None
                self._ready.popleft()
                self._last = number
                if number == wanted:
                    return frame
            if not self._feed():
                return None

    def _approach(self, frame: int, careful: bool) -> None:
        """Goes back for a frame that is behind, and ahead by a seek where that pays."""
        key = 0 if self._index.counted or careful else self._index.key_for(frame)
        ahead = key > max(self._at, self._begin) + (0 if self._kept else _SEEK_PAYS_PACKETS)
        if frame <= self._last or ahead:
            self._goto(key)

    def _goto(self, place: int) -> None:
        """The next packet decoded will be the key packet at `place`."""
        index = self._index
        if index.counted or not self._seek(index, place):
            self._reopen()
        self._begin = place
        if place:
            pts = index.key_pts[np.searchsorted(index.keys, place)]
            self._last = int(np.searchsorted(index.pts, pts)) - 1

    def _seek(self, index: Index, place: int) -> bool:
        """Moves to a key packet at or before `place`; False where the file does not allow it."""
        if self._kept:
            self._stream.codec_context.flush_buffers()
            self._rewind()
            self._packets, self._at = iter(self._kept[place:]), place
            return True
        group = int(np.searchsorted(index.keys, place))
        try:
            self._container.seek(int(index.key_time[group]), stream=self._stream)
            self._rewind()
            first = next(self._packets, None)
        except FFmpegError:
            return False
        if first is None or first.pts is None or not first.size:
            return False
        found = np.flatnonzero(index.key_pts == first.pts)
        if not found.size or index.keys[found[0]] > place:
            return False
        self._at = int(index.keys[found[0]])
        self._packets = chain([first], self._packets)
        return True

    def _feed(self) -> bool:
        """Puts what the next packet gives on `_ready`; False at the end of the file."""
        frames = self._put_out()
        if frames is None:
            return False
        for frame in frames:
            number = self._number(frame)
            if number is not None:
                self._ready.append((number, frame))
        return True

    def _put_out(self) -> list[VideoFrame] | None:
        """Gives the decoder the next packet -> frames that come out (often none); None at the end.

        Before the place `_until`, packets that are not `_needed` are decoded only if frames refer
        to them. At the end of the file the decoder gives all that it still holds.
        """
        if self._at in self._leaps:
            return self._leap(self._leaps.pop(self._at))
        packet = self._next_packet()
        if packet is None:
            return None
        if packet.size:
            skip = self._at < self._until and self._at not in self._needed
            if skip != self._skips:
                self._stream.codec_context.skip_frame = "NONREF" if skip else "DEFAULT"
                self._skips = skip
            self._at += 1
        return self._decode(packet if packet.size else None)

    def _leap(self, key: int) -> list[VideoFrame]:
        """Leaves a group of which no later frame is wanted for a later key packet -> the frames that
        the decoder still held."""
        frames = self._decode(None)
        self._goto(key)
        return frames

    def _decode(self, packet: Packet[Any] | None) -> list[VideoFrame]:
        try:
            frames = self._stream.codec_context.decode(packet)
        except FFmpegError as error:
            self._error = f" ({say(error)})"
            return []
        self.decoded += len(frames)
        return frames

    def _next_packet(self) -> Packet[Any] | None:
        """The next packet to decode; an empty one at the end of the file, then None."""
        try:
            packet = next(self._packets, None)
            while packet is not None and packet.size and self._at < self._begin:
                self._at += 1
                packet = next(self._packets, None)
        except FFmpegError as error:
            self._error = f" ({say(error)})"
        else:
            if packet is None or not packet.size or self._at < self._end:
                return packet
        self._packets = iter(())
        return Packet()

    def _number(self, frame: VideoFrame) -> int | None:
        """Which frame of the file it is; None for one that the index does not know."""
        if self._index.counted:
            self._count += 1
            return self._count - 1
        return None if frame.pts is None else self._numbers.get(frame.pts)

    def _rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """uint8 [H,W,3] as shown; a stream that changes its size is scaled to the first frame's."""
        rgb = self._reformatter.reformat(
            frame, self._first.width, self._first.height, format="rgb24", threads=1
        )
        return np.rot90(cast(NDArray[np.uint8], rgb.to_ndarray()), self.info.rotation // 90)
