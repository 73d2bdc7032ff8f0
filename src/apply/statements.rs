//! The statements that a layer becomes, with its rows as their parameters.

use std::collections::BTreeMap;
use std::iter::repeat_n;

use bytes::BytesMut;

use crate::model::{Datum, Tuple};

use super::encode::{self, INT8, TEXT, Unwritable};
use super::error::Error;
use super::fold::{Layer, Run, Truncate};
use super::key::Present;
use super::near::{self, Stretch};
use super::net::{Net, NetRow};
use super::session::{Script, Statement, Target};
use super::split::Rows;
use super::sql::{self, Reach, Shape};
use super::table::Table;

/// From this many rows on, COPY is cheaper than arrays: it parses less and writes whole pages of rows to the log, but
/// costs more to begin.
const COPY_ROWS_MIN: usize = 64;

impl Target {
    /// The statements of one layer, in the order that frees unique values before they are taken.
    pub(super) fn layer<L: Copy>(&mut self, script: &mut Script<L>, layer: &Layer, label: L) -> Result<(), Error> {
        self.share_of(script, layer, Rows::All, label)
    }

    /// The same for some rows of a layer, where it is a net.
    pub(super) fn share_of<L: Copy>(
        &mut self,
        script: &mut Script<L>,
        layer: &Layer,
        rows: Rows<'_>,
        label: L,
    ) -> Result<(), Error> {
        match layer {
            Layer::Net { table, net } => self.net(script, table, net, rows, label),
            Layer::Run { table, run } => self.run(script, table, run, label),
            Layer::Truncate(truncate) => {
                self.truncate(script, truncate, label);
                Ok(())
            }
        }
    }

    fn net<L: Copy>(
        &mut self,
        script: &mut Script<L>,
        table: &Table,
        net: &Net,
        rows: Rows<'_>,
        label: L,
    ) -> Result<(), Error> {
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        let mut changed: BTreeMap<Present, Vec<&Tuple>> = BTreeMap::new();
        let sorted = if table.sortable { net.places_by_key() } else { (0..net.rows().len()).collect() };
        for at in sorted.into_iter().filter(|at| rows.has(*at)) {
            match &net.rows()[at] {
                NetRow::Updated(row) => changed.entry(Present::of(row)).or_default().push(row),
                NetRow::Deleted(row) => gone.push(row),
                NetRow::Replaced(row) => {
                    gone.push(row);
                    new.push(row);
                }
                NetRow::Inserted(row) => new.push(row),
                NetRow::Passed => {}
            }
        }
        self.delete(script, table, &gone, label)?;
        for (present, rows) in &changed {
            self.update(script, table, present, rows, label)?;
        }
        self.insert(script, table, &new, label)
    }

    fn run<L: Copy>(&mut self, script: &mut Script<L>, table: &Table, run: &Run, label: L) -> Result<(), Error> {
        let all = |rows| Vec::from_iter::<std::slice::Iter<'_, Tuple>>(rows);
        match run {
            Run::Insert(rows) => self.insert(script, table, &all(rows.iter()), label),
            Run::Delete(rows) => self.delete(script, table, &all(rows.iter()), label),
            Run::Update { present, rows, .. } => self.update(script, table, present, &all(rows.iter()), label),
            Run::Move { present, rows, .. } => self.move_rows(script, table, present, rows, label),
            Run::UpdateOne { old, new } => self.update_one(script, table, old, new, label),
            Run::DeleteOne { old } => self.delete_one(script, table, old, label),
        }
    }

    fn insert<L>(&mut self, script: &mut Script<L>, table: &Table, rows: &[&Tuple], label: L) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        // A table without columns has no arrays to unnest.
        if table.copies && (rows.len() >= COPY_ROWS_MIN || table.columns.is_empty()) {
            return self.copy(script, table, rows, label);
        }
        let count = table.columns.len();
        self.columns.start(table.columns.iter().map(|column| column.travels_as));
        for row in rows {
            self.columns.add(row, &table.relation.columns, 0, |_| true).map_err(|why| unwritable(table, why))?;
            self.columns.end_row();
        }
        let types = self.columns.types().collect();
        let name = self.shape(script, table, Shape::Insert, types);
        encode::bind_execute(&mut script.out, &name, count, |out| self.columns.write_arrays(out));
        script.labels.push(label);
        Ok(())
    }

    fn copy<L>(&mut self, script: &mut Script<L>, table: &Table, rows: &[&Tuple], label: L) -> Result<(), Error> {
        let shape = if table.binary_copy { Shape::CopyBinary } else { Shape::Copy };
        let name = self.shape(script, table, shape, Vec::new());
        encode::bind_execute(&mut script.out, &name, 0, |_| {});
        let rows = rows.iter().copied();
        let written = if table.binary_copy {
            encode::copy_rows_binary(&mut script.out, rows)
        } else {
            encode::copy_rows(&mut script.out, rows, &table.relation.columns)
        };
        written.map_err(|why| unwritable(table, why))?;
        script.labels.push(label);
        Ok(())
    }

    fn update<L: Copy>(
        &mut self,
        script: &mut Script<L>,
        table: &Table,
        present: &Present,
        rows: &[&Tuple],
        label: L,
    ) -> Result<(), Error> {
        if !sql::sets_anything(table, present) {
            return Ok(());
        }
        let used = sql::update_columns(table, present);
        self.columns.start(types_of(table, (0..used.len()).filter(|at| used[*at])));
        for row in rows {
            self.columns.add(row, &table.relation.columns, 0, |at| used[at]).map_err(|why| unwritable(table, why))?;
            self.columns.end_row();
        }
        let shape = |reach| Shape::Update(present.clone(), reach);
        self.counted_set(script, table, shape, rows, label);
        Ok(())
    }

    fn move_rows<L>(
        &mut self,
        script: &mut Script<L>,
        table: &Table,
        present: &Present,
        rows: &[(Tuple, Tuple)],
        label: L,
    ) -> Result<(), Error> {
        let key = sql::key_columns(table);
        let set = (0..table.columns.len()).filter(|at| present.has(*at));
        self.columns.start(types_of(table, key.iter().copied().chain(set)));
        for (old, new) in rows {
            let next = self
                .columns
                .add(old, &table.relation.columns, 0, |at| key.contains(&at))
                .map_err(|why| unwritable(table, why))?;
            self.columns
                .add(new, &table.relation.columns, next, |at| present.has(at))
                .map_err(|why| unwritable(table, why))?;
            self.columns.end_row();
        }
        self.counted(script, table, Shape::Move(present.clone()), &[], rows.len(), label);
        Ok(())
    }

    fn delete<L: Copy>(
        &mut self,
        script: &mut Script<L>,
        table: &Table,
        rows: &[&Tuple],
        label: L,
    ) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let key = sql::key_columns(table);
        self.columns.start(types_of(table, key.iter().copied()));
        for row in rows {
            self.columns
                .add(row, &table.relation.columns, 0, |at| key.contains(&at))
                .map_err(|why| unwritable(table, why))?;
            self.columns.end_row();
        }
        self.counted_set(script, table, Shape::Delete, rows, label);
        Ok(())
    }

    fn update_one<L>(
        &mut self,
        script: &mut Script<L>,
        table: &Table,
        old: &Tuple,
        new: &Tuple,
        label: L,
    ) -> Result<(), Error> {
        let (present, nulls) = (Present::of(new), nulls_of(old));
        let set = (0..table.columns.len()).filter(|at| present.has(*at)).count();
        if set == 0 {
            return Ok(());
        }
        self.columns.start(repeat_n(TEXT, nulls.iter().filter(|null| !**null).count() + set));
        let next =
            self.columns.add(old, &table.relation.columns, 0, |at| !nulls[at]).map_err(|why| unwritable(table, why))?;
        self.columns
            .add(new, &table.relation.columns, next, |at| present.has(at))
            .map_err(|why| unwritable(table, why))?;
        self.counted_one(script, table, Shape::UpdateOne { present, nulls }, label);
        Ok(())
    }

    fn delete_one<L>(&mut self, script: &mut Script<L>, table: &Table, old: &Tuple, label: L) -> Result<(), Error> {
        let nulls = nulls_of(old);
        self.columns.start(repeat_n(TEXT, nulls.iter().filter(|null| !**null).count()));
        self.columns.add(old, &table.relation.columns, 0, |at| !nulls[at]).map_err(|why| unwritable(table, why))?;
        self.counted_one(script, table, Shape::DeleteOne { nulls }, label);
        Ok(())
    }

    /// The same as [`Self::counted`], and neighbours are found in one pass.
    fn counted_set<L: Copy>(
        &mut self,
        script: &mut Script<L>,
        table: &Table,
        shape: impl FnOnce(Reach) -> Shape,
        rows: &[&Tuple],
        label: L,
    ) {
        let Some(Stretch { low, high }) = Stretch::of(table, rows) else {
            self.counted(script, table, shape(Reach::Anywhere), &[], rows.len(), label);
            return;
        };
        self.fixed(script, near::BY_PASS, label);
        self.counted(script, table, shape(Reach::Between), &[low, high], rows.len(), label);
        self.fixed(script, near::BY_DESCENTS, label);
    }

    /// A statement whose parameters are the collected columns, the ends between which it looks, and the count of rows it must find.
    fn counted<L>(&mut self, script: &mut Script<L>, table: &Table, shape: Shape, ends: &[i64], rows: usize, label: L) {
        let count = self.columns.count() + ends.len();
        let types = self.columns.types().chain(repeat_n(INT8, ends.len()));
        if script.checks_here() {
            let types = types.collect();
            let text = || (sql::uncounted_text_of(table, &shape), types);
            let name = self.prepared(script, Statement::Uncounted(table.id, shape.clone()), text);
            encode::bind_execute(&mut script.out, &name, count, |out| self.write_set(out, ends));
            script.expect(rows);
            script.labels.push(label);
            return;
        }
        let types = types.chain([INT8]).collect();
        let name = self.shape(script, table, shape, types);
        encode::bind_execute(&mut script.out, &name, count + 1, |out| {
            self.write_set(out, ends);
            encode::put_int8(out, i64::try_from(rows).expect("a group's rows fit memory"));
        });
        script.labels.push(label);
    }

    fn write_set(&self, out: &mut BytesMut, ends: &[i64]) {
        self.columns.write_arrays(out);
        for end in ends {
            encode::put_int8(out, *end);
        }
    }

    fn counted_one<L>(&mut self, script: &mut Script<L>, table: &Table, shape: Shape, label: L) {
        self.columns.end_row();
        let count = self.columns.count();
        let name = self.shape(script, table, shape, [vec![TEXT; count], vec![INT8]].concat());
        encode::bind_execute(&mut script.out, &name, count + 1, |out| {
            self.columns.write_values(out);
            encode::put_int8(out, 1);
        });
        script.labels.push(label);
    }

    fn truncate<L: Copy>(&mut self, script: &mut Script<L>, truncate: &Truncate, label: L) {
        for statement in sql::truncate(truncate) {
            encode::parse(&mut script.out, "", &statement, &[]);
            encode::bind_execute(&mut script.out, "", 0, |_| {});
            script.labels.push(label);
        }
    }

    fn shape<L>(&mut self, script: &mut Script<L>, table: &Table, shape: Shape, types: Vec<u32>) -> String {
        let text = || (sql::text_of(table, &shape), types);
        self.prepared(script, Statement::Of(table.id, shape.clone()), text)
    }
}

fn nulls_of(tuple: &Tuple) -> Box<[bool]> {
    tuple.iter().map(|datum| datum == Datum::Null).collect()
}

fn types_of(table: &Table, columns: impl Iterator<Item = usize>) -> impl Iterator<Item = u32> {
    columns.map(|at| table.columns[at].travels_as)
}

fn unwritable(table: &Table, why: Unwritable) -> Error {
    let table = table.relation.name.clone();
    match why {
        Unwritable::Binary => Error::BinaryValue { table },
        Unwritable::Unchanged => Error::Incomplete { table },
    }
}
