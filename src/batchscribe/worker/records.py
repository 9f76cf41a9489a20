"""A worker's objects: transcripts, failed attempts, progress and exit record."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import structlog

from batchscribe.audio.decoding.frames import decoder_version
from batchscribe.core import keys
from batchscribe.core.run.manifest import ExitRecord, Failure, FailureKind, Manifest, ManifestChunk, encode
from batchscribe.core.scan.chunks import voices_key
from batchscribe.core.text import transcripts
from batchscribe.core.text.transcripts import Transcript
from batchscribe.core.text.voices import ChunkVoices, encode_voices
from batchscribe.errors import BatchscribeError, MisconfiguredError, PermanentError
from batchscribe.protocols import Clock, Store
from batchscribe.reading import is_stored
from batchscribe.worker.progress import Ending, ProgressTracker

LOG = structlog.get_logger()


class Records:
    """Writes the worker's objects create-only; counts only what was written."""

    def __init__(
        self, manifest: Manifest, output: Store, tracker: ProgressTracker, ending: Ending, clock: Clock
    ) -> None:
        self._manifest = manifest
        self._output = output
        self._tracker = tracker
        self._ending = ending
        self._clock = clock
        self._progress_lock = threading.Lock()
        self._named: frozenset[str] = frozenset()

    def publish(
        self, chunk: ManifestChunk, transcript: Transcript, voices: ChunkVoices | None = None
    ) -> None:
        """Stores voices, then the transcript; counts an existing one as skipped."""
        data = transcripts.encode(transcript)
        try:
            if voices is not None:
                # Replaced, not created: those of an earlier run may be of other audio.
                self._output.replace(voices_key(chunk.transcript), encode_voices(voices))
            created = self._output.create(chunk.transcript, data) or self._replace_empty(chunk, data)
        except BatchscribeError as error:
            self._fatal_if_misconfigured(error)
            # A permanent refusal, such as a name that is too long, recurs in the next run.
            kind = FailureKind.CHUNK if isinstance(error, PermanentError) else FailureKind.MACHINE
            self.record_failure(chunk, kind, f"its transcript could not be stored: {error}")
            return
        if created:
            self._tracker.record_done(chunk, transcript.duration, transcript.flags)
        else:
            self._tracker.record_skipped()

    def _replace_empty(self, chunk: ManifestChunk, data: bytes) -> bool:
        """Replaces an empty object and records its name; False for a transcript."""
        if self.has_transcript(chunk):
            return False
        # Recorded aside and overwritten, because the worker has no right to delete.
        self._output.create(keys.superseded(chunk.transcript, self._manifest.run), b"")
        self._output.replace(chunk.transcript, data)
        return True

    def has_transcript(self, chunk: ManifestChunk) -> bool:
        """True if the store has its non-empty transcript. Raises what Store.get raises."""
        return is_stored(self._output, chunk.transcript, or_empty=False)

    def record_failure(self, chunk: ManifestChunk, kind: FailureKind, message: str) -> None:
        """Records one failed attempt, in the store and for the exit record."""
        failure = Failure(
            key=chunk.key,
            etag=chunk.etag,
            run=self._manifest.run,
            kind=kind,
            message=message,
            at=self._clock.now(),
            decoder=decoder_version(),
        )
        LOG.warning("chunk.failed", key=chunk.key, kind=kind.value, reason=message)
        try:
            key = keys.attempt(chunk.key, chunk.etag, self._manifest.run)
            self._output.create(key, encode(failure))
        except BatchscribeError as error:
            # The exit record contains it, too; the controller counts from there.
            LOG.warning("attempt.not_stored", key=chunk.key, reason=str(error))
            self._fatal_if_misconfigured(error)
        self._tracker.record_failed(failure)

    def _fatal_if_misconfigured(self, error: BatchscribeError) -> None:
        if isinstance(error, MisconfiguredError):
            self._ending.fail(error)

    def write_progress(self) -> None:
        """Replaces the progress object; only logs a failure: another one follows."""
        with self._progress_lock:
            self._store_progress()

    def announce_chunks(self, keys: Iterable[str]) -> None:
        """Names chunks in flight in the stored progress, if possible.

        If the worker dies, the progress shows which chunks may have killed it.
        """
        with self._progress_lock:
            if not self._named.issuperset(keys):
                self._store_progress()

    def _store_progress(self) -> None:
        key = keys.progress(self._manifest.run, self._manifest.worker)
        progress = self._tracker.make_progress()
        try:
            self._output.replace(key, encode(progress))
        except BatchscribeError as error:
            LOG.warning("progress.not_stored", reason=str(error))
            self._named = frozenset()
        else:
            self._named = frozenset(progress.in_flight)

    def write_exit_record(self, record: ExitRecord) -> None:
        """Writes the exit record, once. Raises what Store.create raises."""
        key = keys.exit_record(record.run, record.worker)
        if not self._output.create(key, encode(record)):
            LOG.warning("exit.exists", key=key)


class Reporter:
    """Thread that writes the progress regularly and on request, then calls `poll`.

    The store's answers delay neither the model's loading nor the exit record: paid time passes.
    """

    def __init__(self, records: Records, seconds: float, poll: Callable[[], None]) -> None:
        self._records = records
        self._poll = poll
        self._seconds = seconds
        self._due = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._report_until_closed, name="progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _report_until_closed(self) -> None:
        while not self._closed:
            self._records.write_progress()
            self._poll()
            self._due.wait(self._seconds)
            self._due.clear()
        self._records.write_progress()

    def request_report(self) -> None:
        """Requests a progress report; returns at once."""
        self._due.set()

    def close(self) -> None:
        """Requests the last report and the thread's end; returns at once."""
        self._closed = True
        self._due.set()

    def join(self) -> None:
        self._thread.join()
