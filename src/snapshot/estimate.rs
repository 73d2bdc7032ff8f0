//! How much is left of the copy, and how long that may take. Pure.
//!
//! Three things make such a figure lie, and each is met here. Sizes before the copy are of heaps and rows travel in another
//! form, so neither bytes nor rows alone tell the share. A rate since the start remembers what no longer is. And the sum of
//! what is left over the rate of all workers forgets that one table may be all that is left, with one worker on it.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::progress::CopyState;

/// Over which a rate is taken: long enough for a figure that stands still to be read, short enough to follow the copy.
const WINDOW: Duration = Duration::from_secs(30);
/// Below this a rate says more about the moment of looking than about the copy.
const WINDOW_MIN: Duration = Duration::from_secs(2);
/// The planner's count may be passed by this much before it is taken for wrong.
const ROWS_TOLERANCE: f64 = 1.05;
/// Between the bytes of a heap and those of its rows on the wire. What lies outside was learned from too little.
const WIDTHS: (f64, f64) = (0.1, 10.0);

/// What was counted at some moments of the last half minute.
#[derive(Debug, Default)]
pub(super) struct Window {
    samples: VecDeque<(Instant, Counted)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) bytes: u64,
    pub(super) rows: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rate {
    pub(super) bytes_per_second: f64,
    pub(super) rows_per_second: f64,
}

impl Window {
    /// What was taken back (a unit that failed) begins the window anew. Rows alone may lose a few, when the server's count
    /// takes the place of ours.
    pub(super) fn push(&mut self, now: Instant, counted: Counted) {
        if self.samples.back().is_some_and(|(_, last)| counted.bytes < last.bytes) {
            self.samples.clear();
        }
        self.samples.push_back((now, counted));
        // The oldest that is kept is the last one outside of the window.
        while self.samples.get(1).is_some_and(|(then, _)| now.duration_since(*then) >= WINDOW) {
            self.samples.pop_front();
        }
    }

    /// `None` before there is enough to tell.
    pub(super) fn rate(&self) -> Option<Rate> {
        let ((from, first), (to, last)) = (self.samples.front()?, self.samples.back()?);
        let span = to.duration_since(*from);
        (span >= WINDOW_MIN).then(|| Rate {
            bytes_per_second: (last.bytes - first.bytes) as f64 / span.as_secs_f64(),
            rows_per_second: last.rows.saturating_sub(first.rows) as f64 / span.as_secs_f64(),
        })
    }
}

/// What is known of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) state: CopyState,
    pub(super) copied: Counted,
    /// Heap and TOAST on the source.
    pub(super) size_bytes: u64,
    pub(super) toast_bytes: u64,
    /// The planner's count; 0 when it has none.
    pub(super) rows_estimated: u64,
    pub(super) rate: Option<Rate>,
}

/// How much can be done at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capacity {
    pub(super) workers: usize,
    /// A table larger than this is shared by workers; `None`: each table has one worker.
    pub(super) split_bytes: Option<u64>,
}

impl Known {
    /// Bytes that will have travelled when the table is complete; `None` when what was copied has refuted every
    /// estimate. `width` is what a byte of heap has become on the wire so far.
    ///
    /// Rows copied of rows counted is the best share there is as long as rows are of one width. They are not where most
    /// of a table is TOAST, which may all belong to the rows at the end: then it is no less than its size.
    pub(super) fn bytes_expected(&self, width: f64) -> Option<f64> {
        let Counted { bytes, rows } = self.copied;
        let by_size = self.size_bytes as f64 * width;
        match self.state {
            CopyState::Copied => Some(bytes as f64),
            CopyState::Waiting => Some(by_size),
            CopyState::Copying if rows == 0 => Some(by_size.max(bytes as f64)),
            CopyState::Copying => {
                let counted = self.rows_estimated as f64;
                if counted > 0.0 && rows as f64 <= counted * ROWS_TOLERANCE {
                    let by_rows = bytes as f64 / rows as f64 * counted.max(rows as f64);
                    let mostly_toast = self.toast_bytes > self.size_bytes / 2;
                    return Some(if mostly_toast { by_rows.max(self.size_bytes as f64) } else { by_rows });
                }
                (by_size > bytes as f64).then_some(by_size)
            }
        }
    }

    fn bytes_left(&self, width: f64) -> Option<f64> {
        self.bytes_expected(width).map(|expected| (expected - self.copied.bytes as f64).max(0.0))
    }

    /// The rate that this table can have when it is given all that it can use. `per_worker` is what one worker has had
    /// lately.
    fn rate_possible(&self, capacity: Capacity, per_worker: f64) -> f64 {
        let parts = capacity.split_bytes.map_or(1, |split| self.size_bytes.div_ceil(split.max(1)).max(1));
        let streams = parts.min(capacity.workers as u64);
        let fair = streams as f64 * per_worker;
        match self.rate {
            Some(rate) if streams == 1 => rate.bytes_per_second,
            Some(rate) => rate.bytes_per_second.max(fair),
            None => fair,
        }
    }

    /// Until this table is complete, if it is in work.
    pub(super) fn seconds_left(&self, width: f64, capacity: Capacity, per_worker: f64) -> Option<f64> {
        match self.state {
            CopyState::Copying => divided(self.bytes_left(width)?, self.rate_possible(capacity, per_worker)),
            CopyState::Waiting | CopyState::Copied => None,
        }
    }
}

/// What a byte of heap has become on the wire, by the tables that are complete; 1 as long as there are none.
pub(super) fn width(tables: &[Known]) -> f64 {
    let complete = || tables.iter().filter(|table| table.state == CopyState::Copied);
    let heap: u64 = complete().map(|table| table.size_bytes).sum();
    let wire: u64 = complete().map(|table| table.copied.bytes).sum();
    if heap == 0 || wire == 0 { 1.0 } else { (wire as f64 / heap as f64).clamp(WIDTHS.0, WIDTHS.1) }
}

/// Until the last table is complete: all that is left at the rate of all workers together, but no less than what the
/// slowest table needs by itself. `None` when nobody can tell: nothing moves, or a table has passed every estimate of its
/// size.
pub(super) fn seconds_left(tables: &[Known], capacity: Capacity, all: Rate) -> Option<f64> {
    let (width, per_worker) = (width(tables), per_worker(all, capacity));
    let (mut left, mut longest) = (0.0_f64, 0.0_f64);
    for table in tables.iter().filter(|table| table.state != CopyState::Copied) {
        let bytes = table.bytes_left(width)?;
        left += bytes;
        longest = longest.max(divided(bytes, table.rate_possible(capacity, per_worker))?);
    }
    Some(divided(left, all.bytes_per_second)?.max(longest))
}

pub(super) fn per_worker(all: Rate, capacity: Capacity) -> f64 {
    all.bytes_per_second / capacity.workers.max(1) as f64
}

fn divided(bytes: f64, rate: f64) -> Option<f64> {
    match bytes > 0.0 {
        true => (rate > 0.0).then(|| bytes / rate),
        false => Some(0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;
    const ONE_EACH: Capacity = Capacity { workers: 4, split_bytes: None };

    fn rate(bytes: u64) -> Rate {
        Rate { bytes_per_second: bytes as f64, rows_per_second: 0.0 }
    }

    fn waiting(size_bytes: u64) -> Known {
        Known {
            state: CopyState::Waiting,
            copied: Counted::default(),
            size_bytes,
            toast_bytes: 0,
            rows_estimated: 0,
            rate: None,
        }
    }

    fn copying(size_bytes: u64, bytes: u64, rows: u64, rows_estimated: u64) -> Known {
        Known { state: CopyState::Copying, copied: Counted { bytes, rows }, rows_estimated, ..waiting(size_bytes) }
    }

    fn at(table: Known, bytes_per_second: u64) -> Known {
        Known { rate: Some(rate(bytes_per_second)), ..table }
    }

    fn close(found: Option<f64>, expected: f64) {
        let found = found.expect("there is an estimate");
        assert!((found - expected).abs() <= expected * 0.01 + 0.01, "{found} and not {expected}");
    }

    #[test]
    fn the_time_left_is_no_less_than_the_largest_tables_own() {
        // 1 GB in one table, of which a tenth is done at 10 MB/s; three other workers empty small tables at 30 MB/s.
        let huge = at(copying(1000 * MB, 100 * MB, 100, 1000), 10 * MB);
        let mut tables = vec![waiting(MB); 300];
        tables.push(huge);
        close(seconds_left(&tables, ONE_EACH, rate(40 * MB)), 90.0);
        // The mean would have said half a minute.
        close(seconds_left(&tables[..300], ONE_EACH, rate(40 * MB)), 7.5);
    }

    #[test]
    fn a_huge_table_that_has_not_begun_is_given_one_workers_rate() {
        let tables = [at(copying(100 * MB, 50 * MB, 50, 100), 10 * MB), waiting(1000 * MB)];
        close(seconds_left(&tables, ONE_EACH, rate(40 * MB)), 100.0);
    }

    #[test]
    fn a_table_that_is_shared_can_have_the_rate_of_all_who_share_it() {
        let split = Capacity { workers: 4, split_bytes: Some(500 * MB) };
        close(seconds_left(&[waiting(1000 * MB)], split, rate(40 * MB)), 50.0);
        let split = Capacity { workers: 4, split_bytes: Some(100 * MB) };
        close(seconds_left(&[waiting(1000 * MB)], split, rate(40 * MB)), 25.0);
    }

    #[test]
    fn rows_tell_the_share_and_not_bytes_of_another_form() {
        // Half of the rows are a quarter of the heap's bytes: it is bloated, or narrow on the wire.
        close(copying(1000 * MB, 250 * MB, 500, 1000).bytes_expected(1.0), 500e6);
        // Or three times as many: it was compressed.
        close(copying(1000 * MB, 1500 * MB, 500, 1000).bytes_expected(1.0), 3000e6);
    }

    #[test]
    fn wide_rows_at_the_end_are_not_forgotten() {
        let table = Known { toast_bytes: 990 * MB, ..copying(1000 * MB, 9 * MB, 900, 1000) };
        close(table.bytes_expected(1.0), 1000e6);
        // Compressed ones have passed the size; rows still tell how many there are to come.
        let table = Known { toast_bytes: 990 * MB, ..copying(1000 * MB, 1500 * MB, 500, 1000) };
        close(table.bytes_expected(1.0), 3000e6);
    }

    #[test]
    fn without_a_count_of_rows_the_size_tells_in_the_width_learned_so_far() {
        close(copying(1000 * MB, 100 * MB, 500, 0).bytes_expected(0.8), 800e6);
        let complete = Known { state: CopyState::Copied, ..copying(100 * MB, 80 * MB, 1, 0) };
        assert_eq!(width(&[complete, waiting(MB)]), 0.8);
        assert_eq!(width(&[waiting(MB)]), 1.0);
    }

    #[test]
    fn a_count_of_rows_that_was_passed_is_not_believed() {
        // The statistics are from when the table was a tenth of this.
        close(copying(1000 * MB, 200 * MB, 2000, 1000).bytes_expected(1.0), 1000e6);
        // A little more than counted is a table near its end.
        close(copying(1000 * MB, 500 * MB, 1010, 1000).bytes_expected(1.0), 500e6);
    }

    #[test]
    fn nobody_can_tell_when_every_estimate_is_passed_or_nothing_moves() {
        let passed = at(copying(100 * MB, 200 * MB, 2000, 1000), MB);
        assert_eq!(passed.bytes_expected(1.0), None);
        assert_eq!(seconds_left(&[passed, waiting(MB)], ONE_EACH, rate(MB)), None);
        assert_eq!(seconds_left(&[waiting(MB)], ONE_EACH, rate(0)), None);
        let stuck = at(copying(100 * MB, 10 * MB, 10, 100), 0);
        assert_eq!(seconds_left(&[stuck, waiting(MB)], ONE_EACH, rate(MB)), None);
        assert_eq!(stuck.seconds_left(1.0, ONE_EACH, 1.0), None);
    }

    #[test]
    fn a_rate_is_of_the_last_half_minute() {
        let mut window = Window::default();
        let mut bytes = 0;
        let start = Instant::now();
        let mut run = |window: &mut Window, seconds: std::ops::Range<u64>, per_second: u64| {
            for second in seconds {
                bytes += per_second;
                window.push(start + Duration::from_secs(second), Counted { bytes, rows: bytes / 100 });
            }
        };
        run(&mut window, 0..2, 1000);
        assert_eq!(window.rate(), None, "a second says nothing");
        run(&mut window, 2..100, 1000);
        assert_eq!(window.rate(), Some(Rate { bytes_per_second: 1000.0, rows_per_second: 10.0 }));
        assert!(window.samples.len() <= 32, "{}", window.samples.len());
        run(&mut window, 100..131, 10);
        assert_eq!(window.rate().map(|rate| rate.bytes_per_second), Some(10.0));
        window.push(start + Duration::from_secs(131), Counted::default());
        assert_eq!(window.rate(), None, "what was taken back is no negative rate");
    }
}
