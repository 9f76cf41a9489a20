"""A browser's recorder with a timeslice: one stream of WebM or fragmented MP4, handed out in pieces."""

from __future__ import annotations

import io

import av
import numpy as np
import numpy.typing as npt

from batchscribe.audio.decoding.containers import Repaired
from batchscribe.audio.decoding.ebml import BLOCKS, CLUSTER, walk_elements
from batchscribe.audio.decoding.mp4 import iterate_boxes
from support.audio import write_audio

Samples = npt.NDArray[np.float32]
RATE = 16_000
OPUS_RATE = 48_000


def webm(samples: Samples, *, cluster_seconds: float) -> bytes:
    """A recording as Chrome writes it: clusters, no index, sizes of the segment unknown."""
    options = {
        "live": "1",
        "cluster_time_limit": str(int(cluster_seconds * 1000)),
        "cluster_size_limit": "5M",
    }
    return write_audio(samples, "webm", "libopus", options=options)


def fragments(samples: Samples, *, fragment_seconds: float, codec: str = "aac") -> bytes:
    """A recording as Safari writes it, or Chrome (Opus): fragmented MP4."""
    flags = "empty_moov+default_base_moof+delay_moov"
    options = {"movflags": flags, "frag_duration": str(int(fragment_seconds * 1e6))}
    return write_audio(samples, "mp4", codec, options=options)


def at_clusters(recording: bytes) -> list[bytes]:
    """Pieces that each begin with a cluster; the first has the header."""
    begins = [found.begin for found in walk_elements(recording) if found.id == CLUSTER]
    return pieces(recording, begins[1:])


def at_blocks(recording: bytes, every: int) -> list[bytes]:
    """Pieces of so many blocks, wherever the clusters begin."""
    begins = [found.begin for found in walk_elements(recording) if found.id in BLOCKS]
    return pieces(recording, begins[every::every])


def at_fragments(recording: bytes) -> list[bytes]:
    """Pieces of one fragment; the first has the header, too."""
    begins = [body - 8 for kind, body, _ in iterate_boxes(recording) if kind == b"moof"]
    return pieces(recording, begins[1:])


def pieces(recording: bytes, cuts: list[int]) -> list[bytes]:
    return [recording[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(recording)], strict=True)]


def heard(found: Repaired) -> tuple[float, Samples]:
    """When a piece's own sound begins by its time stamps, in seconds, and that sound."""
    with av.open(io.BytesIO(found.data), "r") as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
        frames = list(container.decode(audio=0))
        begins = float(frames[0].time or 0.0)
        parts = [piece for frame in [*frames, None] for piece in resampler.resample(frame)]
    sound = np.concatenate([part.to_ndarray()[0] for part in parts])
    return begins + found.preroll, sound[round(found.preroll * RATE) :]
