"""The evidence in the packets of H.264 and HEVC, which are made of NAL units.

Sources: ITU-T H.264 (7.3) and H.265 (7.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from diveparse.datasets.video.evidence import MAX_UNITS, NO_HEADERS, Evidence, Examiner, positions

H264_SLICES, H264_IDR, H264_SEI, H264_SPS = {1, 2, 5}, 5, 6, 7
H264_HEADERS = {7, 8, 13, 15}
HEVC_SLICES, HEVC_STARTS, HEVC_SPS, HEVC_HEADERS = range(32), range(16, 22), 33, {32, 33, 34}
# of the slice types: after a first macroblock of 0 (one bit), P 1, B 010, I 011, P 00110, B 00111, I 0001000
B_SLICE = frozenset({*range(0b10100000, 0b10110000), *range(0b10011100, 0b10100000)})
I_SLICE = frozenset({*range(0b10110000, 0b11000000), 0b10001000})


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


class _SliceFormat(NamedTuple):
    """How the slices of an interlaced H.264 stream are read."""

    num_frame_bits: int
    has_colour_plane: bool


def nal_examiner(extradata: bytes, *, is_hevc: bool) -> Examiner:
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
    starts = [at + 3 for at in positions(data, b"\0\0\1")]
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
