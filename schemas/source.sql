-- What changeover keeps on the source, and only from the start of a cutover on. Removed by `changeover abort` and
-- `changeover complete`; the schema goes with its last migration.
CREATE SCHEMA IF NOT EXISTS changeover;

-- The cutover's record beside the fence. It decides nothing: the owner of the writes is the target's row `committed`.
CREATE TABLE IF NOT EXISTS changeover.journal (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration  text NOT NULL,
    attempt    integer NOT NULL,
    step       text NOT NULL,
    detail     jsonb NOT NULL DEFAULT '{}',
    at         timestamptz NOT NULL DEFAULT clock_timestamp()
);
