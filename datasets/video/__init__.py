"""Video files: read exactly, written in one place, and captioned. Times are seconds from the first frame shown."""

from diveparse.datasets.video.container import VideoError
from diveparse.datasets.video.reader import VideoInfo, play, probe, read_frames

__all__ = ["VideoError", "VideoInfo", "play", "probe", "read_frames"]
