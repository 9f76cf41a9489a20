"""Transcribes files with faster-whisper as its README does: one after the other, each for itself.

`python one_by_one.py MODEL DEVICE COMPUTE_TYPE BATCH FILE...`: BATCH 0 is WhisperModel.transcribe, else
BatchedInferencePipeline with batches of that size. Prints how many words there were.
"""

from __future__ import annotations

import sys
from typing import Any

from faster_whisper import BatchedInferencePipeline, WhisperModel


def main() -> None:
    model, device, kind, batch, *files = sys.argv[1:]
    whisper = WhisperModel(model, device=device, compute_type=kind, local_files_only=True)
    options: dict[str, Any] = {"language": "en", "word_timestamps": True}
    way: Any = whisper
    if int(batch):
        way, options["batch_size"] = BatchedInferencePipeline(whisper), int(batch)
    words = 0
    for file in files:
        segments, _ = way.transcribe(file, **options)
        words += sum(len(segment.words) for segment in segments)
    print(words)


if __name__ == "__main__":
    main()
