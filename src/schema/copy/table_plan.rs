//! What is to be built on each table, and in which order. Pure.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::worker::{Step, left_of};
use crate::model::TableName;
use crate::schema::dump::Entry;
use crate::schema::{Catalog, Table, TableKind};

const NOT_NULL_INHERITS_SINCE: u32 = 180_000;

/// Everything of the post-data section that belongs to the tables themselves.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) tables: Vec<TablePlan>,
    /// Of partitions' indexes to those of their roots, when all of them are there.
    pub(super) attach: Vec<Step>,
}

#[derive(Clone, Debug)]
pub(super) struct TablePlan {
    pub(super) table: TableName,
    pub(super) size_bytes: u64,
    /// It has rows of its own, which must be there first.
    pub(super) holds_rows: bool,
    /// Its keys are built as indexes first, and made keys afterwards.
    pub(super) keys_in_two: bool,
    /// Its direct partitions: what is done here locks them, or looks at their rows.
    pub(super) partitions: BTreeSet<TableName>,
    /// Indexes. A build takes a SHARE lock, so they may be built side by side.
    pub(super) build: Vec<Step>,
    /// One after the other, once every index is there: what takes the table for itself (keys, and what names an index of
    /// it), then statistics objects, then `ANALYZE`, which fills them.
    pub(super) then: Vec<Step>,
}

impl Plan {
    pub(super) fn of(entries: &[Entry], catalog: &Catalog) -> Self {
        let mut tables: BTreeMap<&TableName, TablePlan> =
            catalog.tables.iter().map(|table| (&table.name, TablePlan::of(table, catalog))).collect();
        for table in &catalog.tables {
            let parent = table.partition.as_ref().and_then(|partition| tables.get_mut(&partition.parent));
            if let Some(parent) = parent {
                parent.partitions.insert(table.name.clone());
            }
        }
        let mut attach = Vec::new();
        let mut statistics = Vec::new();
        for entry in entries.iter().filter(|entry| is_index_entry(entry, catalog)) {
            match (entry.kind.as_str(), entry.relation()) {
                ("STATISTICS", _) => statistics.push(entry),
                (_, Some(relation)) => tables.get_mut(&relation).expect("entries of others are left out").take(entry),
                (_, None) => attach.push(Step::of(entry)),
            }
        }
        for entry in statistics {
            let table = entry.statistics_relation().and_then(|relation| tables.get_mut(&relation));
            let table = table.expect("entries of others are left out");
            table.then.push(Step { relation: Some(table.table.clone()), ..Step::of(entry) });
        }
        for table in catalog.tables.iter().filter(|table| is_analyzed_by_itself(table, catalog)) {
            tables.get_mut(&table.name).expect("every table has a plan").then.push(analyze(table));
        }
        Self { tables: tables.into_values().collect(), attach }
    }

    pub(super) fn len(&self) -> usize {
        let tables = self.tables.iter().map(|table| table.build.len() + table.then.len());
        tables.sum::<usize>() + self.attach.len()
    }

    /// Without what is recorded as done.
    pub(super) fn left(self, done: &HashSet<String>) -> Self {
        let tables = self.tables.into_iter().map(|table| TablePlan {
            build: left_of(table.build, done),
            then: left_of(table.then, done),
            ..table
        });
        Self { tables: tables.collect(), attach: left_of(self.attach, done) }
    }
}

impl TablePlan {
    fn of(table: &Table, catalog: &Catalog) -> Self {
        Self {
            table: table.name.clone(),
            size_bytes: table.size_bytes,
            holds_rows: table.kind == TableKind::Ordinary,
            keys_in_two: has_keys_in_two(table, catalog),
            partitions: BTreeSet::new(),
            build: Vec::new(),
            then: Vec::new(),
        }
    }

    fn take(&mut self, entry: &Entry) {
        let (build, after) = divided(entry, self.keys_in_two);
        self.build.extend(build);
        self.then.extend(after);
    }
}

/// From PostgreSQL 18 on, NOT NULL is a constraint, and a key made of an index declares those of its columns anew: what a
/// table had only inherited would then be its own.
fn has_keys_in_two(table: &Table, catalog: &Catalog) -> bool {
    let inherits = table.partition.is_some() || !table.inherits.is_empty();
    table.kind == TableKind::Ordinary && !(inherits && catalog.server_version_num >= NOT_NULL_INHERITS_SINCE)
}

/// The steps that an index's or constraint's entry becomes: a build, and what follows its first statement (CLUSTER ON,
/// REPLICA IDENTITY, columns' statistics targets). That needs a stronger lock than the build. Asked for in the build's
/// transaction, it would wait for the other builds, which wait for it likewise, and cost an index when one gives up.
fn divided(entry: &Entry, keys_in_two: bool) -> (Option<Step>, Option<Step>) {
    let mut after = Step::of(entry);
    let build = match entry.kind.as_str() {
        "INDEX" => {
            let rest = after.statements.split_off(1);
            let build = Step { statements: std::mem::replace(&mut after.statements, rest), ..after.clone() };
            after.title = format!("SETTINGS OF {}", after.title);
            Some(build)
        }
        _ => entry.key_in_two().filter(|_| keys_in_two).map(|key| {
            after.statements[0] = key.attach;
            let schema = entry.schema.as_deref().unwrap_or("public");
            Step { title: format!("INDEX {schema}.{}", key.name), statements: vec![key.build], ..after.clone() }
        }),
    };
    (build, Some(after).filter(|after| !after.statements.is_empty()))
}

/// The same for whoever has to know what is recorded of an entry.
pub(super) fn steps_of(entry: &Entry, catalog: &Catalog) -> Vec<Step> {
    let table = entry.relation().and_then(|relation| catalog.table(&relation));
    match entry.kind.as_str() {
        "INDEX" | "CONSTRAINT" => {
            let (build, after) = divided(entry, table.is_some_and(|table| has_keys_in_two(table, catalog)));
            build.into_iter().chain(after).collect()
        }
        _ => vec![Step::of(entry)],
    }
}

/// Whether an entry of the post-data section belongs here and not to [`super::copy_post_data`]. Those of materialised
/// views do not: the view itself may come later.
pub(super) fn is_index_entry(entry: &Entry, catalog: &Catalog) -> bool {
    let known = |relation: Option<TableName>| relation.is_some_and(|relation| catalog.table(&relation).is_some());
    match entry.kind.as_str() {
        "INDEX ATTACH" => true,
        "INDEX" | "CONSTRAINT" => known(entry.relation()),
        "STATISTICS" => known(entry.statistics_relation()),
        _ => false,
    }
}

/// A partitioned table's `ANALYZE` takes its partitions along.
fn is_analyzed_by_itself(table: &Table, catalog: &Catalog) -> bool {
    table.partition.as_ref().is_none_or(|partition| catalog.table(&partition.parent).is_none())
}

pub(super) fn analyze(table: &Table) -> Step {
    Step {
        title: format!("ANALYZE {}", table.name),
        statements: vec![format!("ANALYZE {}", table.name.quoted())],
        relation: Some(table.name.clone()),
        ..Step::default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::schema::dump::Dump;
    use crate::schema::{Database, Partition};

    pub(in crate::schema::copy) fn catalog(tables: &[(&str, u64, Option<&str>, TableKind)]) -> Catalog {
        let mut tables: Vec<Table> =
            tables.iter().map(|(name, size, parent, kind)| table(name, *size, *parent, *kind)).collect();
        tables.sort_by(|one, other| one.name.cmp(&other.name));
        let text = String::new;
        Catalog {
            server_version_num: 150_000,
            database: Database { name: text(), encoding: text(), collate: text(), ctype: text(), locale: None },
            tables,
            not_streamed: Vec::new(),
            sequences: Vec::new(),
            extensions: Vec::new(),
            large_object_count: 0,
        }
    }

    fn table(name: &str, size_bytes: u64, parent: Option<&str>, kind: TableKind) -> Table {
        let partition =
            parent.map(|parent| Partition { parent: TableName::new("public", parent), bounds: "DEFAULT".to_owned() });
        Table { kind, partition, size_bytes, ..Table::sample(TableName::new("public", name)) }
    }

    /// As pg_dump 15 writes it, without what does not matter here.
    const DUMP: &str = "
--
-- Name: root root_pkey; Type: CONSTRAINT; Schema: public; Owner: me
--

ALTER TABLE ONLY public.root
    ADD CONSTRAINT root_pkey PRIMARY KEY (id);

--
-- Name: leaf leaf_pkey; Type: CONSTRAINT; Schema: public; Owner: me
--

ALTER TABLE ONLY public.leaf
    ADD CONSTRAINT leaf_pkey PRIMARY KEY (id);

--
-- Name: t t_during; Type: CONSTRAINT; Schema: public; Owner: me
--

ALTER TABLE ONLY public.t
    ADD CONSTRAINT t_during EXCLUDE USING gist (during WITH &&);

--
-- Name: t t_u; Type: CONSTRAINT; Schema: public; Owner: me
--

ALTER TABLE ONLY public.t
    ADD CONSTRAINT t_u UNIQUE (a);

ALTER TABLE public.t CLUSTER ON t_u;

ALTER TABLE ONLY public.t REPLICA IDENTITY USING INDEX t_u;

--
-- Name: t_s; Type: STATISTICS; Schema: public; Owner: me
--

CREATE STATISTICS public.t_s ON a, b FROM public.t;

ALTER STATISTICS public.t_s OWNER TO me;

--
-- Name: t_expr; Type: INDEX; Schema: public; Owner: me
--

CREATE INDEX t_expr ON public.t USING btree (((a + 1)));
ALTER INDEX public.t_expr ALTER COLUMN 1 SET STATISTICS 500;

--
-- Name: t_plain; Type: INDEX; Schema: public; Owner: me
--

CREATE INDEX t_plain ON public.t USING btree (b);

--
-- Name: other_pkey; Type: INDEX; Schema: public; Owner: me
--

CREATE INDEX other ON public.not_ours USING btree (b);

--
-- Name: leaf_pkey; Type: INDEX ATTACH; Schema: public; Owner: me
--

ALTER INDEX public.root_pkey ATTACH PARTITION public.leaf_pkey;

--
-- Name: t t_note; Type: TRIGGER; Schema: public; Owner: me
--

CREATE TRIGGER t_note BEFORE INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.f();
";

    fn plan() -> Plan {
        let catalog = catalog(&[
            ("root", 0, None, TableKind::Partitioned),
            ("leaf", 10, Some("root"), TableKind::Ordinary),
            ("t", 20, None, TableKind::Ordinary),
        ]);
        Plan::of(&Dump::parse(DUMP).unwrap().entries, &catalog)
    }

    fn titles(steps: &[Step]) -> Vec<&str> {
        steps.iter().map(|step| step.title.as_str()).collect()
    }

    #[test]
    fn indexes_come_first_and_what_takes_the_table_for_itself_after_them() {
        let plan = plan();
        let t = plan.tables.iter().find(|table| table.table.name == "t").unwrap();
        assert_eq!(titles(&t.build), ["INDEX public.t_u", "INDEX public.t_expr", "INDEX public.t_plain"]);
        assert_eq!(
            titles(&t.then),
            [
                "CONSTRAINT public.t t_during",
                "CONSTRAINT public.t t_u",
                "SETTINGS OF INDEX public.t_expr",
                "STATISTICS public.t_s",
                "ANALYZE public.t"
            ]
        );
        let build: Vec<usize> = t.build.iter().map(|step| step.statements.len()).collect();
        assert_eq!(build, [1, 1, 1], "a build takes no other lock than its own");
        assert_eq!(
            t.then[1].statements,
            [
                "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT t_u UNIQUE USING INDEX t_u",
                "ALTER TABLE public.t CLUSTER ON t_u",
                "ALTER TABLE ONLY public.t REPLICA IDENTITY USING INDEX t_u"
            ]
        );
        assert!(t.then.iter().all(|step| step.relation.is_some()), "every lock has a table to name");
    }

    #[test]
    fn a_partitioned_table_waits_for_its_partitions_and_is_analyzed_for_them() {
        let plan = plan();
        let of = |name: &str| plan.tables.iter().find(|table| table.table.name == name).unwrap();
        assert_eq!(of("root").partitions, BTreeSet::from([TableName::new("public", "leaf")]));
        assert_eq!(
            (titles(&of("root").build), titles(&of("root").then)),
            (vec![], vec!["CONSTRAINT public.root root_pkey", "ANALYZE public.root"])
        );
        assert_eq!(
            (titles(&of("leaf").build), titles(&of("leaf").then)),
            (vec!["INDEX public.leaf_pkey"], vec!["CONSTRAINT public.leaf leaf_pkey"])
        );
        assert_eq!(titles(&plan.attach), ["INDEX ATTACH public.leaf_pkey"]);
    }

    #[test]
    fn what_is_recorded_is_left_out() {
        let all = plan();
        assert_eq!(all.len(), 13);
        let done = all.tables.iter().flat_map(|table| &table.build).map(Step::key).collect();
        let left = plan().left(&done);
        assert_eq!(left.len(), 13 - 4);
        assert!(left.tables.iter().all(|table| table.build.is_empty()));
    }
}
