"""The index of a video file: which packet holds which frame, told by the packets alone.

Reading packets costs a millisecond where decoding costs a hundred. It tells the frames exactly
where the container stores when each is shown; `index` returns None where that cannot be relied
on, and then frames have to be counted as the decoder puts them out.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray

Int64s = NDArray[np.int64]
NO_TIME = int(np.iinfo(np.int64).min)

# Containers that store the presentation time of every frame.
_STORE_TIMES = frozenset({"mov", "mp4", "matroska", "webm", "flv"})
# Codecs where one packet is one frame and decoding may start at any key packet. For others (GIF
# paints over what was there, VC-1 splits fields) frames are counted.
_ONE_TO_ONE = frozenset(
    {"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg1video", "mpeg2video", "h263", "flv1"}
    | {"mjpeg", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2", "theora", "rawvideo", "prores"}
    | {"dnxhd", "ffv1", "ffvhuff", "huffyuv"}
)
# Codecs that nearly always store frames in another order than they are shown.
_REORDER = frozenset({"h264", "hevc", "av1"})
KEPT_BYTES = 16 << 20  # of a file's packets, so that none is read twice
_REORDERED_FRAMES = 4  # how far encoders move a frame, by far most of them


@dataclass(frozen=True)
class Index:
    """Which packet holds which frame. "Place" is a packet's number in the file."""

    frames: int  # as the file declares, where it is cut off; else as many as can be read
    readable: int
    pts: Int64s  # [readable] in the stream's time base; ascending unless counted
    packet: Int64s  # [readable] the place of each frame's packet; empty when counted
    keys: Int64s  # [G] places of the key packets, ascending
    key_pts: Int64s  # [G]
    key_time: Int64s  # [G] the time to seek to
    counted: bool = False  # frames are numbered as they come out of the decoder

    @property
    def closed(self) -> bool:
        """Whether each group of frames can be decoded without the group before."""
        group = np.searchsorted(self.keys, self.packet, "right") - 1
        return not self.counted and bool((self.key_pts[group] <= self.pts).all())

    def seconds(self, time_base: float) -> NDArray[np.float64]:
        """When each frame is shown after the first; all 0 where the file does not say."""
        if self.pts.min() == NO_TIME or (np.diff(self.pts) <= 0).any():
            return np.zeros(len(self.pts))
        return (self.pts - self.pts[0]) * time_base

    def key_for(self, frame: int) -> int:
        """The place of the key packet from which decoding gives this frame."""
        group = bisect_right(self.keys, self.packet[frame]) - 1
        # Frames shown before a key frame but stored after it lean on the group before (open GOP).
        while group > 0 and self.key_pts[group] > self.pts[frame]:
            group -= 1
        return int(self.keys[group])

    def leaps(self, places: list[int]) -> dict[int, int]:
        """The place after the last of some wanted packets in a group -> the key packet of the next
        group with such a packet. None where a group may need the group before."""
        if not places or not self.closed:
            return {}
        wanted = np.sort(places)
        group = np.searchsorted(self.keys, wanted, "right") - 1
        ends = np.flatnonzero(np.diff(group))
        after, key = wanted[ends] + 1, self.keys[group[ends + 1]]
        return {int(a): int(k) for a, k in zip(after, key, strict=True) if a < k}


@dataclass(frozen=True)
class Scan:
    """What reading all packets of a stream told."""

    index: Index | None  # None: frames must be counted
    declared: int  # packets that the file says it has, where it is cut off; else 0
    packets: int  # whole ones: the last of a file that is cut off is not
    error: str  # FFmpeg's, at the end of what could be read
    kept: list[Packet[Any]]  # all, and the empty one at the end; none where they are too large


def counted(pts: list[int | None], declared: int, reordered: bool) -> Index:
    """The index of frames in the order in which the decoder put them out."""
    none = np.zeros(0, np.int64)
    times = np.array([NO_TIME if t is None else t for t in pts], dtype=np.int64)
    frames = max(len(pts), declared)
    if declared and reordered:
        # Where the file is cut off, a frame may have come out in the place of one that is lost.
        times = times[: max(1, len(times) - _REORDERED_FRAMES)]
    return Index(frames, len(times), times, none, none, none, none, counted=True)


def scan(container: InputContainer, stream: VideoStream) -> Scan:
    """Reads all packets of the stream, and decodes none."""
    rows: list[tuple[int, int, bool, bool, bool]] = []
    vp8 = stream.codec_context.codec.canonical_name == "vp8"
    kept: list[Packet[Any]] = []
    error, room = "", KEPT_BYTES
    try:
        for packet in container.demux(stream):
            size, pts, dts = packet.size, packet.pts, packet.dts
            if (room := room - size) >= 0:
                kept.append(packet)
            if size:
                # VP8 says in its first byte that a frame is never shown.
                shown = not packet.is_discard and not (vp8 and not memoryview(packet)[0] & 0x10)
                pts, dts = NO_TIME if pts is None else pts, NO_TIME if dts is None else dts
                rows.append((pts, dts, packet.is_keyframe, shown, packet.is_corrupt))
    except FFmpegError as reason:
        error = say(reason)
    whole = not rows or not rows[-1][4]
    table = np.array(rows if whole else rows[:-1], dtype=np.int64).reshape(-1, 5)
    declared = _declared(container, stream, len(table), whole)
    index = _index(table, declared) if _trusted(table, container, stream) else None
    return Scan(index, declared, len(table), error, [] if error or room < 0 else kept)


def _declared(container: InputContainer, stream: VideoStream, packets: int, whole: bool) -> int:
    """How many packets a file that is cut off should have; 0 for one that is whole."""
    if "mov" in container.format.name:
        # Not `stream.frames`: an edit list may leave samples out on purpose.
        entries = len(stream.index_entries)
        return entries if entries > packets else 0
    if whole and not _cut_off(container.name.removeprefix("file:")):
        return 0
    timed = (container.duration or 0) / av.time_base * float(stream.average_rate or 0)
    declared = max(stream.frames, round(timed), packets + (not whole))
    return declared if declared > packets else 0


def _cut_off(path: str) -> bool:
    """Whether an AVI or Matroska file is shorter than its own first bytes say."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(4096)
    if head[:4] == b"RIFF":
        return int.from_bytes(head[4:8], "little") + 8 > size
    segment = head.find(b"\x18\x53\x80\x67") if head[:4] == b"\x1a\x45\xdf\xa3" else -1
    if segment < 0 or segment + 12 > len(head):
        return False
    # A length of 1 to 8 bytes: leading zero bits say how many more follow; all ones is unknown.
    at = segment + 4
    count = 9 - head[at].bit_length()
    bits = 7 * count
    length = int.from_bytes(head[at : at + count], "big") & ((1 << bits) - 1)
    return length != (1 << bits) - 1 and at + count + length > size


def _trusted(table: Int64s, container: InputContainer, stream: VideoStream) -> bool:
    """Whether packets alone tell the frames and their order."""
    pts, _, key, _, corrupt = table.T
    context = stream.codec_context
    codec = context.codec.canonical_name
    return bool(
        codec in _ONE_TO_ONE
        and len(table)
        and pts.min() != NO_TIME
        and not corrupt.any()
        # Packets before the first key frame, or shown before it, may decode to nothing.
        and key[0]
        and pts[0] == pts.min()
        and len(np.unique(pts)) == len(pts)
        and (
            _STORE_TIMES & set(container.format.name.split(","))
            # Elsewhere times are guessed, which is right where frames are never reordered.
            or (codec not in _REORDER and not context.has_b_frames and (np.diff(pts) > 0).all())
        )
    )


def _index(table: Int64s, declared: int) -> Index:
    """The index that the packets [n, (pts, dts, key, shown, corrupt)] tell."""
    pts, dts, key, shown, _ = table.T
    packet = np.flatnonzero(shown)
    packet = packet[np.argsort(pts[packet])]
    frames = readable = len(packet)
    if declared:
        # Of a file that is cut off, frames shown after the last decoding time may come behind
        # frames that are lost.
        frames += declared - len(table)
        readable = int((pts[packet] <= max(dts[-1], pts[0])).sum())
    keys = np.flatnonzero(key)
    time = np.where(dts == NO_TIME, pts, np.minimum(pts, dts))[keys]
    shown_pts, packet = pts[packet][:readable], packet[:readable]
    return Index(frames, readable, shown_pts, packet, keys, pts[keys], time)


def say(error: Exception) -> str:
    """FFmpeg's words for what went wrong, without its error number."""
    return getattr(error, "strerror", None) or str(error)
