"""NAL units, which the packets of H.264 and HEVC are made of, and the numbers in their headers."""

from __future__ import annotations

from diveparse.datasets.video.evidence import MAX_UNITS, positions

SLICE_HEADER_BYTES = 40  # more than the part of it that is read


class Bits:
    """The bits of a header, from its first; with the Exp-Golomb numbers of H.264 (9.1)."""

    __slots__ = ("_left", "_value")

    def __init__(self, data: bytes) -> None:
        if b"\0\0\3" in data:  # a byte that keeps a header from looking like a start code
            data = data.replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("the header ends too early")
        return self._value >> self._left & (1 << count) - 1

    def unsigned(self) -> int:
        rest = self._value & (1 << self._left) - 1
        self._left = left = 2 * rest.bit_length() - self._left - 1  # as many zeros as there are bits after the 1
        if left < 0:
            raise ValueError("the header ends too early")
        return (rest >> left) - 1

    def signed(self) -> int:
        number = self.unsigned()
        return (number + 1) // 2 if number % 2 else -number // 2


class PictureOrder:
    """The order of showing within a period, from the lowest bits that each picture gives (H.264 8.2.1, HEVC 8.3.1)."""

    def __init__(self) -> None:
        self._period, self._high, self._low = 0, 0, 0

    def begin(self) -> None:
        self._period, self._high, self._low = self._period + 1, 0, 0

    def rank(self, low: int, num_bits: int, *, is_reference: bool) -> tuple[int, int]:
        """is_reference: whether the order of later pictures counts from this one."""
        full, high = 1 << num_bits, self._high
        if low < self._low and self._low - low >= full // 2:
            high += full
        elif low > self._low and low - self._low > full // 2:
            high -= full
        if is_reference:
            self._high, self._low = high, low
        return self._period, high + low


def nal_units(data: bytes, length_size: int) -> list[tuple[int, int]]:
    """(start, end) of each NAL unit. length_size: bytes of the length before each; 0 where start codes separate them.

    Raises: ValueError if there are more than MAX_UNITS, or if one is empty or longer than the data.
    """
    if not length_size:
        starts = [at + 3 for at in positions(data, b"\0\0\1")]
        return list(zip(starts, [*(start - 3 for start in starts[1:]), len(data)], strict=False))
    units: list[tuple[int, int]] = []
    end, num_bytes = 0, len(data)
    while end < num_bytes:
        start = end + length_size
        end = start + int.from_bytes(data[end:start], "big")
        if not start < end <= num_bytes or len(units) == MAX_UNITS:
            raise ValueError("a NAL unit is empty or longer than its packet, or there are too many")
        units.append((start, end))
    return units


def sized_units(record: bytes, at: int, count: int) -> tuple[list[bytes], int]:
    """(units, where they end) of a decoder configuration record, each after its length in two bytes."""
    units = []
    for _ in range(count):
        size = int.from_bytes(record[at : at + 2], "big")
        if size:
            units.append(record[at + 2 : at + 2 + size])
        at += 2 + size
    return units, at
