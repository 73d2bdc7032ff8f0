//! Which types may travel in binary: a walk from each column's type down to the base types it is made of.

use std::collections::HashMap;

use crate::schema::Error;
use crate::schema::catalog::BinaryCopy;
use crate::wire::Session;

/// Smaller OIDs are given out by initdb and are the same everywhere (`FirstNormalObjectId` in transam.h).
const FIRST_USER_OID: u32 = 16_384;

/// Built-in types whose binary value is the OID of an object, and those whose `typreceive` only raises an error.
const NOT_BINARY: [&str; 17] = [
    "regproc",
    "regprocedure",
    "regoper",
    "regoperator",
    "regclass",
    "regcollation",
    "regtype",
    "regconfig",
    "regdictionary",
    "regrole",
    "regnamespace",
    "regdatabase",
    "pg_node_tree",
    "pg_ndistinct",
    "pg_dependencies",
    "pg_mcv_list",
    "aclitem",
];

/// A row of `pg_type` with the types it is made of.
#[derive(Clone, Debug)]
struct Shape {
    kind: Kind,
    name: String,
    /// Has both `typsend` and `typreceive`.
    sends: bool,
    parts: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Base,
    Array,
    Composite,
    /// Domains, ranges, multiranges: written as what they are made of.
    Wrapper,
    Enum,
    Pseudo,
}

/// For each of the types, and those they are made of.
pub(super) async fn binary_copy(
    session: &Session,
    version: u32,
    mut type_oids: Vec<u32>,
) -> Result<HashMap<u32, BinaryCopy>, Error> {
    type_oids.sort_unstable();
    type_oids.dedup();
    let shapes = read(session, version, &type_oids).await?;
    Ok(shapes.keys().map(|oid| (*oid, judge(*oid, &shapes, shapes.len()))).collect())
}

async fn read(session: &Session, version: u32, type_oids: &[u32]) -> Result<HashMap<u32, Shape>, Error> {
    let multirange = if version >= 140_000 {
        "UNION ALL SELECT r.rngtypid FROM pg_catalog.pg_range r WHERE r.rngmultitypid = t.oid"
    } else {
        ""
    };
    let parts = format!(
        "SELECT t.typelem WHERE t.typsend = 'pg_catalog.array_send'::regproc
         UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'
         UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid
         {multirange}
         UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
                   WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped"
    );
    let sql = format!(
        "WITH RECURSIVE made_of (oid) AS (
             SELECT pg_catalog.unnest($1::oid[])
             UNION
             SELECT p.oid FROM made_of m JOIN pg_catalog.pg_type t ON t.oid = m.oid
                    CROSS JOIN LATERAL ({parts}) AS p (oid)
         )
         SELECT t.oid, t.typname::text, t.typtype::text, t.typsend = 'pg_catalog.array_send'::regproc,
                t.typsend <> 0 AND t.typreceive <> 0, ARRAY({parts})
         FROM made_of m JOIN pg_catalog.pg_type t ON t.oid = m.oid"
    );
    let rows = session.query(&sql, &[&type_oids]).await.map_err(Error::query("read the types"))?;
    let shape = |row: &tokio_postgres::Row| Shape {
        kind: kind(&row.get::<_, String>(2), row.get(3)),
        name: row.get(1),
        sends: row.get(4),
        parts: row.get(5),
    };
    Ok(rows.iter().map(|row| (row.get(0), shape(row))).collect())
}

/// `pg_type.typtype`.
fn kind(letter: &str, array: bool) -> Kind {
    match (letter, array) {
        (_, true) => Kind::Array,
        ("b", false) => Kind::Base,
        ("c", false) => Kind::Composite,
        ("d" | "r" | "m", false) => Kind::Wrapper,
        ("e", false) => Kind::Enum,
        (_, false) => Kind::Pseudo,
    }
}

/// `depth` bounds the walk: a composite may hold arrays of itself.
fn judge(oid: u32, shapes: &HashMap<u32, Shape>, depth: usize) -> BinaryCopy {
    let Some(shape) = shapes.get(&oid).filter(|shape| shape.sends) else { return BinaryCopy::Never };
    let parts = || {
        let deeper = |part: &u32| if depth == 0 { BinaryCopy::Never } else { judge(*part, shapes, depth - 1) };
        shape.parts.iter().map(deeper).max().unwrap_or(BinaryCopy::Always)
    };
    let names_oids = || {
        let of_user = shape.parts.iter().any(|part| *part >= FIRST_USER_OID);
        if of_user { BinaryCopy::TargetFrom14 } else { BinaryCopy::Always }
    };
    match shape.kind {
        Kind::Base if oid >= FIRST_USER_OID || NOT_BINARY.contains(&shape.name.as_str()) => BinaryCopy::Never,
        Kind::Base | Kind::Enum => BinaryCopy::Always,
        Kind::Wrapper => parts(),
        Kind::Array | Kind::Composite => parts().max(names_oids()),
        Kind::Pseudo => BinaryCopy::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_an_unsafe_type_is_unsafe() {
        let shape =
            |kind, name: &str, parts: &[u32]| Shape { kind, name: name.to_owned(), sends: true, parts: parts.to_vec() };
        let shapes = HashMap::from([
            (23, shape(Kind::Base, "int4", &[])),
            (2205, shape(Kind::Base, "regclass", &[])),
            (1007, shape(Kind::Array, "_int4", &[23])),
            (2210, shape(Kind::Array, "_regclass", &[2205])),
            (20_000, shape(Kind::Enum, "mood", &[])),
            (20_001, shape(Kind::Array, "_mood", &[20_000])),
            (20_002, shape(Kind::Base, "citext", &[])),
            (20_003, shape(Kind::Composite, "pair", &[23, 20_001])),
            (20_004, shape(Kind::Wrapper, "positive", &[23])),
            (20_005, shape(Kind::Composite, "tree", &[23, 20_006])),
            (20_006, shape(Kind::Array, "_tree", &[20_005])),
        ]);
        for (oid, expected) in [
            (23, BinaryCopy::Always),
            (2205, BinaryCopy::Never),
            (1007, BinaryCopy::Always),
            (2210, BinaryCopy::Never),
            (20_000, BinaryCopy::Always),
            (20_001, BinaryCopy::TargetFrom14),
            (20_002, BinaryCopy::Never),
            (20_003, BinaryCopy::TargetFrom14),
            (20_004, BinaryCopy::Always),
            (20_005, BinaryCopy::Never),
            (99, BinaryCopy::Never),
        ] {
            assert_eq!(judge(oid, &shapes, shapes.len()), expected, "{oid}");
        }
    }
}
