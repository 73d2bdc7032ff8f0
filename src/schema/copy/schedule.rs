//! Which step may be begun now. Pure: tables become ready as their rows arrive, workers take steps and say how they ended.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::table_plan::TablePlan;
use super::worker::Step;
use crate::model::TableName;

/// What a worker does next.
#[derive(Debug)]
pub(super) enum Next {
    Run(TableName, Step),
    /// Nothing may be begun until rows arrive or a step ends.
    Wait,
    /// Nothing is left, or a step has failed and nothing more is to be begun.
    Over,
}

pub(super) struct Schedule {
    jobs: BTreeMap<TableName, Job>,
    /// Those with a step that may be begun now, the largest table first: what ends last should begin first.
    ready: BTreeSet<(Reverse<u64>, TableName)>,
    parents: BTreeMap<TableName, TableName>,
    /// Tables that are ready for their readers, and not yet asked for.
    finished: Vec<TableName>,
    failed: bool,
}

struct Job {
    size_bytes: u64,
    rows: Rows,
    /// Partitions that are not finished.
    partitions: BTreeSet<TableName>,
    build: VecDeque<Step>,
    then: VecDeque<Step>,
    running: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    Awaited,
    There,
}

impl Schedule {
    pub(super) fn new(tables: Vec<TablePlan>) -> Self {
        let parents = tables
            .iter()
            .flat_map(|plan| plan.partitions.iter().map(|partition| (partition.clone(), plan.table.clone())));
        let mut schedule = Self {
            parents: parents.collect(),
            jobs: BTreeMap::new(),
            ready: BTreeSet::new(),
            finished: Vec::new(),
            failed: false,
        };
        let mut names = Vec::with_capacity(tables.len());
        for plan in tables {
            names.push(plan.table.clone());
            schedule.jobs.insert(plan.table.clone(), Job::of(plan));
        }
        for name in names {
            schedule.look_at(&name);
        }
        schedule
    }

    /// Tables whose rows have not arrived.
    pub(super) fn awaited(&self) -> impl Iterator<Item = &TableName> {
        self.jobs.iter().filter(|(_, job)| job.rows == Rows::Awaited).map(|(name, _)| name)
    }

    /// All rows of the table are there and recorded.
    pub(super) fn arrived(&mut self, table: &TableName) {
        if let Some(job) = self.jobs.get_mut(table) {
            job.rows = Rows::There;
            self.look_at(table);
        }
    }

    pub(super) fn next(&mut self) -> Next {
        if self.failed || self.jobs.is_empty() {
            return Next::Over;
        }
        let Some((_, name)) = self.ready.first().cloned() else { return Next::Wait };
        let job = self.jobs.get_mut(&name).expect("only open jobs are ready");
        let step = job.build.pop_front().or_else(|| job.then.pop_front()).expect("a job that is ready has a step");
        job.running += 1;
        self.look_at(&name);
        Next::Run(name, step)
    }

    /// A step of the table has been done.
    pub(super) fn done(&mut self, table: &TableName) {
        let job = self.jobs.get_mut(table).expect("a job is open while a step of it runs");
        job.running -= 1;
        self.look_at(table);
    }

    /// Nothing more is begun. What runs may go on to its end: an index of hours is not thrown away because another one
    /// could not be built.
    pub(super) fn fail(&mut self) {
        self.failed = true;
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Tables finished since the last call.
    pub(super) fn take_finished(&mut self) -> Vec<TableName> {
        std::mem::take(&mut self.finished)
    }

    /// Puts a job where it belongs after it has changed, and those that waited for its end.
    fn look_at(&mut self, name: &TableName) {
        let mut name = name.clone();
        loop {
            let Some(job) = self.jobs.get(&name) else { return };
            let place = (Reverse(job.size_bytes), name.clone());
            if job.may_begin_a_step() {
                self.ready.insert(place)
            } else {
                self.ready.remove(&place)
            };
            if !job.is_finished() {
                return;
            }
            self.jobs.remove(&name);
            self.finished.push(name.clone());
            let Some(parent) = self.parents.get(&name) else { return };
            if let Some(parent) = self.jobs.get_mut(parent) {
                parent.partitions.remove(&name);
            }
            name = parent.clone();
        }
    }
}

impl Job {
    fn of(plan: TablePlan) -> Self {
        Self {
            size_bytes: plan.size_bytes,
            rows: if plan.holds_rows { Rows::Awaited } else { Rows::There },
            partitions: plan.partitions,
            build: plan.build.into(),
            then: plan.then.into(),
            running: 0,
        }
    }

    fn is_open(&self) -> bool {
        self.rows == Rows::There && self.partitions.is_empty()
    }

    fn may_begin_a_step(&self) -> bool {
        self.is_open() && (!self.build.is_empty() || (self.running == 0 && !self.then.is_empty()))
    }

    fn is_finished(&self) -> bool {
        self.is_open() && self.running == 0 && self.build.is_empty() && self.then.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(table: &str, size_bytes: u64, build: &[&str], then: &[&str]) -> TablePlan {
        let steps = |titles: &[&str]| {
            titles.iter().map(|title| Step { title: (*title).to_owned(), ..Step::default() }).collect()
        };
        TablePlan {
            table: name(table),
            size_bytes,
            holds_rows: true,
            keys_in_two: true,
            partitions: BTreeSet::new(),
            build: steps(build),
            then: steps(then),
        }
    }

    fn name(table: &str) -> TableName {
        TableName::new("public", table)
    }

    fn take(schedule: &mut Schedule) -> Option<(TableName, String)> {
        match schedule.next() {
            Next::Run(table, step) => Some((table, step.title)),
            Next::Wait | Next::Over => None,
        }
    }

    fn titles(schedule: &mut Schedule) -> Vec<String> {
        std::iter::from_fn(|| take(schedule)).map(|(_, title)| title).collect()
    }

    #[test]
    fn a_table_is_begun_when_its_rows_are_there_and_not_before() {
        let mut schedule = Schedule::new(vec![plan("small", 1, &["s1"], &[]), plan("large", 9, &["l1", "l2"], &[])]);
        assert!(matches!(schedule.next(), Next::Wait));
        schedule.arrived(&name("small"));
        assert_eq!(titles(&mut schedule), ["s1"]);
        assert!(matches!(schedule.next(), Next::Wait));
        schedule.arrived(&name("large"));
        assert_eq!(titles(&mut schedule), ["l1", "l2"]);
    }

    #[test]
    fn the_largest_table_goes_first_with_all_its_indexes_side_by_side() {
        let mut schedule =
            Schedule::new(vec![plan("small", 1, &["s1", "s2"], &[]), plan("large", 9, &["l1", "l2", "l3"], &["l4"])]);
        schedule.arrived(&name("small"));
        schedule.arrived(&name("large"));
        assert_eq!(titles(&mut schedule), ["l1", "l2", "l3", "s1", "s2"]);
    }

    #[test]
    fn what_takes_the_table_waits_for_every_build_and_goes_one_by_one() {
        let mut schedule = Schedule::new(vec![plan("t", 1, &["a", "b"], &["key", "analyze"])]);
        schedule.arrived(&name("t"));
        assert_eq!(titles(&mut schedule), ["a", "b"]);
        schedule.done(&name("t"));
        assert!(take(&mut schedule).is_none());
        schedule.done(&name("t"));
        assert_eq!(titles(&mut schedule), ["key"]);
        schedule.done(&name("t"));
        assert_eq!(titles(&mut schedule), ["analyze"]);
        assert!(schedule.take_finished().is_empty());
        schedule.done(&name("t"));
        assert!(matches!(schedule.next(), Next::Over));
        assert_eq!(schedule.take_finished(), [name("t")]);
    }

    #[test]
    fn a_partitioned_table_comes_after_all_below_it() {
        let above = |table: &str, below: &[&str]| TablePlan {
            partitions: below.iter().map(|below| name(below)).collect(),
            holds_rows: false,
            ..plan(table, 0, &[], &["of the root"])
        };
        let empty_middle = TablePlan { then: Vec::new(), ..above("middle", &["one", "two"]) };
        let leaves = [plan("one", 5, &["1"], &[]), plan("two", 6, &["2"], &[])];
        let mut schedule = Schedule::new([vec![above("root", &["middle"]), empty_middle], leaves.to_vec()].concat());
        assert_eq!(schedule.awaited().count(), 2);
        schedule.arrived(&name("one"));
        assert_eq!(titles(&mut schedule), ["1"]);
        schedule.done(&name("one"));
        schedule.arrived(&name("two"));
        assert_eq!(titles(&mut schedule), ["2"]);
        schedule.done(&name("two"));
        assert_eq!(schedule.take_finished(), [name("one"), name("two"), name("middle")]);
        assert_eq!(titles(&mut schedule), ["of the root"]);
    }

    #[test]
    fn nothing_is_begun_after_a_failure() {
        let mut schedule = Schedule::new(vec![plan("t", 1, &["a", "b"], &[])]);
        schedule.arrived(&name("t"));
        assert!(take(&mut schedule).is_some());
        schedule.fail();
        assert!(matches!(schedule.next(), Next::Over) && schedule.has_failed());
    }

    #[test]
    fn a_table_without_anything_to_do_is_finished_by_its_rows() {
        let mut schedule = Schedule::new(vec![plan("t", 1, &[], &[])]);
        assert!(matches!(schedule.next(), Next::Wait));
        schedule.arrived(&name("t"));
        assert_eq!(schedule.take_finished(), [name("t")]);
        assert!(matches!(schedule.next(), Next::Over));
    }
}
