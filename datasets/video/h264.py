"""The evidence in the packets of H.264. Source: ITU-T H.264 (7.3, 7.4, annex D)."""

from __future__ import annotations

from typing import NamedTuple

from diveparse.datasets.video.evidence import NO_HEADERS, Evidence
from diveparse.datasets.video.nal_units import SLICE_HEADER_BYTES, Bits, PictureOrder, nal_units, sized_units

SLICES, IDR, SEI, SEQUENCE, PICTURE = {1, 2, 5}, 5, 6, 7, 8  # types of NAL units
HEADERS = {SEQUENCE, PICTURE, 13, 15}
PROFILES_WITH_CHROMA = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
RECOVERY_POINT = 6  # of the types of supplemental information
I_SLICE = 2


class Sequence(NamedTuple):
    """What a sequence parameter set tells about slice headers."""

    has_colour_planes: bool
    num_number_bits: int  # of the frame number
    order_type: int
    num_order_bits: int  # of the picture order count, of type 0
    is_frames_only: bool  # no fields


class Slice(NamedTuple):
    """The first slice of a picture."""

    kind: int
    sequence: Sequence
    number: int  # of the frame, which counts the references
    is_field: bool
    order: int  # the lowest bits of the picture order count, of type 0


class H264Examiner:
    def __init__(self, extradata: bytes) -> None:
        self._sequences: dict[int, Sequence] = {}
        self._sequence_of: dict[int, int] = {}  # of each picture parameter set
        self._order = PictureOrder()
        self._last_number: int | None = None
        self._num_pictures = 0
        if extradata[:1] == b"\1":  # as MP4 and Matroska keep it
            self._length_size = (extradata[4] & 3) + 1
            sequences, at = sized_units(extradata, 6, extradata[5] & 31)
            pictures, _ = sized_units(extradata, at + 1, extradata[at])
            units = [*sequences, *pictures]
        else:
            self._length_size = 0
            units = [extradata[start:end] for start, end in nal_units(extradata, 0)]
        self.headers = frozenset(self._learn(unit) for unit in units if unit[0] & 31 in HEADERS)

    @property
    def has_one_size(self) -> bool:
        return len(self._sequences) == 1

    def read(self, data: bytes, is_keyframe: bool) -> Evidence:
        num_frames, is_reference, is_idr, recovers, headers = 0, False, False, False, NO_HEADERS
        first = b""
        for start, end in nal_units(data, self._length_size):
            kind = data[start] & 31
            if kind in SLICES:
                is_reference = is_reference or data[start] & 0x60 > 0
                is_idr = is_idr or kind == IDR
                if data[start + 1] & 0x80:  # begins at macroblock 0
                    num_frames += 1
                    first = first or data[start + 1 : start + SLICE_HEADER_BYTES]
            elif kind == SEI:
                recovers = recovers or _recovers_at_once(data[start:end])
            elif kind in HEADERS:
                headers |= {self._learn(data[start:end])}
        picture = self._slice(first, is_idr=is_idr)
        is_frame = num_frames == 1 and not picture.is_field
        can_start = is_idr or (recovers and picture.kind == I_SLICE)
        follows = self._follows(picture, is_idr=is_idr, is_reference=is_reference)
        rank = self._rank(picture, is_idr=is_idr, is_reference=is_reference)
        return Evidence(is_frame, False, can_start, not is_reference and not headers, follows, rank, 0, headers)

    def _follows(self, picture: Slice, *, is_idr: bool, is_reference: bool) -> bool:
        last, full = self._last_number, 1 << picture.sequence.num_number_bits
        if is_reference or is_idr:
            self._last_number = picture.number
        return is_idr or last is None or picture.number == (last + 1) % full or picture.is_field

    def _rank(self, picture: Slice, *, is_idr: bool, is_reference: bool) -> tuple[int, int] | None:
        self._num_pictures += 1
        if is_idr:
            self._order.begin()
        if picture.sequence.order_type == 0:
            return self._order.rank(picture.order, picture.sequence.num_order_bits, is_reference=is_reference)
        return (self._num_pictures, 0) if picture.sequence.order_type == 2 else None  # 2: as they are decoded

    def _slice(self, unit: bytes, *, is_idr: bool) -> Slice:
        bits = Bits(unit)
        bits.read(1)  # the first macroblock, 0
        kind = bits.unsigned() % 5
        sequence = self._sequences[self._sequence_of[bits.unsigned()]]
        if sequence.has_colour_planes:
            bits.read(2)
        number = bits.read(sequence.num_number_bits)
        is_field = not sequence.is_frames_only and bits.read(1) == 1
        if is_field:
            bits.read(1)  # which of the two
        if is_idr:
            bits.unsigned()
        order = bits.read(sequence.num_order_bits) if sequence.order_type == 0 else 0
        return Slice(kind, sequence, number, is_field, order)

    def _learn(self, unit: bytes) -> bytes:
        """Read a parameter set. Returns: it, without what only fills it up."""
        if unit[0] & 31 == SEQUENCE:
            number, sequence = _sequence(unit)
            self._sequences[number] = sequence
        elif unit[0] & 31 == PICTURE:
            bits = Bits(unit[1:20])
            number = bits.unsigned()
            self._sequence_of[number] = bits.unsigned()
        return unit.rstrip(b"\0")


def _sequence(unit: bytes) -> tuple[int, Sequence]:
    """(number, contents) of a sequence parameter set."""
    bits, profile = Bits(unit[4:]), unit[1]
    number, has_colour_planes = bits.unsigned(), False
    if profile in PROFILES_WITH_CHROMA:
        chroma = bits.unsigned()
        has_colour_planes = chroma == 3 and bits.read(1) == 1
        bits.unsigned(), bits.unsigned(), bits.read(1)
        if bits.read(1):
            for index in range(12 if chroma == 3 else 8):
                if bits.read(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    num_number_bits, order_type = bits.unsigned() + 4, bits.unsigned()
    num_order_bits = bits.unsigned() + 4 if order_type == 0 else 0
    if order_type == 1:
        bits.read(1), bits.signed(), bits.signed()
        for _ in range(min(bits.unsigned(), 255)):
            bits.signed()
    bits.unsigned(), bits.read(1), bits.unsigned(), bits.unsigned()
    return number, Sequence(has_colour_planes, num_number_bits, order_type, num_order_bits, bits.read(1) == 1)


def _skip_scaling_list(bits: Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


def _recovers_at_once(unit: bytes) -> bool:
    """Whether supplemental information promises exact pictures from this one on (a recovery point of 0 frames)."""
    at = 1
    while at + 2 < len(unit):
        kind, size, at = unit[at], unit[at + 1], at + 2
        if kind == 255 or size == 255:  # a longer one, and none that matters
            return False
        if kind == RECOVERY_POINT:
            return unit[at] >> 6 == 0b11  # a count of 0, and an exact match
        at += size
    return False
