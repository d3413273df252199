"""The evidence in the packets of the other codecs: MPEG-1, MPEG-2, MPEG-4, VP8, VP9, AV1 and Motion-JPEG.

Sources: ITU-T H.262 (6.2), ISO/IEC 14496-2 (6.2), RFC 6386 (9.1), the bitstream specifications of VP9 (6.2, annex B)
and AV1 (5.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from av.codec.context import CodecContext

from diveparse.datasets.video.evidence import MAX_UNITS, NO_HEADERS, Evidence, Examiner, positions
from diveparse.datasets.video.h264 import H264Examiner
from diveparse.datasets.video.hevc import HevcExaminer

# Codecs of single pictures whose decoders in FFmpeg copy each packet over the last one. Where a packet is cut, what the
# last one left there shows in the picture, so that it depends on which one that was.
KEPT_BUFFER = frozenset({"asv1", "asv2", "ffvhuff", "huffyuv"})


def examiner(codec: CodecContext) -> Examiner | None:
    """What reads the evidence of this stream's packets; None if its codec proves nothing."""
    extradata, name = bytes(codec.extradata or b""), codec.codec.canonical_name
    try:
        if name == "h264":
            return H264Examiner(extradata)
        if name == "hevc":
            return HevcExaminer(extradata)
        if name in {"mpeg1video", "mpeg2video"}:
            return MpegExaminer(_mpeg2)
        if name == "mpeg4":
            return MpegExaminer(_mpeg4, frozenset(_mpeg4_headers(extradata)))
        if name == "av1":
            return PlainExaminer(_av1, frozenset(_av1_headers(extradata[4:])))
    except (IndexError, KeyError, ValueError):
        return None
    reads = {"vp8": _vp8, "vp9": _vp9, "mjpeg": _mjpeg}
    if name in reads:
        return PlainExaminer(reads[name])
    return PlainExaminer(_intra) if codec.codec.intra_only and name not in KEPT_BUFFER else None


class PlainExaminer:
    """Of a codec whose packets are shown as they are decoded, and each of which can be understood alone."""

    has_one_size = False

    def __init__(self, read: Callable[[bytes, bool], Evidence], headers: frozenset[bytes] = NO_HEADERS) -> None:
        self.read, self.headers = read, headers


class MpegExaminer:
    """Of MPEG-1, 2 and 4: a frame that no other refers to (B) is shown at once, any other when the next such one comes.

    Where the headers change, a decoder may lose the frame that it holds back: nothing is proven from there on.
    read_one: (evidence, whether it is a B-frame) of a packet.
    """

    has_one_size = False

    def __init__(
        self, read_one: Callable[[bytes], tuple[Evidence, bool]], headers: frozenset[bytes] = NO_HEADERS
    ) -> None:
        self._read_one, self.headers = read_one, headers
        self._num_references, self._num_since = 0, 0
        self._first_headers: frozenset[bytes] | None = None

    def read(self, data: bytes, is_keyframe: bool) -> Evidence:
        evidence, is_b = self._read_one(data)
        if self._first_headers is None:
            self._first_headers = self.headers | evidence.headers
        elif not evidence.headers <= self._first_headers:
            evidence = evidence._replace(is_frame=False)
        if is_b:
            self._num_since += 1
            return evidence._replace(rank=(self._num_references - 1, self._num_since))
        self._num_references, self._num_since = self._num_references + 1, 0
        return evidence._replace(rank=(self._num_references, 0))


def _mpeg2(data: bytes) -> tuple[Evidence, bool]:
    at = data.index(b"\0\0\1\0")
    kind = data[at + 5] >> 3 & 7  # I 1, P 2, B 3
    structures = []
    for picture in positions(data, b"\0\0\1\0"):
        extension = data.find(b"\0\0\1\xb5", picture)  # of the picture, after its header
        if 0 <= extension < picture + 32 and data[extension + 4] >> 4 == 8:
            structures.append(data[extension + 6] & 3)  # top field 1, bottom field 2, frame 3
        else:
            structures.append(3)
    sequence = data.find(b"\0\0\1\xb3", 0, at)
    evidence = Evidence(
        is_frame=structures == [3] or sorted(structures) == [1, 2],
        can_start=kind == 1 and sequence >= 0,
        is_disposable=kind == 3,
        headers=frozenset([data[sequence + 4 : sequence + 8]]) if sequence >= 0 else NO_HEADERS,  # sizes and rate
    )
    return evidence, kind == 3


def _mpeg4(data: bytes) -> tuple[Evidence, bool]:
    pictures = list(positions(data, b"\0\0\1\xb6"))
    kind = data[pictures[0] + 4] >> 6  # I 0, P 1, B 2, sprite 3
    headers = frozenset(_mpeg4_headers(data[: pictures[0]]))
    evidence = Evidence(
        is_frame=len(pictures) == 1,
        can_start=kind == 0,
        is_disposable=kind == 2 and not headers,
        headers=headers,
    )
    return evidence, kind == 2


def _mpeg4_headers(data: bytes) -> Iterator[bytes]:
    """The video object layers, and the user data, by which decoders recognise encoders and their faults."""
    starts = list(positions(data, b"\0\0\1"))
    for start, end in zip(starts, [*starts[1:], len(data)], strict=False):
        if 0x20 <= data[start + 3] < 0x30 or data[start + 3] == 0xB2:
            yield data[start:end].rstrip(b"\0")


def _vp8(data: bytes, is_keyframe: bool) -> Evidence:
    is_shown = data[0] & 16 > 0
    return Evidence(is_frame=is_shown, is_hidden=not is_shown, can_start=data[0] & 1 == 0 and is_shown)


def _vp9(data: bytes, is_keyframe: bool) -> Evidence:
    frames = list(islice(_vp9_frames(data), 8))
    shown = [_vp9_is_shown(frame[0]) for frame in frames]
    is_key = _vp9_is_key(frames[0][0])
    return Evidence(is_frame=sum(shown) == 1, is_hidden=not any(shown), can_start=is_key and shown == [True])


def _vp9_frames(data: bytes) -> Iterator[bytes]:
    """The frames of a packet, of which it can hold several, with an index at its end."""
    marker = data[-1]
    count, size = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = len(data) - 2 - count * size
    if marker & 0xE0 != 0xC0 or index < 0 or data[index] != marker:
        yield data
        return
    at = 0
    for number in range(count):
        entry = index + 1 + number * size
        num_bytes = int.from_bytes(data[entry : entry + size], "little")
        if num_bytes:
            yield data[at : at + num_bytes]
        at += num_bytes


def _vp9_flags(byte: int) -> int:
    """From "show an existing frame" on, in the highest bits."""
    return byte << (5 if byte & 0x30 == 0x30 else 4) & 0xFF


def _vp9_is_shown(byte: int) -> bool:
    flags = _vp9_flags(byte)
    return flags & 0x80 > 0 or flags & 0x20 > 0


def _vp9_is_key(byte: int) -> bool:
    return _vp9_flags(byte) & 0xC0 == 0


def _av1(data: bytes, is_keyframe: bool) -> Evidence:
    # by definition, a temporal unit shows exactly one frame
    headers = frozenset(_av1_headers(data))
    return Evidence(is_frame=True, can_start=is_keyframe, headers=headers)


def _av1_headers(data: bytes) -> Iterator[bytes]:
    """The sequence headers among the open bitstream units."""
    at = 0
    for _ in range(MAX_UNITS):
        if at >= len(data):
            return
        first, start = data[at], at + 1 + (data[at] >> 2 & 1)
        if not first & 2:  # without a size, it is the last
            size = len(data) - start
        else:
            size = 0
            for number in range(8):
                byte, start = data[start], start + 1
                size |= (byte & 127) << 7 * number
                if byte < 128:
                    break
        if first >> 3 & 15 == 1:
            yield data[start : start + size]
        at = start + size
    raise ValueError("too many units")


def _mjpeg(data: bytes, is_keyframe: bool) -> Evidence:
    # a picture without tables is decoded by those of an earlier one
    return Evidence(True, can_start=True, headers=frozenset(t for t in (b"\xff\xc4", b"\xff\xdb") if t in data))


def _intra(data: bytes, is_keyframe: bool) -> Evidence:
    return Evidence(is_frame=True, can_start=True)
