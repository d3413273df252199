"""The evidence in the packets of HEVC. Source: ITU-T H.265 (7.3, 7.4, 8.3.1)."""

from __future__ import annotations

from typing import NamedTuple

from diveparse.datasets.video.evidence import NO_HEADERS, Evidence
from diveparse.datasets.video.nal_units import SLICE_HEADER_BYTES, Bits, PictureOrder, nal_units, sized_units

SLICES, STARTS, CLOSED_STARTS, IDR = range(32), range(16, 22), range(16, 21), {19, 20}  # types of NAL units
LEADING, SEQUENCE, PICTURE, ENDS = range(6, 10), 33, 34, {36, 37}
HEADERS = {32, SEQUENCE, PICTURE}


class Sequence(NamedTuple):
    """What a sequence parameter set tells about slice headers."""

    has_colour_planes: bool
    num_order_bits: int


class Picture(NamedTuple):
    """What a picture parameter set tells about slice headers."""

    sequence: int
    has_output_flag: bool
    num_extra_bits: int


class HevcExaminer:
    def __init__(self, extradata: bytes) -> None:
        self._sequences: dict[int, Sequence] = {}
        self._pictures: dict[int, Picture] = {}
        self._order = PictureOrder()
        units: list[bytes] = []
        if extradata[:1] == b"\1":  # as MP4 and Matroska keep it
            self._length_size, at = (extradata[21] & 3) + 1, 23
            for _ in range(extradata[22]):
                found, at = sized_units(extradata, at + 3, int.from_bytes(extradata[at + 1 : at + 3], "big"))
                units += found
        else:
            self._length_size = 0
            units = [extradata[start:end] for start, end in nal_units(extradata, 0)]
        headers = [unit for unit in units if _kind(unit) in HEADERS]
        self.headers = frozenset(self._learn(unit) for unit in sorted(headers, key=_kind))

    @property
    def has_one_size(self) -> bool:
        return len(self._sequences) == 1

    def read(self, data: bytes, is_keyframe: bool) -> Evidence:
        num_frames, kind, layer, first, headers = 0, -1, 0, b"", []
        for start, end in nal_units(data, self._length_size):
            unit = data[start:end]
            if unit[0] & 1 or unit[1] >> 3:  # of another view, which is not decoded
                continue
            if _kind(unit) in SLICES:
                if unit[2] & 0x80:  # the first of a picture
                    num_frames += 1
                    kind, layer, first = _kind(unit), unit[1] & 7, unit[:SLICE_HEADER_BYTES]
            elif _kind(unit) in HEADERS:
                headers.append(self._learn(unit))
            elif _kind(unit) in ENDS:
                raise ValueError("what follows the end of a sequence is decoded in another way")
        is_reference = kind >= 16 or kind % 2 == 1
        is_shown, rank = self._slice(first, kind, counts=layer == 1 and is_reference and kind not in LEADING)
        return Evidence(
            is_frame=num_frames == 1 and is_shown,
            is_hidden=not is_shown,
            can_start=kind in STARTS,
            is_disposable=not is_reference and not headers,
            rank=rank,
            layer=layer,
            headers=frozenset(headers) if headers else NO_HEADERS,
        )

    def _slice(self, unit: bytes, kind: int, *, counts: bool) -> tuple[bool, tuple[int, int]]:
        """(whether the picture is shown, its rank). counts: whether later pictures count their order from it."""
        bits = Bits(unit[2:])
        bits.read(2 if 16 <= kind < 24 else 1)
        picture = self._pictures[bits.unsigned()]
        sequence = self._sequences[picture.sequence]
        bits.read(picture.num_extra_bits)
        bits.unsigned()
        is_shown = not picture.has_output_flag or bits.read(1) == 1
        bits.read(2 * sequence.has_colour_planes)
        if kind in CLOSED_STARTS:
            self._order.begin()
        order = 0 if kind in IDR else bits.read(sequence.num_order_bits)
        return is_shown, self._order.rank(order, sequence.num_order_bits, is_reference=counts)

    def _learn(self, unit: bytes) -> bytes:
        """Read a parameter set. Returns: it, without what only fills it up."""
        if _kind(unit) == SEQUENCE:
            number, sequence = _sequence(unit)
            self._sequences[number] = sequence
        elif _kind(unit) == PICTURE:
            bits = Bits(unit[2:20])
            number, sequence_number = bits.unsigned(), bits.unsigned()
            bits.read(1)
            self._pictures[number] = Picture(sequence_number, bits.read(1) == 1, bits.read(3))
        return unit.rstrip(b"\0")


def _kind(unit: bytes) -> int:
    return unit[0] >> 1 & 63


def _sequence(unit: bytes) -> tuple[int, Sequence]:
    """(number, contents) of a sequence parameter set."""
    bits = Bits(unit[2:])
    bits.read(4)
    num_more_layers = bits.read(3)
    bits.read(1 + 96)  # the profile and the level
    present = [(bits.read(1), bits.read(1)) for _ in range(num_more_layers)]
    bits.read(2 * (8 - num_more_layers) if num_more_layers else 0)
    for has_profile, has_level in present:
        bits.read(88 * has_profile + 8 * has_level)
    number, chroma = bits.unsigned(), bits.unsigned()
    has_colour_planes = chroma == 3 and bits.read(1) == 1
    bits.unsigned(), bits.unsigned()
    if bits.read(1):  # a window
        for _ in range(4):
            bits.unsigned()
    bits.unsigned(), bits.unsigned()
    return number, Sequence(has_colour_planes, bits.unsigned() + 4)
