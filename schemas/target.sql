-- What changeover keeps on the target. Everything of one migration is removed by `changeover abort` and
-- `changeover complete`; the schema goes with its last migration.
CREATE SCHEMA IF NOT EXISTS changeover;

-- One row a migration: which source it belongs to and how far the whole has come.
CREATE TABLE IF NOT EXISTS changeover.migration (
    name               text PRIMARY KEY,
    -- preparing, copying, indexing, catching_up, streaming, cut_over
    phase              text NOT NULL,
    system_identifier  text NOT NULL,
    timeline           integer NOT NULL,
    slot               text NOT NULL,
    slot_is_ours       boolean NOT NULL,
    publication        text NOT NULL,
    publication_is_ours boolean NOT NULL,
    -- Where the slot begins: no sink starts before this. NULL until the slot exists.
    consistent_point   pg_lsn,
    -- Raised by each daemon that starts. A daemon whose epoch is no longer the row's stops before it commits anything.
    epoch              bigint NOT NULL DEFAULT 0,
    created_at         timestamptz NOT NULL DEFAULT now()
);

-- The target's own position in the source's stream, written in the transaction that holds the rows.
CREATE TABLE IF NOT EXISTS changeover.position (
    migration     text NOT NULL,
    lane          integer NOT NULL,
    epoch         bigint NOT NULL,
    commit_end    pg_lsn NOT NULL,
    committed_at  timestamptz,
    PRIMARY KEY (migration, lane)
) WITH (fillfactor = 10);

-- One row a table (and part of a table) whose copy is finished, written in the transaction that holds its rows.
CREATE TABLE IF NOT EXISTS changeover.unit (
    migration     text NOT NULL,
    table_schema  text NOT NULL,
    table_name    text NOT NULL,
    part          integer NOT NULL,
    -- pg_current_snapshot() the rows were read under, and the end of the source's log just after it was taken.
    snapshot      text NOT NULL,
    until         pg_lsn NOT NULL,
    row_count     bigint NOT NULL,
    byte_count    bigint NOT NULL,
    -- Set on part 0 when every part of the table is there.
    complete      boolean NOT NULL DEFAULT false,
    finished_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration, table_schema, table_name, part)
);

-- One row a table that is copied in parts: how it was cut, so that whoever goes on after a crash cuts it alike.
CREATE TABLE IF NOT EXISTS changeover.split (
    migration     text NOT NULL,
    table_schema  text NOT NULL,
    table_name    text NOT NULL,
    part_count    integer NOT NULL,
    block_count   bigint NOT NULL,
    -- pg_relation_filenode() on the source. Another one: it was truncated or rewritten, and its blocks hold other rows.
    filenode      bigint NOT NULL,
    -- pg_current_snapshot() of the first part. Parts read under a later one leave out what has been written since.
    base          text NOT NULL,
    PRIMARY KEY (migration, table_schema, table_name)
);

-- One row a schema statement that is done, written in the statement's own transaction.
CREATE TABLE IF NOT EXISTS changeover.step (
    migration    text NOT NULL,
    step         text NOT NULL,
    finished_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration, step)
);

-- Raised whenever the tables are divided among the lanes anew: an applier that does not know of it commits nothing more.
ALTER TABLE changeover.position ADD COLUMN IF NOT EXISTS generation bigint NOT NULL DEFAULT 0;

-- One row a table of the migration, partitioned ones included.
CREATE TABLE IF NOT EXISTS changeover.member (
    migration     text NOT NULL,
    table_schema  text NOT NULL,
    table_name    text NOT NULL,
    -- Which row of changeover.position its changes are applied with: 0, or 1 while it is set apart to be copied again.
    lane          integer NOT NULL DEFAULT 0,
    -- set_apart, ready, copied, merged; NULL when nothing is under way.
    step          text,
    -- It joined after the migration had begun.
    added         boolean NOT NULL DEFAULT false,
    -- What ends at or before this was applied to it by the other lane.
    after         pg_lsn,
    PRIMARY KEY (migration, table_schema, table_name)
);

-- One row a partitioned table that the target partitions otherwise: its partitions are no tables of the migration, and
-- everything is recorded under its own name.
CREATE TABLE IF NOT EXISTS changeover.gathered (
    migration     text NOT NULL,
    table_schema  text NOT NULL,
    table_name    text NOT NULL,
    PRIMARY KEY (migration, table_schema, table_name)
);

-- One row a change that the target refused, where apply.refused_rows = "dead-letter"; written in the transaction that it
-- belongs to. `changeover resync` of its table removes it.
CREATE TABLE IF NOT EXISTS changeover.dead_letter (
    migration     text NOT NULL,
    -- End of the source transaction's commit record, and which of its changes.
    commit_end    pg_lsn NOT NULL,
    ordinal       bigint NOT NULL,
    xid           bigint NOT NULL,
    committed_at  timestamptz NOT NULL,
    table_schema  text NOT NULL,
    table_name    text NOT NULL,
    -- insert, update, delete
    op            text NOT NULL,
    -- 22012: the table does not hold exactly one such row.
    sqlstate      text NOT NULL,
    reason        text NOT NULL,
    -- Values in their text form by column. What the stream did not carry is missing; both are NULL where it carried none.
    old           jsonb,
    new           jsonb,
    set_aside_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (migration, commit_end, ordinal, table_schema, table_name)
);

-- Who else has written to the migration's tables on the target, and when last. The trigger on each table writes notes, in the
-- writer's own transaction, which are folded by the daemon.
CREATE TABLE IF NOT EXISTS changeover.stranger (
    migration     text NOT NULL,
    table_schema  text NOT NULL,
    table_name    text NOT NULL,
    role          text NOT NULL,
    application   text NOT NULL,
    address       text NOT NULL,
    last_at       timestamptz NOT NULL,
    PRIMARY KEY (migration, table_schema, table_name, role, application, address)
);
CREATE TABLE IF NOT EXISTS changeover.stranger_note (
    migration     text NOT NULL,
    table_schema  text NOT NULL,
    table_name    text NOT NULL,
    role          text NOT NULL,
    application   text NOT NULL,
    address       text NOT NULL,
    at            timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The cutover's durable record. The row with step 'committed' is the commit point.
CREATE TABLE IF NOT EXISTS changeover.journal (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration  text NOT NULL,
    attempt    integer NOT NULL,
    step       text NOT NULL,
    detail     jsonb NOT NULL DEFAULT '{}',
    at         timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS journal_by_migration ON changeover.journal (migration, attempt, id);
