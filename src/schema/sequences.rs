//! Sequences: not in the stream, so they are read when writes have stopped.

use super::Error;
use super::catalog::Sequence;
use crate::model::{TableName, quote_literal};
use crate::wire::Session;

/// Sequences read by one statement. Each is a branch of a UNION, and the parser recurses over those.
const CHUNK_COUNT: usize = 500;

/// A sequence's state: `last_value` has been given out iff `called`.
struct State {
    name: TableName,
    value: i64,
    called: bool,
}

/// Sets each sequence on `target` to where it stands on `source`, plus `margin` increments where it has ever been
/// called: what sessions on the source had cached or an unlogged prefetch may have given out. Returns how many were
/// set.
///
/// Never `MAX(column)`: values of deleted and rolled back rows must not come again. One query a side (for each 500
/// sequences), because clients wait for it.
pub async fn copy_sequences(
    source: &Session,
    target: &Session,
    sequences: &[Sequence],
    margin: u32,
) -> Result<usize, Error> {
    for chunk in sequences.chunks(CHUNK_COUNT) {
        let states = read(source, chunk).await?;
        let moved: Vec<State> = states.into_iter().zip(chunk).map(|(state, of)| advance(state, of, margin)).collect();
        write(target, &moved).await?;
    }
    Ok(sequences.len())
}

/// In the order of `sequences`. Each is read from itself: `pg_sequences` hides the value until the first call.
async fn read(source: &Session, sequences: &[Sequence]) -> Result<Vec<State>, Error> {
    let branch = |(index, sequence): (usize, &Sequence)| {
        format!("SELECT {index} AS n, last_value, is_called FROM {}", sequence.name.quoted())
    };
    let branches: Vec<String> = sequences.iter().enumerate().map(branch).collect();
    let sql = format!("{} ORDER BY n", branches.join(" UNION ALL "));
    let rows = source.query(&sql, &[]).await.map_err(Error::query("read the sequences"))?;
    let state = |(row, sequence): (&tokio_postgres::Row, &Sequence)| State {
        name: sequence.name.clone(),
        value: row.get(1),
        called: row.get(2),
    };
    Ok(rows.iter().zip(sequences).map(state).collect())
}

/// Where the margin would leave the sequence's range it is left out: the exact value is right, only less generous.
fn advance(state: State, of: &Sequence, margin: u32) -> State {
    let distance = of.increment.checked_mul(i64::from(margin));
    let moved = distance.and_then(|distance| state.value.checked_add(distance));
    match moved {
        Some(value) if state.called && (of.min_value..=of.max_value).contains(&value) => State { value, ..state },
        Some(_) | None => state,
    }
}

async fn write(target: &Session, states: &[State]) -> Result<(), Error> {
    let rows: Vec<String> = states
        .iter()
        .map(|state| format!("({}, '{}'::bigint, {})", quote_literal(&state.name.quoted()), state.value, state.called))
        .collect();
    let sql = format!(
        "SELECT s.name, CASE WHEN c.found IS NOT NULL THEN pg_catalog.setval(c.found, s.value, s.called) END
         FROM (VALUES {}) AS s (name, value, called)
         CROSS JOIN LATERAL (SELECT pg_catalog.to_regclass(s.name) AS found) c",
        rows.join(", ")
    );
    let set = target.query(&sql, &[]).await.map_err(Error::query("set the sequences"))?;
    let missing = set.iter().position(|row| row.get::<_, Option<i64>>(1).is_none());
    missing.map_or(Ok(()), |index| Err(Error::MissingSequence { sequence: states[index].name.clone() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::SequenceOwner;

    fn advanced(value: i64, called: bool, increment: i64, (min_value, max_value): (i64, i64), margin: u32) -> i64 {
        let name = TableName::new("public", "s");
        let of = Sequence {
            name: name.clone(),
            owner: SequenceOwner::None,
            last_value: None,
            increment,
            min_value,
            max_value,
            cache_size: 1,
            cycles: false,
        };
        advance(State { name, value, called }, &of, margin).value
    }

    #[test]
    fn the_margin_goes_the_sequences_way_and_stays_in_its_range() {
        assert_eq!(advanced(10, true, 1, (1, 1000), 32), 42);
        assert_eq!(advanced(-10, true, -2, (-1000, -1), 32), -74);
        assert_eq!(advanced(1, false, 1, (1, 1000), 32), 1);
        assert_eq!(advanced(990, true, 1, (1, 1000), 32), 990);
        assert_eq!(advanced(i64::MAX - 1, true, i64::MAX, (1, i64::MAX), 32), i64::MAX - 1);
    }
}
