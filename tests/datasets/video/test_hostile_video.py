"""Files that claim, hide or repeat what they should not, each read in a process of its own whose memory is measured.

Run as a script, this file is that process: it answers a line of paths with a line of JSON for each, and an empty one.
"""

import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import pytest

from diveparse.datasets.video import VideoError, index, probe, read_frames
from diveparse.datasets.video.container import open_stream

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured the Linux way")

MAX_MIB, MAX_S = 700, 10  # what a hostile file may take; nearly all take 10 MiB and 0.02 s
READ = "^frames$"  # the answer where a file is read
MANY = 10**9
STBL = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
WriteVideo = Callable[..., Path]
Ask = Callable[..., list[str]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Have files read, and learn what came of each; fails where one took too much."""
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None

        def ask_reader(*paths: Path) -> list[str]:
            print(*paths, sep="\t", file=reader.stdin, flush=True)
            answers = [json.loads(answer) for answer in iter(reader.stdout.readline, "\n")]
            for answer in answers:
                assert answer["mib"] < MAX_MIB, answer
                assert answer["seconds"] < MAX_S, answer
            assert len(answers) == len(paths), f"reading {paths[len(answers)]} ended the process"
            return [
                answer["result"].removeprefix(f"VideoError: {path}: ")
                for answer, path in zip(answers, paths, strict=True)
            ]

        yield ask_reader
        reader.stdin.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, write_video: WriteVideo) -> dict[str, bytes]:
    """A sound file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    fragments = {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "10"}}
    kinds = {
        "mp4": write_video(folder / "whole.mp4"),
        "fragments": write_video(folder / "fragments.mp4", **fragments),
        "mkv": write_video(folder / "whole.mkv"),
        "webm": write_video(folder / "whole.webm", codec="libvpx"),
        "avi": write_video(folder / "whole.avi", codec="mpeg4"),
        "ts": write_video(folder / "whole.ts"),
    }
    return {kind: path.read_bytes() for kind, path in kinds.items()}


def box(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I4s", len(content) + 8, kind) + content


def table(*numbers: int) -> bytes:
    return bytes(4) + struct.pack(f">{len(numbers)}I", *numbers)  # after its version and flags


def boxes_of(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    start = 0
    while start < len(content):
        size, kind = struct.unpack_from(">I4s", content, start)
        yield kind, content[start + 8 : start + size]
        start += size


def find(content: bytes, kinds: Sequence[bytes]) -> bytes:
    """The content of the box that stands at these kinds, each inside the one before."""
    for kind in kinds:
        content = next(inside for found, inside in boxes_of(content) if found == kind)
    return content


def edit(content: bytes, changes: dict[tuple[bytes, ...], bytes]) -> bytes:
    """Give boxes another content. Media data stands before the header, so that the header may grow."""
    edited = b""
    for kind, inside in boxes_of(content):
        deeper = {kinds[1:]: new for kinds, new in changes.items() if kinds[0] == kind}
        edited += box(kind, deeper[()] if () in deeper else edit(inside, deeper) if deeper else inside)
    return edited


def of_one_size(mp4: bytes, num_samples: int) -> bytes:
    """Samples of one byte each need no table, whatever their number."""
    boxes = {
        b"stsz": (1, num_samples),
        b"stts": (1, num_samples, 512),
        b"stsc": (1, 1, num_samples, 1),
        b"stco": (1, 48),
    }
    return edit(mp4, {(*STBL, kind): table(*numbers) for kind, numbers in boxes.items()})


def with_edits(mp4: bytes, num_edits: int) -> bytes:
    return edit(mp4, {(*STBL[:2], b"edts", b"elst"): table(num_edits, *([1200, 0, 0x10000] * num_edits))})


def with_tracks(mp4: bytes, num_tracks: int) -> bytes:
    movie = find(mp4, [b"moov"])
    return edit(mp4, {(b"moov",): movie + box(b"trak", find(movie, [b"trak"])) * num_tracks})


def with_table(mp4: bytes, kind: bytes, content: bytes) -> bytes:
    tables = [(found, inside) for found, inside in boxes_of(find(mp4, STBL)) if found != kind]
    return edit(mp4, {STBL: b"".join(box(*each) for each in [*tables, (kind, content)])})


def with_chapters(mp4: bytes, num_chapters: int) -> bytes:
    """Chapters that all have one and the same title, of 64 KB."""
    where = mp4.index(b"moov") - 4
    title = where + 8
    track = find(mp4, [b"moov", b"trak"])
    names = edit(
        track,
        {
            (b"tkhd",): find(track, [b"tkhd"])[:12] + struct.pack(">I", 2) + find(track, [b"tkhd"])[16:],
            (b"edts",): b"",
            (b"mdia", b"hdlr"): find(track, [b"mdia", b"hdlr"]).replace(b"vide", b"text"),
            (b"mdia", b"minf", b"stbl"): box(b"stsd", table(1) + box(b"text", bytes(51)))
            + box(b"stts", table(1, num_chapters, 1))
            + box(b"stsc", table(1, 1, 1, 1))
            + box(b"stsz", table(65_540, num_chapters))
            + box(b"stco", table(num_chapters, *([title] * num_chapters))),
        },
    )
    movie = find(edit(mp4, {(b"moov", b"trak"): track + box(b"tref", box(b"chap", struct.pack(">I", 2)))}), [b"moov"])
    return mp4[:where] + box(b"free", b"\xff\xff" + b"a" * 65_535) + box(b"moov", movie + box(b"trak", names))


def with_first_fragment(fragments: bytes, num_samples: int, num_boxes: int = 1) -> bytes:
    fragment = find(fragments, [b"moof", b"traf"])
    head = b"".join(box(kind, inside) for kind, inside in boxes_of(fragment) if kind != b"trun")
    return edit(fragments, {(b"moof", b"traf"): head + box(b"trun", table(num_samples)) * num_boxes})


def resized(mp4: bytes, kind: bytes, size: bytes) -> bytes:
    at = mp4.index(kind)
    return mp4[: at - 4] + size[:4] + kind + size[4:] + mp4[at + 4 :]


def compressed_header(mp4: bytes) -> bytes:
    movie = box(b"moov", find(mp4, [b"moov"]) + bytes(20_000_000))
    content = box(b"dcom", b"zlib") + box(b"cmvd", struct.pack(">I", len(movie)) + zlib.compress(movie, 1))
    return edit(mp4, {(b"moov",): box(b"cmov", content)})


def still_pictures(mp4: bytes) -> bytes:
    items = b"\2" + bytes(5) + struct.pack(">I", 10**8)
    handler = box(b"hdlr", bytes(8) + b"pict" + bytes(13))
    return box(b"ftyp", b"heic" + bytes(4) + b"mif1") + box(b"meta", bytes(4) + handler + box(b"iloc", items)) + mp4


TOO_MANY = r"^expected at most 8000000 samples in 1000 edits, got a claim of \d+ samples in \d+ edits$"
NO_VIDEO = "^the file holds no video stream"
NOT_DECODED = (
    "^(cannot be (decoded|read)|expected a (picture|duration)|the frames have no times|the file holds no frame)"
)
INVALID = "^cannot be read as a video: (Invalid data|Cannot allocate)"
HOSTILE_MP4: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "samples of one size": (lambda mp4: of_one_size(mp4, MANY), TOO_MANY),
    "fewer samples of one size": (lambda mp4: of_one_size(mp4, 85_000_000), TOO_MANY),
    "as many as there may be": (lambda mp4: of_one_size(mp4, 8_000_000), NOT_DECODED),
    "samples of one size in many tracks": (lambda mp4: with_tracks(of_one_size(mp4, 10**6), 50), TOO_MANY),
    "edits": (lambda mp4: with_edits(mp4, 10**5), TOO_MANY),
    "edits of many samples": (lambda mp4: with_edits(of_one_size(mp4, 10**5), 900), TOO_MANY),
    "header marked as free": (lambda mp4: of_one_size(mp4, MANY).replace(b"moov", b"free"), TOO_MANY),
    "header in user data": (lambda mp4: box(b"udta", of_one_size(mp4, MANY)), TOO_MANY),
    "header with a long size": (
        lambda mp4: resized(of_one_size(mp4, MANY), b"moov", struct.pack(">IQ", 1, 10**6)),
        TOO_MANY,
    ),
    "tracks": (lambda mp4: with_tracks(mp4, 1000), "^expected at most 100 tracks$"),
    "chapters": (lambda mp4: with_chapters(mp4, 10**4), r"^expected at most 4000000 packets of \d+ bytes, got more$"),
    "compressed header": (compressed_header, "^expected a plain MP4 header, got a compressed one$"),
    "still pictures": (still_pictures, TOO_MANY),
    "sample sizes": (lambda mp4: with_table(mp4, b"stsz", table(0, MANY)), TOO_MANY),
    "sample times": (lambda mp4: with_table(mp4, b"stts", table(MANY, 1, 512)), INVALID),
    "samples at one time": (lambda mp4: with_table(mp4, b"stts", table(1, 2**32 - 1, 0)), READ),
    "chunks": (lambda mp4: with_table(mp4, b"stsc", table(MANY, 1, 1, 1)), INVALID),
    "samples in a chunk": (lambda mp4: with_table(mp4, b"stsc", table(1, 1, MANY, 1)), READ),
    "chunk places": (lambda mp4: with_table(mp4, b"stco", table(MANY, 48)), READ),
    "shifts": (lambda mp4: with_table(mp4, b"ctts", table(MANY, 1, 0)), INVALID),
    "keyframes": (lambda mp4: with_table(mp4, b"stss", table(MANY, 1)), INVALID),
    "samples in a group": (lambda mp4: with_table(mp4, b"sbgp", table(0x72617020, 1, MANY, 1)), READ),
    "endless media data": (lambda mp4: resized(mp4, b"mdat", bytes(4)), INVALID),
    "media data of 2^63 bytes": (lambda mp4: resized(mp4, b"mdat", struct.pack(">IQ", 1, 2**63 - 1)), INVALID),
    "media data of -8 bytes": (lambda mp4: resized(mp4, b"mdat", struct.pack(">IQ", 1, 2**64 - 8)), INVALID),
    "endless header": (lambda mp4: resized(mp4, b"moov", bytes(4)), READ),
    "nested boxes": (lambda mp4: mp4[:32] + box(b"moov") * 50_000, NO_VIDEO),
    "boxes": (lambda mp4: box(b"skip") * 300_000 + mp4, "^expected an MP4 header of at most"),
}


@pytest.mark.parametrize("kind", HOSTILE_MP4)
def test_what_an_mp4_file_claims_is_bounded(kind: str, ask: Ask, whole: dict[str, bytes], tmp_path: Path) -> None:
    make, expected = HOSTILE_MP4[kind]
    path = tmp_path / "hostile.mp4"
    path.write_bytes(make(whole["mp4"]))
    assert re.search(expected, (answer := ask(path))[0]), answer


@pytest.mark.parametrize(("num_samples", "num_boxes"), [(MANY, 1), (80_000_000, 1), (10**5, 1000)])
def test_what_a_fragment_claims_is_bounded(
    num_samples: int, num_boxes: int, ask: Ask, whole: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "hostile.mp4"
    path.write_bytes(with_first_fragment(whole["fragments"], num_samples, num_boxes))
    assert re.search(TOO_MANY, (answer := ask(path))[0]), answer


def element(kind: bytes, content: bytes, size: int | None = None) -> bytes:
    """Of Matroska."""
    return kind + (2**56 | (len(content) if size is None else size)).to_bytes(8, "big") + content


def unsigned(kind: bytes, value: int) -> bytes:
    return element(kind, value.to_bytes(8, "big"))


ENDLESS = 2**56 - 1
ONE_BYTE_BLOCK = b"\xa3\x85\x81\0\0\x80\1"
EMPTY_BLOCK = b"\xa3\x84\x81\0\0\x80"
LACED_BLOCK = b"\xa3\x41\x05\x81\0\0\x84\xff" + bytes(256)  # 256 frames of a byte each


def matroska(
    blocks: bytes, *, start: int = 0, ns: int = 10**6, width: int = 64, stripped: bytes = b"", sizes: int | None = None
) -> bytes:
    """A file of MJPEG. start: of its cluster, in ticks of so many ns. stripped: bytes that each block begins with, kept
    once. sizes: what the segment's, the tracks' and the cluster's are said to be."""
    encoding = element(b"\x50\x34", unsigned(b"\x42\x54", 3) + element(b"\x42\x55", stripped))
    encodings = element(b"\x6d\x80", element(b"\x62\x40", encoding)) if stripped else b""
    track = unsigned(b"\xd7", 1) + unsigned(b"\x73\xc5", 1) + unsigned(b"\x83", 1) + element(b"\x86", b"V_MJPEG")
    track += element(b"\xe0", unsigned(b"\xb0", width) + unsigned(b"\xba", width)) + encodings
    info = element(b"\x15\x49\xa9\x66", unsigned(b"\x2a\xd7\xb1", ns))
    tracks = element(b"\x16\x54\xae\x6b", element(b"\xae", track), sizes)
    cluster = element(b"\x1f\x43\xb6\x75", unsigned(b"\xe7", start) + blocks, sizes)
    head = element(b"\x1a\x45\xdf\xa3", element(b"\x42\x82", b"matroska"))
    return head + element(b"\x18\x53\x80\x67", info + tracks + cluster, sizes)


NO_FRAMES = "^the file holds no frame that can be shown$"
HOSTILE_MATROSKA: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty blocks": (lambda: matroska(EMPTY_BLOCK * 100_000), NO_FRAMES),
    "blocks of a byte": (lambda: matroska(ONE_BYTE_BLOCK * 20_000), NOT_DECODED),
    "laced blocks": (lambda: matroska(LACED_BLOCK * 80), NOT_DECODED),
    "blocks that begin alike": (
        lambda: matroska(ONE_BYTE_BLOCK * 20_000, stripped=bytes(10**6)),
        r"^expected at most 4000000 packets of \d+ bytes, got more$",
    ),
    "endless elements": (lambda: matroska(ONE_BYTE_BLOCK, sizes=ENDLESS), NOT_DECODED),
    "huge elements": (lambda: matroska(ONE_BYTE_BLOCK, sizes=2**56 - 2), NOT_DECODED),
    "elements of 1 GB": (lambda: matroska(ONE_BYTE_BLOCK, sizes=2**30), NOT_DECODED),
    "empty elements": (lambda: matroska(ONE_BYTE_BLOCK, sizes=0), NO_VIDEO),
    "a picture of 100,000 x 100,000": (lambda: matroska(ONE_BYTE_BLOCK, width=100_000), NOT_DECODED),
    "the end of time": (lambda: matroska(ONE_BYTE_BLOCK, start=2**62), NOT_DECODED),
    "before time": (lambda: matroska(ONE_BYTE_BLOCK, start=2**64 - 1), NOT_DECODED),
    "ticks of no time": (lambda: matroska(ONE_BYTE_BLOCK, ns=0), NOT_DECODED),
    "ticks of ages": (lambda: matroska(ONE_BYTE_BLOCK, ns=2**62), NOT_DECODED),
}


@pytest.mark.parametrize("kind", HOSTILE_MATROSKA)
def test_what_a_matroska_file_holds_is_bounded(kind: str, ask: Ask, tmp_path: Path) -> None:
    make, expected = HOSTILE_MATROSKA[kind]
    path = tmp_path / "hostile.mkv"
    path.write_bytes(make())
    assert re.search(expected, (answer := ask(path))[0]), answer


def patched(avi: bytes, header: bytes, offset: int, number: int) -> bytes:
    at = avi.index(header) + 8 + offset
    return avi[:at] + struct.pack("<I", number) + avi[at + 4 :]


def with_chunks(avi: bytes, chunk: bytes, count: int) -> bytes:
    movie = avi.index(b"movi")
    size = int.from_bytes(avi[movie - 4 : movie], "little")
    end = movie + size
    return avi[: movie - 4] + struct.pack("<I", size + count * len(chunk)) + avi[movie:end] + chunk * count


HOSTILE_AVI: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "frames in the file's header": (lambda avi: patched(avi, b"avih", 16, MANY), READ),
    "frames in the stream's header": (lambda avi: patched(avi, b"strh", 32, MANY), READ),
    "streams": (lambda avi: patched(avi, b"avih", 24, MANY), READ),
    "no rate": (lambda avi: patched(avi, b"strh", 24, 0), READ),
    "ages for each frame": (lambda avi: patched(avi, b"strh", 20, 2**31 - 1), READ),
    "picture": (lambda avi: patched(patched(avi, b"strf", 4, 100_000), b"strf", 8, 100_000), READ),
    "index": (lambda avi: patched(avi, b"idx1", -4, 2**32 - 1), "^cannot be read as a video|^cannot be decoded"),
    "empty chunks": (lambda avi: with_chunks(avi, b"00dc" + bytes(4), 10**5), READ),
    "chunks of a byte": (lambda avi: with_chunks(avi, b"00dc\1\0\0\0\0\0", 20_000), NOT_DECODED),
}


@pytest.mark.parametrize("kind", HOSTILE_AVI)
def test_what_an_avi_file_claims_is_bounded(kind: str, ask: Ask, whole: dict[str, bytes], tmp_path: Path) -> None:
    make, expected = HOSTILE_AVI[kind]
    path = tmp_path / "hostile.avi"
    path.write_bytes(make(whole["avi"]))
    assert re.search(expected, (answer := ask(path))[0]), answer


def png(size: int) -> bytes:
    """Black, in few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**5)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [12_000, 100_000])
def test_a_huge_picture_is_refused_before_it_is_decoded_on_opening(size: int, ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "huge.mov"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        for index in range(5):
            packet = av.Packet(png(size))
            packet.pts, packet.dts, packet.time_base, packet.stream = index, index, Fraction(1, 25), stream
            file.mux(packet)
    assert re.search(NOT_DECODED, (answer := ask(path))[0]), answer


OTHER_FILES = {
    "playlist.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\nwhole.mp4\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile whole.mp4\n",
    "itself.mp4": "ffconcat version 1.0\nfile itself.mp4\n",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_file_that_points_to_others_is_refused(name: str, tmp_path: Path, whole: dict[str, bytes]) -> None:
    (tmp_path / "whole.mp4").write_bytes(whole["mp4"])
    path = tmp_path / name
    path.write_text(OTHER_FILES[name])
    with pytest.raises(VideoError, match="cannot be read as one of mov,matroska,"):
        probe(path)


def test_a_stream_without_a_container_is_refused(tmp_path: Path, write_video: WriteVideo) -> None:
    path = write_video(tmp_path / "stream.h264").rename(tmp_path / "stream.mp4")
    with pytest.raises(VideoError, match="cannot be read as one of mov,matroska,"):
        probe(path)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut short, with bits flipped, with numbers made extreme, with parts gone, repeated, exchanged or made up."""
    damage, size = bytearray(content), len(content)
    start, end = sorted(rng.sample(range(size), 2))
    near_an_end = rng.choice([rng.randrange(min(size, 1500)), size - 1 - rng.randrange(min(size, 1500))])
    kind = rng.randrange(7)
    if kind == 0:
        del damage[start:]
    elif kind == 1:
        for _ in range(rng.choice([1, 3, 20])):
            damage[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind == 2:
        for place in (start, near_an_end):
            damage[place : place + 4] = rng.choice(
                [bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", rng.randbytes(4)]
            )
    elif kind == 3:
        del damage[start : start + rng.choice([1, 4, 100, 1000])]
    elif kind == 4:
        damage[start:start] = content[start : start + 100] * rng.choice([1, 10])
    elif kind == 5:
        damage[start:] = content[end:] + content[start:end]
    else:
        damage[rng.randrange(4, 100) :] = rng.randbytes(rng.choice([100, 5000]))
    return bytes(damage)


@pytest.mark.parametrize("kind", ["mp4", "fragments", "mkv", "webm", "avi", "ts"])
def test_damage_anywhere_ends_in_frames_or_a_clear_error(
    kind: str, ask: Ask, whole: dict[str, bytes], tmp_path: Path
) -> None:
    paths = [tmp_path / f"damaged-{seed}" for seed in range(40)]
    for path in paths:
        path.write_bytes(damaged(whole[kind], random.Random(f"{kind} {path.name}")))
    answers = ask(*paths)
    assert not [answer for answer in answers if re.match(r"\w+: ", answer)]  # exceptions of other kinds
    assert len(set(answers)) > 3


def test_thousands_of_times_are_read_at_once(tmp_path: Path, whole: dict[str, bytes]) -> None:
    path = tmp_path / "whole.mp4"
    path.write_bytes(whole["mp4"])
    begun = time.process_time()
    frames = read_frames(path, [index % 30 / 25 for index in range(6000)], size=(8, 8))
    assert time.process_time() - begun < 3
    assert frames[30:].equal(frames[:-30])


def test_small_packets_are_kept_no_longer_than_their_number_allows(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "many.avi"
    path.write_bytes(with_chunks(whole["avi"], b"00dc\1\0\0\0\0\0", 2000))
    for limit, kept in ((10**6, False), (2 * 10**6, True)):
        monkeypatch.setattr(index, "MAX_HELD_BYTES", limit)
        with open_stream(path) as (file, stream):
            assert (index.Index(path, file, stream).held is not None) == kept


def read_and_measure(paths: Sequence[str]) -> None:
    """Say what comes of probing and reading each file, and what time and additional memory it took."""
    _, limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory_kib("VmSize") * 1024 + 3 * 2**30, limit))
    for path in paths:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak counts from here on
        before, begun = memory_kib("VmRSS"), time.perf_counter()
        try:
            end_s = probe(path).duration_s
            read_frames(path, [0.0, end_s / 2, end_s], size=(32, 32))
            result = "frames"
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        mib = (memory_kib("VmHWM") - before) / 1024
        print(json.dumps({"result": result, "seconds": time.perf_counter() - begun, "mib": mib}), flush=True)


def memory_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def answer_questions() -> None:
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            signal.alarm(3 * MAX_S)  # ends the process
            read_and_measure(line.rstrip("\n").split("\t"))
            os._exit(0)
        os.waitpid(child, 0)
        print(flush=True)


if __name__ == "__main__":
    answer_questions()
