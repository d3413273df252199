"""How pictures are encoded where the same ones must give the same bytes each time: rendered clips and the cache."""

import platform

# With AVX-512, x264 chooses differently from one encoding of the same pictures to the next, so a folder that was
# finished after a kill would differ from an undisturbed one. From SSE4.2 to AVX2 the bytes are always the same.
ALIKE = ("asm=SSE4.2",) if platform.machine() in {"x86_64", "AMD64"} else ()


def x264_options(crf: int, *params: str) -> dict[str, str]:
    """Options of libx264 for pictures that are decoded more often than encoded. params: more of its own, NAME=VALUE."""
    return {
        "preset": "veryfast",
        "tune": "fastdecode",
        "crf": str(crf),
        "threads": "1",
        "x264-params": ":".join((*params, *ALIKE)),
    }
