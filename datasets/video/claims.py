"""How many samples an MP4 or QuickTime file claims to hold, counted before FFmpeg allocates memory for them.

FFmpeg lists every sample (a frame, or a piece of sound) when it opens such a file, in 60 bytes of memory each. A few
bytes can claim very many samples: samples of one size need no table, and each entry of an edit list can show all of
them once more. So the claims are added up here first. The search is for the names of boxes in everything but the media
data, so that the nesting of the boxes does not matter.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

MAX_SAMPLES = 8_000_000  # over all tracks and edits: nine hours of video with sound, 0.5 GB of FFmpeg's memory
MAX_TRACKS = 100
MAX_EDITS = 1000  # of one track
MAX_HEADER_BYTES = 64 * 2**20
MAX_TOP_BOXES = 200_000  # a fragmented file has two or three per fragment
# the top boxes in which FFmpeg looks for others
CONTAINERS = frozenset(
    b"moov moof mvex traf trak edts mdia minf stbl dinf udta meta ilst tref sinf schi wave iprp iref cmov".split()
)
# FFmpeg lists uncompressed sound by pieces of this many samples or more, if each sample lasts one tick
MIN_SOUND_PIECE = 160


class ExcessiveClaimError(ValueError):
    """A file claims more than a video needs. The message lacks the path, which the caller adds."""


def refuse_excessive_claims(path: Path) -> None:
    """Read the header of a file before FFmpeg opens it. A file that is not MP4 or QuickTime passes.

    Raises: ExcessiveClaimError on more than MAX_TRACKS, MAX_EDITS, MAX_HEADER_BYTES or MAX_TOP_BOXES; on more than
    MAX_SAMPLES, where the samples of all tracks count once for each edit; on a compressed header.
    """
    num_tracks, num_samples, num_edits = 0, 0, 1
    with path.open("rb", buffering=0) as file:
        for kind, header in _headers(file, path.stat().st_size):
            if kind == b"cmov" or b"cmov" in header:
                raise ExcessiveClaimError("expected a plain MP4 header, got a compressed one")
            num_tracks += kind == b"trak"
            if num_tracks > MAX_TRACKS:
                raise ExcessiveClaimError(f"expected at most {MAX_TRACKS} tracks")
            sound = _num_sound_pieces(header) if kind == b"trak" else None
            num_samples += _num_samples(header) if sound is None else sound
            num_edits = max([num_edits, *(num_bytes // 12 for _, num_bytes in _find(rb"elst", header))])
    if num_edits > MAX_EDITS or num_samples * num_edits > MAX_SAMPLES:
        claim = f"{num_samples} samples in {num_edits} edits"
        raise ExcessiveClaimError(
            f"expected at most {MAX_SAMPLES} samples in {MAX_EDITS} edits, got a claim of {claim}"
        )


def _headers(file: BinaryIO, num_bytes: int) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of all boxes that can hold claims, inside the movie box and beside it."""
    num_header_bytes = 0
    for number, (kind, size) in enumerate(_boxes(file, num_bytes)):
        # FFmpeg falls back on a movie box that was marked as free
        start = file.read(min(8, size)) if kind in (b"free", b"hoov") else b""
        is_movie = kind == b"moov" or start[4:] in (b"mvhd", b"cmov")
        if is_movie or kind in CONTAINERS:
            num_header_bytes += size
        if num_header_bytes > MAX_HEADER_BYTES or number == MAX_TOP_BOXES:
            limits = f"{MAX_HEADER_BYTES} bytes in {MAX_TOP_BOXES} boxes"
            raise ExcessiveClaimError(f"expected an MP4 header of at most {limits}")
        if is_movie:
            movie = BytesIO(start + file.read(size - len(start)))
            yield from ((child, movie.read(child_size)) for child, child_size in _boxes(movie, size))
        elif kind in CONTAINERS:
            yield kind, file.read(size)


def _boxes(file: BinaryIO, num_bytes: int) -> Iterator[tuple[bytes, int]]:
    """(kind, size of the content) of box after box, by FFmpeg's rules; the file is positioned at the content."""
    start = 0
    while start + 8 <= num_bytes:
        file.seek(start)
        header_size = 8
        size, kind = struct.unpack(">I4s", file.read(8))
        if size == 1 and start + 16 <= num_bytes:
            header_size, size = 16, int.from_bytes(file.read(8), "big")
        elif size == 0:
            size = num_bytes - start
        if size < header_size:
            return
        size = min(size, num_bytes - start)
        yield kind, size - header_size
        start += size


def _find(kinds: bytes, header: bytes) -> Iterator[tuple[int, int]]:
    """(offset, number of bytes) of the content of each box of these kinds, at any depth."""
    for match in re.finditer(kinds, header):
        size = int.from_bytes(header[max(match.start() - 4, 0) : match.start()], "big")
        rest = len(header) - match.end()
        yield match.end(), min(size - 8, rest) if size >= 8 else rest


def _num_samples(header: bytes) -> int:
    """The samples of tracks and fragments, and the items of still pictures, which FFmpeg lists too."""
    padded = header + bytes(12)  # a box can be cut short
    claims = [
        *(struct.unpack_from(">8xI", padded, start) for start, _ in _find(rb"stsz|stz2", header)),
        *(struct.unpack_from(">4xI", padded, start) for start, _ in _find(rb"trun", header)),
        *(struct.unpack_from(">6xI", padded, start) for start, _ in _find(rb"iloc", header) if padded[start] > 1),
        *(struct.unpack_from(">4xI", padded, start) for start, _ in _find(rb"iinf", header) if padded[start] > 0),
    ]
    return sum(count for (count,) in claims)


def _num_sound_pieces(track: bytes) -> int | None:
    """How many pieces of sound FFmpeg lists for a track; None where it lists samples."""
    padded = track + bytes(16)
    runs = {struct.unpack_from(">4xI4xI", padded, start) for start, _ in _find(rb"stts", track)}  # (how many, ticks)
    if runs != {(1, 1)} or _handler(track) != b"soun" or re.search(rb"vide|subp|clcp", track):
        return None
    num_chunks = sum(struct.unpack_from(">4xI", padded, start)[0] for start, _ in _find(rb"stco|co64", track))
    tables = [track[start + 8 : start + num_bytes] for start, num_bytes in _find(rb"stsc", track)]
    rows = [row for table in tables for row in struct.iter_unpack(">4xI4x", table[: len(table) // 12 * 12])]
    return num_chunks * (1 + max((samples for (samples,) in rows), default=0) // MIN_SOUND_PIECE)


def _handler(track: bytes) -> bytes:
    """The kind of media that a track holds."""
    for kind in (b"mdia", b"hdlr"):
        boxes = BytesIO(track)
        track = next((boxes.read(size) for found, size in _boxes(boxes, len(track)) if found == kind), b"")
    return track[8:12]
