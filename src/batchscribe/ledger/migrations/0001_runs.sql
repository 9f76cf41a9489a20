-- Times are UTC, ISO 8601 with microseconds, so that they sort as text. Money is whole micro-dollars.

CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    outcome TEXT,
    created TEXT NOT NULL,
    settled TEXT,
    cost_micros INTEGER NOT NULL,
    document TEXT NOT NULL
) STRICT;

CREATE INDEX runs_open ON runs (created) WHERE settled IS NULL;
CREATE INDEX runs_settled ON runs (settled);

CREATE TABLE run_events (
    id INTEGER PRIMARY KEY,
    run TEXT NOT NULL REFERENCES runs (id),
    at TEXT NOT NULL,
    state TEXT NOT NULL,
    note TEXT NOT NULL
) STRICT;

CREATE INDEX run_events_of_run ON run_events (run, id);

CREATE TABLE samples (
    id INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    pending INTEGER NOT NULL,
    triggering INTEGER NOT NULL,
    waiting INTEGER NOT NULL,
    oldest TEXT,
    decision TEXT NOT NULL,
    sentence TEXT NOT NULL,
    numbers TEXT NOT NULL
) STRICT;

CREATE INDEX samples_at ON samples (at);

CREATE TABLE lessons (
    run TEXT PRIMARY KEY,
    engine TEXT NOT NULL,
    model TEXT NOT NULL,
    instance_type TEXT NOT NULL,
    at TEXT NOT NULL,
    speed REAL,
    setup_seconds REAL,
    release_seconds REAL
) STRICT;

CREATE INDEX lessons_of ON lessons (engine, model, instance_type, at);

CREATE TABLE lesson_bytes (
    run TEXT NOT NULL REFERENCES lessons (run) ON DELETE CASCADE,
    type TEXT NOT NULL,
    bytes_per_second REAL NOT NULL,
    PRIMARY KEY (run, type)
) STRICT;

CREATE TABLE facts (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE alerts (
    key TEXT PRIMARY KEY,
    at TEXT NOT NULL
) STRICT;
