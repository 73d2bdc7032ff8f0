//! The position record: what makes "how far" part of the Kafka transaction that got there.

use serde::de::Error as _;
use serde::{Deserialize, Serialize};

use crate::model::{Lsn, ParseLsnError, Position, SourceIdentity};

use super::Error;
use super::machine::Signature;
use super::mark::Mark;

/// What the position topic holds for a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) signature: Signature,
    /// `None`: claimed, nothing published.
    pub(super) mark: Option<Mark>,
    pub(super) identity: SourceIdentity,
}

/// The value as it is written. Named so that an operator can read it with any consumer.
#[derive(Serialize, Deserialize)]
struct Wire {
    migration: String,
    commit_end: Option<String>,
    ordinal: u64,
    /// End of the transaction that `ordinal` counts in.
    inside: Option<String>,
    system_identifier: String,
    timeline: u32,
    writer: String,
    serial: u64,
    /// Number of the last batch in it, to be compared with the daemon's logs.
    seq: Option<u64>,
    /// Microseconds since the Unix epoch.
    at_us: i64,
}

impl Stored {
    /// `seq`: the last batch in it. `now_us`: microseconds since the Unix epoch.
    pub(super) fn to_json(&self, migration: &str, seq: Option<u64>, now_us: i64) -> Vec<u8> {
        let wire = Wire {
            migration: migration.to_owned(),
            commit_end: self.mark.map(|mark| mark.position.commit_end.to_string()),
            ordinal: self.mark.map_or(0, |mark| mark.position.ordinal),
            inside: self.mark.and_then(|mark| mark.inside).map(|end| end.to_string()),
            system_identifier: self.identity.system_identifier.clone(),
            timeline: self.identity.timeline,
            writer: self.signature.writer.clone(),
            serial: self.signature.serial,
            seq,
            at_us: now_us,
        };
        serde_json::to_vec(&wire).expect("text and numbers always become JSON")
    }

    /// `topic` is for the error.
    pub(super) fn from_json(topic: &str, value: &[u8]) -> Result<Self, Error> {
        let wrong = |source| Error::MalformedPosition { topic: topic.to_owned(), source };
        let wire: Wire = serde_json::from_slice(value).map_err(wrong)?;
        let lsn = |text: Option<&String>| text.map(|text| text.parse::<Lsn>()).transpose();
        let position = |error: ParseLsnError| wrong(serde_json::Error::custom(error));
        let inside = lsn(wire.inside.as_ref()).map_err(position)?;
        let mark = lsn(wire.commit_end.as_ref())
            .map_err(position)?
            .map(|commit_end| Mark { position: Position { commit_end, ordinal: wire.ordinal }, inside });
        Ok(Self {
            signature: Signature { writer: wire.writer, serial: wire.serial },
            mark,
            identity: SourceIdentity { system_identifier: wire.system_identifier, timeline: wire.timeline },
        })
    }

    /// A position of another history says nothing about this source.
    pub(super) fn of(self, identity: &SourceIdentity) -> Result<Self, Error> {
        if self.identity != *identity {
            return Err(Error::OtherSource { stored: self.identity, actual: identity.clone() });
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::lsn;
    use super::*;

    fn stored(mark: Option<Mark>) -> Stored {
        let identity = SourceIdentity { system_identifier: "7300000000000000001".into(), timeline: 2 };
        Stored { signature: Signature { writer: "w".into(), serial: 7 }, mark, identity }
    }

    #[test]
    fn a_position_reads_back_as_it_was_written() {
        let inside = Mark { position: Position { commit_end: lsn(16), ordinal: 3 }, inside: Some(lsn(32)) };
        for mark in [None, Some(Mark::after(lsn(0x16_B374_D848))), Some(inside)] {
            let json = stored(mark).to_json("shop", Some(1), 1_700_000_000_000_000);
            assert_eq!(Stored::from_json("t", &json).unwrap(), stored(mark));
        }
    }

    #[test]
    fn a_position_of_another_history_is_refused() {
        let actual = SourceIdentity { system_identifier: "7300000000000000001".into(), timeline: 3 };
        assert!(matches!(stored(None).of(&actual), Err(Error::OtherSource { .. })));
    }

    #[test]
    fn what_is_not_a_position_is_refused() {
        for value in [
            "",
            "{}",
            "secret",
            r#"{"migration":"shop","commit_end":"secret","ordinal":0,"inside":null,"system_identifier":"1","timeline":1,"writer":"w","serial":0,"seq":null,"at_us":0}"#,
        ] {
            let error = Stored::from_json("t", value.as_bytes()).unwrap_err();
            assert!(matches!(error, Error::MalformedPosition { .. }), "{error:?}");
        }
    }
}
