CREATE TABLE run_sessions (
    run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    session TEXT NOT NULL,
    chunks INTEGER NOT NULL,
    audio_seconds REAL NOT NULL,
    cost_micros INTEGER NOT NULL,
    waited_seconds REAL NOT NULL,
    longest_seconds REAL NOT NULL,
    late INTEGER NOT NULL,
    PRIMARY KEY (run, session)
) STRICT;
