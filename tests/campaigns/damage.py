"""Ways of damaging a file at random: bits, bytes and pieces of any; values, names and types of a structured one."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import random
import struct
import tarfile
from collections.abc import Callable
from typing import Any

import torch
from sound_files import NAMES

ODD_VALUES: list[Any] = [
    None, True, 0, -1, 1, 2**31 - 1, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf"), "", "0", "x" * 5000,
    "../../etc/passwd", "\x00", "\ud83e", [], {}, [[]], [1, 2, 3], {"a": 1}, [[[[[[[[]]]]]]]], list(range(2000)),
]  # fmt: skip

ODD_PIECES = [b"9" * 400, b"[" * 9000, b'"', b",", b"{", b"\xff\xfe", b"\n", b"nan", b"1e999"]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bits, bytes or pieces changed, removed, repeated or added."""
    spoilt = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        start = rng.randrange(len(spoilt) + 1) if rng.random() < 0.5 else rng.randrange(min(len(spoilt), 2048) + 1)
        end = min(len(spoilt), start + rng.choice([1, 2, 4, 8, 64, 512, 5000]))
        action = rng.randrange(7)
        if action == 0 and start < len(spoilt):
            spoilt[start] ^= 1 << rng.randrange(8)
        elif action == 1:
            spoilt[start:end] = rng.randbytes(end - start)
        elif action == 2:
            spoilt[start:end] = bytes([rng.choice([0, 255, 0x30, 0x7F])]) * (end - start)
        elif action == 3:
            del spoilt[start:end]
        elif action == 4:
            spoilt[start:start] = spoilt[start:end]
        elif action == 5:
            spoilt[start:start] = rng.choice(ODD_PIECES)
        elif rng.random() < 0.3:
            del spoilt[start:]
    return bytes(spoilt)


def altered(value: Any, rng: random.Random) -> Any:
    """A tree of lists and dictionaries with one to three values replaced, removed, doubled or renamed."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(value))
        if not places:
            return rng.choice(ODD_VALUES)
        parent, key = rng.choice(places)
        action = rng.randrange(6)
        if action <= 2:
            parent[key] = rng.choice(ODD_VALUES)
        elif action == 3:
            del parent[key]
        elif action == 4:
            other_parent, other_key = rng.choice(places)
            try:
                parent[key] = other_parent[other_key]
            except (KeyError, IndexError):
                continue
        elif isinstance(parent, dict):
            parent[str(rng.choice(ODD_VALUES))[:50]] = parent.pop(key)
        try:
            json.dumps(value, default=str)
        except (ValueError, RecursionError):  # a circle
            return None
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(min(len(value), 50)))
    else:
        return []
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def altered_json(content: bytes, rng: random.Random) -> bytes:
    return json.dumps(altered(json.loads(content), rng)).encode()


def altered_safetensors(content: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = rng.choice([name for name in header if name != "__metadata__"])
    action = rng.randrange(5)
    if action == 0:
        header[name]["shape"] = rng.choice([[0], [2**40, 0], [2**62, 4], [-1], [], [1] * 3000, [2**64]])
    elif action == 1:
        header[name]["dtype"] = rng.choice(["F64", "F16", "I64", "BOOL", "F8_E4M3", "C64", "F4", "X", 3])
    elif action == 2:
        offsets = header[name]["data_offsets"]
        header[name]["data_offsets"] = rng.choice([offsets[::-1], [0, 0], [0, 2**63], [offsets[0] - 4, offsets[1]]])
    elif action == 3:
        header[name.replace(".1.", f".{rng.choice([2, 7, 10**9, 10**30])}.")] = header.pop(name)
    else:
        header = altered(header, rng)
    raw = json.dumps(header).encode()
    body = bytearray(content[8 + length :])
    if rng.random() < 0.2:
        at = 4 * rng.randrange(len(body) // 4)
        body[at : at + 4] = struct.pack("<f", rng.choice([float("nan"), float("inf"), -float("inf")]))
    return struct.pack("<Q", len(raw)) + raw + bytes(body)


def altered_pickle(content: bytes, rng: random.Random) -> bytes:
    tensors = [
        torch.zeros(1).expand(2**20, 2**20), torch.zeros(2, device="meta"), torch.zeros(2).to_sparse(), torch.zeros(0),
        torch.full((3,), torch.nan), torch.zeros(2, dtype=torch.complex64), torch.zeros(64, 64, dtype=torch.int8),
    ]  # fmt: skip
    state = torch.load(io.BytesIO(content), weights_only=True)
    places = list(_places(state))
    parent, key = rng.choice(places)
    parent[key] = rng.choice(tensors) if rng.random() < 0.5 else rng.choice(ODD_VALUES)
    file = io.BytesIO()
    try:
        torch.save(altered(state, rng) if rng.random() < 0.3 else state, file)
    except (RecursionError, UnicodeEncodeError):
        return b""
    return file.getvalue()


def altered_tar(content: bytes, rng: random.Random) -> bytes:
    """Another member before the others, with a checksum that is right; and perhaps compressed."""
    info = tarfile.TarInfo(rng.choice([f"rgb/{NAMES[0]}.mp4", "../../x", "/etc/x", "a" * 90, f"{NAMES[1]}.mp4/"]))
    info.type = rng.choice([b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"g", b"x", b"K", b"L", b"S", b"Z"])
    info.size = rng.choice([0, 9, 512, 2**21, 2**33, 2**40, -512, -1024])
    info.linkname = rng.choice(["", "/etc/hostname", f"{NAMES[0]}.mp4"])
    body = rng.choice([b"", bytes(512), b"30 size=99999999999999\n".ljust(512, b"\0"), rng.randbytes(1024)])
    tar = info.tobuf(tarfile.GNU_FORMAT) + body + content
    compressors: list[Callable[[bytes], bytes]] = [bytes, gzip.compress, lzma.compress]
    return rng.choice(compressors)(tar)


def packed(compress: Callable[[bytes], bytes], unpack_: Callable[[bytes], bytes]) -> Callable[..., bytes]:
    """Damage below the compression."""
    return lambda content, rng: compress(damaged(unpack_(content), rng))
