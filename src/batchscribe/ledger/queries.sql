-- name: save_run
INSERT INTO runs (id, state, outcome, created, settled, cost_micros, document)
VALUES (:id, :state, :outcome, :created, :settled, :cost_micros, :document)
ON CONFLICT (id) DO UPDATE SET
    state = excluded.state,
    outcome = excluded.outcome,
    created = excluded.created,
    settled = excluded.settled,
    cost_micros = excluded.cost_micros,
    document = excluded.document;

-- name: save_event
INSERT INTO run_events (run, at, state, note) VALUES (:run, :at, :state, :note);

-- name: run
SELECT document FROM runs WHERE id = :id;

-- name: open_runs
SELECT document FROM runs WHERE state <> 'settled' ORDER BY created, id;

-- name: runs
SELECT document FROM runs
WHERE settled IS NULL OR settled >= :since
ORDER BY created, id;

-- name: run_page
SELECT document FROM runs
WHERE :outcome IN ('', coalesce(outcome, 'open'))
ORDER BY created DESC, id DESC LIMIT :count OFFSET :skip;

-- name: outcomes
SELECT coalesce(outcome, 'open'), count(*) FROM runs GROUP BY 1 ORDER BY 2 DESC, 1;

-- name: sum_settled
SELECT coalesce(outcome, ''), count(*), sum(cost_micros),
    sum(coalesce(json_extract(document, '$.chunks_done'), 0)),
    sum(coalesce(json_extract(document, '$.chunks_failed'), 0)),
    sum(coalesce(json_extract(document, '$.audio_seconds'), 0.0)),
    sum(coalesce(json_extract(document, '$.abandoned_gpu'), 0))
FROM runs WHERE state = 'settled' GROUP BY 1 ORDER BY 1;

-- name: spent
SELECT coalesce(sum(cost_micros), 0) FROM runs WHERE settled >= :since;

-- name: events
SELECT at, state, note FROM run_events WHERE run = :run ORDER BY id;

-- name: save_sample
INSERT INTO samples (at, pending, triggering, waiting, oldest, decision, sentence, numbers)
VALUES (:at, :pending, :triggering, :waiting, :oldest, :decision, :sentence, :numbers);

-- name: samples
SELECT at, pending, triggering, waiting, oldest, decision, sentence, numbers
FROM samples WHERE at >= :since ORDER BY at, id;

-- name: last_tick
SELECT max(at) FROM (SELECT max(at) AS at FROM samples UNION ALL SELECT max(at) FROM run_events);

-- name: learn
INSERT INTO lessons (run, engine, model, instance_type, at, speed, setup_seconds, release_seconds)
VALUES (:run, :engine, :model, :instance_type, :at, :speed, :setup_seconds, :release_seconds)
ON CONFLICT (run) DO UPDATE SET
    engine = excluded.engine,
    model = excluded.model,
    instance_type = excluded.instance_type,
    at = excluded.at,
    speed = excluded.speed,
    setup_seconds = excluded.setup_seconds,
    release_seconds = excluded.release_seconds;

-- name: forget_bytes
DELETE FROM lesson_bytes WHERE run = :run;

-- name: learn_bytes
INSERT INTO lesson_bytes (run, type, bytes_per_second) VALUES (:run, :type, :bytes_per_second);

-- name: lessons
SELECT speed, setup_seconds, release_seconds FROM lessons
WHERE engine = :engine AND model = :model AND instance_type = :instance_type
ORDER BY at DESC, run DESC LIMIT :last;

-- name: last_engine
SELECT engine, model FROM lessons ORDER BY at DESC, run DESC LIMIT 1;

-- name: speeds
SELECT engine, model, instance_type, speed FROM (
    SELECT engine, model, instance_type, speed,
        row_number() OVER (PARTITION BY engine, model, instance_type ORDER BY at DESC, run DESC) AS nth
    FROM lessons WHERE speed IS NOT NULL
) WHERE nth <= :last ORDER BY engine, model, instance_type;

-- name: lesson_bytes
SELECT type, bytes_per_second FROM (
    SELECT b.type, b.bytes_per_second,
        row_number() OVER (PARTITION BY b.type ORDER BY l.at DESC, l.run DESC) AS nth
    FROM lesson_bytes AS b JOIN lessons AS l ON l.run = b.run
) WHERE nth <= :last;

-- name: forget_sessions
DELETE FROM run_sessions WHERE run = :run;

-- name: save_session
INSERT INTO run_sessions
    (run, session, chunks, audio_seconds, cost_micros, waited_seconds, longest_seconds, late)
VALUES
    (:run, :session, :chunks, :audio_seconds, :cost_micros, :waited_seconds, :longest_seconds, :late);

-- name: sessions
SELECT s.run, s.session, s.chunks, s.audio_seconds, s.cost_micros, s.waited_seconds, s.longest_seconds, s.late
FROM run_sessions AS s JOIN runs AS r ON r.id = s.run
WHERE r.settled >= :since ORDER BY r.created, r.id, s.session;

-- name: get
SELECT value FROM facts WHERE key = :key;

-- name: facts
SELECT key, value FROM facts WHERE substr(key, 1, length(:prefix)) = :prefix ORDER BY key;

-- name: put
INSERT INTO facts (key, value) VALUES (:key, :value)
ON CONFLICT (key) DO UPDATE SET value = excluded.value;

-- name: drop
DELETE FROM facts WHERE key = :key;

-- name: last_alert
SELECT at FROM alerts WHERE key = :key;

-- name: save_alert
INSERT INTO alerts (key, at) VALUES (:key, :at)
ON CONFLICT (key) DO UPDATE SET at = excluded.at;

-- name: prune_samples
DELETE FROM samples WHERE at < :before;

-- name: prune_events
DELETE FROM run_events WHERE at < :before AND run IN (SELECT id FROM runs WHERE settled < :before);

-- name: prune_alerts
DELETE FROM alerts WHERE at < :before;

-- name: prune_facts
DELETE FROM facts WHERE
    CASE substr(key, 1, instr(key, '/'))
        WHEN 'once/' THEN substr(key, 6)
        WHEN 'scan/' THEN substr(key, 6)
        WHEN 'watch/' THEN substr(key, 7, instr(substr(key, 7), '/') - 1)
    END IN (SELECT id FROM runs WHERE settled < :before);
