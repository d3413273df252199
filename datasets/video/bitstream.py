"""What the bytes of a packet prove, codec by codec, without decoding it.

A file's packets are a plan of its frames only where each packet is one whole frame, and a decoder may start only where
nothing that follows refers to what was before. Containers claim both, and the claims can be false. The bytes of H.264,
HEVC, MPEG-1, MPEG-2, MPEG-4, VP8, VP9 and AV1 prove it in their first few bits.
Sources: ITU-T H.264 (7.3), H.265 (7.3), H.262 (6.2), ISO/IEC 14496-2 (6.2), RFC 6386 (9.1), the VP9 (6.2, annex B) and
AV1 (5.3) bitstream specifications.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from av.codec.context import CodecContext

MAX_UNITS = 1000  # NAL units or the like in one packet; what holds more proves nothing
NO_HEADERS: frozenset[bytes] = frozenset()


class Evidence(NamedTuple):
    """What one packet proves. Without evidence, a file is decoded from the start, which is always right."""

    is_frame: bool  # exactly one whole frame, which is shown
    is_hidden: bool = False  # a frame that is never shown, as VP8 has
    can_start: bool = False  # what is shown from here on refers to nothing before
    is_disposable: bool = False  # no other frame refers to it, unless one of a higher layer
    refers_ahead: bool = False  # it may refer to a frame that is shown after it
    layer: int = 0  # temporal layer, of HEVC
    headers: frozenset[bytes] = NO_HEADERS  # parameters that it gives to the decoder for the frames from here on


NO_EVIDENCE = Evidence(is_frame=False)


class Examiner(NamedTuple):
    """Reads the evidence of a stream's packets. headers: the parameters that stand outside of the packets."""

    read: Callable[[bytes, bool], Evidence]  # of a packet's bytes, and whether the container calls it a keyframe
    headers: frozenset[bytes] = NO_HEADERS

    def __call__(self, data: bytes, is_keyframe: bool) -> Evidence:
        try:
            return self.read(data, is_keyframe)
        except (IndexError, ValueError):  # the packet ends too early
            return NO_EVIDENCE


def examiner(codec: CodecContext) -> Examiner | None:
    """What reads the evidence of this stream's packets; None if its codec proves nothing."""
    extradata = bytes(codec.extradata or b"")
    name = codec.codec.canonical_name
    try:
        if name in {"h264", "hevc"}:
            return _nal_examiner(extradata, is_hevc=name == "hevc")
        if name in {"mpeg1video", "mpeg2video"}:
            return Examiner(_mpeg2)
        if name == "mpeg4":
            return Examiner(_mpeg4, frozenset(_mpeg4_headers(extradata)))
        if name == "av1":
            return Examiner(_av1, frozenset(_av1_headers(extradata[4:])))
    except (IndexError, ValueError):
        return None
    if name == "vp8":
        return Examiner(_vp8)
    if name == "vp9":
        return Examiner(_vp9)
    if name == "mjpeg":
        return Examiner(_mjpeg)
    return Examiner(lambda data, is_keyframe: Evidence(True, can_start=True)) if codec.codec.intra_only else None


def has_one_size(codec: CodecContext, headers: frozenset[bytes]) -> bool:
    """Whether these headers prove that all frames are of one size: they hold one sequence parameter set."""
    if codec.codec.canonical_name == "h264":
        return sum(unit[0] & 31 == H264_SPS for unit in headers) == 1
    if codec.codec.canonical_name == "hevc":
        return sum(unit[0] >> 1 & 63 == HEVC_SPS for unit in headers) == 1
    return False


class _Bits:
    """The bits of a header, from its first; Exp-Golomb numbers as H.264 has them."""

    def __init__(self, data: bytes) -> None:
        data = data.replace(b"\0\0\3", b"\0\0")  # the bytes that keep a header from looking like a start code
        self.value, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        self.left -= count
        if self.left < 0:
            raise ValueError("the header ends too early")
        return self.value >> self.left & (1 << count) - 1

    def unsigned(self) -> int:
        num_zeros = 0
        while not self.read(1):
            num_zeros += 1
        return (1 << num_zeros) - 1 + self.read(num_zeros)

    def signed(self) -> int:
        number = self.unsigned()
        return (number + 1) // 2 if number % 2 else -number // 2


# ---- H.264 and HEVC: NAL units ----

H264_SLICES, H264_IDR, H264_SEI, H264_SPS = {1, 2, 5}, 5, 6, 7
H264_HEADERS = {7, 8, 13, 15}
HEVC_SLICES, HEVC_STARTS, HEVC_SPS, HEVC_HEADERS = range(32), range(16, 22), 33, {32, 33, 34}
# of the slice types: after a first macroblock of 0 (one bit), P 1, B 010, I 011, P 00110, B 00111, I 0001000
B_SLICE = frozenset({*range(0b10100000, 0b10110000), *range(0b10011100, 0b10100000)})
I_SLICE = frozenset({*range(0b10110000, 0b11000000), 0b10001000})


class _SliceFormat(NamedTuple):
    """How the slices of an interlaced H.264 stream are read."""

    num_frame_bits: int
    has_colour_plane: bool


def _nal_examiner(extradata: bytes, *, is_hevc: bool) -> Examiner:
    if extradata[:1] == b"\1":  # as MP4 and Matroska keep it: each unit after its length
        length_size = (extradata[21 if is_hevc else 4] & 3) + 1
        units = _hevc_record(extradata) if is_hevc else _h264_record(extradata)
    else:
        length_size, units = 0, list(_units(extradata, 0))
    if is_hevc:
        headers = frozenset(unit.rstrip(b"\0") for unit in units if unit[0] >> 1 & 63 in HEVC_HEADERS)
        return Examiner(lambda data, is_keyframe: _hevc(data, length_size), headers)
    headers = frozenset(unit.rstrip(b"\0") for unit in units if unit[0] & 31 in H264_HEADERS)
    formats = {unit: _slice_format(unit) for unit in headers if unit[0] & 31 == H264_SPS}
    return Examiner(lambda data, is_keyframe: _h264(data, length_size, formats), headers)


def _h264_record(extradata: bytes) -> list[bytes]:
    units, at = [], 5
    for mask in (31, 255):  # sequence, then picture parameter sets
        count, at = extradata[at] & mask, at + 1
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2], "big")
            units.append(extradata[at + 2 : at + 2 + size])
            at += 2 + size
    return [unit for unit in units if unit]


def _hevc_record(extradata: bytes) -> list[bytes]:
    units, at = [], 23
    for _ in range(extradata[22]):
        count, at = int.from_bytes(extradata[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2], "big")
            units.append(extradata[at + 2 : at + 2 + size])
            at += 2 + size
    return [unit for unit in units if unit]


def _units(data: bytes, length_size: int) -> Iterator[bytes]:
    """The NAL units of a packet. length_size: bytes of the length before each; 0 where start codes separate them.

    Raises: ValueError if there are more than MAX_UNITS, or if one is empty or longer than the packet.
    """
    for start, end in islice(_ranges(data, length_size), MAX_UNITS + 1):
        if not start < end <= len(data):
            raise ValueError("a NAL unit is empty, or longer than its packet")
        yield data[start:end]


def _ranges(data: bytes, length_size: int) -> Iterator[tuple[int, int]]:
    if length_size:
        end = 0
        while end < len(data):
            start = end + length_size
            end = start + int.from_bytes(data[end:start], "big")
            yield start, end
        return
    starts = [at + 3 for at in _positions(data, b"\0\0\1")]
    yield from zip(starts, [*(start - 3 for start in starts[1:]), len(data)], strict=False)


def _slice_format(unit: bytes) -> _SliceFormat | None:
    """Of a sequence parameter set; None if all pictures are whole frames."""
    bits, profile = _Bits(unit[4:]), unit[1]
    bits.unsigned()
    has_colour_plane = False
    if profile in {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}:
        chroma = bits.unsigned()
        has_colour_plane = chroma == 3 and bits.read(1) == 1
        bits.unsigned(), bits.unsigned(), bits.read(1)
        if bits.read(1):
            for index in range(12 if chroma == 3 else 8):
                if bits.read(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    num_frame_bits = bits.unsigned() + 4
    order = bits.unsigned()
    if order == 0:
        bits.unsigned()
    elif order == 1:
        bits.read(1), bits.signed(), bits.signed()
        for _ in range(bits.unsigned()):
            bits.signed()
    bits.unsigned(), bits.read(1), bits.unsigned(), bits.unsigned()
    return None if bits.read(1) else _SliceFormat(num_frame_bits, has_colour_plane)


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


def _h264(data: bytes, length_size: int, formats: dict[bytes, _SliceFormat | None]) -> Evidence:
    num_frames, is_reference, is_idr, recovers, headers = 0, False, False, False, []
    picture = b"\0\0"  # its first slice
    for unit in _units(data, length_size):
        kind = unit[0] & 31
        if kind in H264_SLICES:
            is_reference |= unit[0] & 0x60 > 0
            is_idr |= kind == H264_IDR
            if unit[1] & 0x80:  # the picture's first macroblock
                num_frames += 1
                picture = unit
        elif kind == H264_SEI:
            recovers |= _recovers_at_once(unit)
        elif kind in H264_HEADERS:
            headers.append(unit.rstrip(b"\0"))
            if kind == H264_SPS:
                formats.setdefault(headers[-1], _slice_format(headers[-1]))
    return Evidence(
        is_frame=num_frames == 1 and _is_whole(picture, list(formats.values())),
        can_start=is_idr or (recovers and picture[1] in I_SLICE),
        is_disposable=not is_reference and not headers,
        refers_ahead=picture[1] in B_SLICE,
        headers=frozenset(headers) if headers else NO_HEADERS,
    )


def _is_whole(picture: bytes, formats: list[_SliceFormat | None]) -> bool:
    """Whether a picture's first slice is of a frame, not of one of two fields."""
    if not any(formats):
        return True
    if len(formats) > 1 or formats[0] is None:  # the picture parameters decide which holds
        return False
    bits = _Bits(picture[1:32])
    for _ in range(3):  # first macroblock, slice type, picture parameter set
        bits.unsigned()
    bits.read(2 * formats[0].has_colour_plane + formats[0].num_frame_bits)
    return bits.read(1) == 0


def _recovers_at_once(unit: bytes) -> bool:
    """Whether supplemental information promises exact pictures from this one on (a recovery point of 0 frames)."""
    at = 1
    while at + 2 < len(unit):
        kind, at = unit[at], at + 1
        size, at = unit[at], at + 1
        if kind == 255 or size == 255:  # none that matters is so long
            return False
        if kind == 6:
            return unit[at] >> 6 == 0b11
        at += size
    return False


def _hevc(data: bytes, length_size: int) -> Evidence:
    num_frames, kinds, layers, headers = 0, set(), set(), []
    for unit in _units(data, length_size):
        kind = unit[0] >> 1 & 63
        if unit[0] & 1 or unit[1] >> 3:  # another view, which is not decoded
            continue
        if kind in HEVC_SLICES:
            kinds.add(kind)
            layers.add(unit[1] & 7)
            num_frames += unit[2] >> 7
        elif kind in HEVC_HEADERS:
            headers.append(unit.rstrip(b"\0"))
    return Evidence(
        is_frame=num_frames == 1,
        can_start=bool(kinds) and all(kind in HEVC_STARTS for kind in kinds),
        is_disposable=bool(kinds) and not headers and all(kind < 16 and kind % 2 == 0 for kind in kinds),
        refers_ahead=not all(kind in HEVC_STARTS for kind in kinds),  # the slice type stands too deep
        layer=max(layers, default=0),
        headers=frozenset(headers) if headers else NO_HEADERS,
    )


# ---- MPEG-1, MPEG-2 and MPEG-4: start codes ----


def _mpeg2(data: bytes, is_keyframe: bool) -> Evidence:
    at = data.index(b"\0\0\1\0")
    kind = data[at + 5] >> 3 & 7  # I 1, P 2, B 3
    structures = []
    for picture in _positions(data, b"\0\0\1\0"):
        extension = data.find(b"\0\0\1\xb5", picture)  # of the picture, after its header
        if 0 <= extension < picture + 32 and data[extension + 4] >> 4 == 8:
            structures.append(data[extension + 6] & 3)  # top field 1, bottom field 2, frame 3
        else:
            structures.append(3)
    return Evidence(
        is_frame=structures == [3] or sorted(structures) == [1, 2],
        can_start=kind == 1 and data.find(b"\0\0\1\xb3", 0, at) >= 0,
        is_disposable=kind == 3,
        refers_ahead=kind == 3,
    )


def _mpeg4(data: bytes, is_keyframe: bool) -> Evidence:
    pictures = list(_positions(data, b"\0\0\1\xb6"))
    kind = data[pictures[0] + 4] >> 6 if pictures else 0  # I 0, P 1, B 2, sprite 3
    headers = frozenset(_mpeg4_headers(data[: pictures[0]] if pictures else data))
    return Evidence(
        is_frame=len(pictures) == 1,
        can_start=kind == 0,
        is_disposable=kind == 2 and not headers,
        refers_ahead=kind == 2,
        headers=headers,
    )


def _mpeg4_headers(data: bytes) -> Iterator[bytes]:
    """The video object layers, and the user data, by which decoders recognise encoders and their faults."""
    starts = list(_positions(data, b"\0\0\1"))
    for start, end in zip(starts, [*starts[1:], len(data)], strict=False):
        if 0x20 <= data[start + 3] < 0x30 or data[start + 3] == 0xB2:
            yield data[start:end].rstrip(b"\0")


def _positions(data: bytes, pattern: bytes) -> Iterator[int]:
    at, found = data.find(pattern), 0
    while at >= 0:
        found += 1
        if found > MAX_UNITS:
            raise ValueError("too many start codes")
        yield at
        at = data.find(pattern, at + len(pattern))


# ---- VP8, VP9, AV1 and Motion-JPEG ----


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
