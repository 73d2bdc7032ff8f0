//! The settings that every connection of ours has, whatever the role or the database say.
//!
//! Two connections that print the same value differently cannot be compared, and one that gives up waiting by itself
//! breaks what we do at the far end of it (PITFALLS 31; `pg_dump` and `libpqwalreceiver` pin most of these as well).

use super::endpoint::Endpoint;

/// A setting, its value, and the first server version (as `server_version_num`) that has it.
type Pinned = (&'static str, &'static str, u32);

const PINNED: &[Pinned] = &[
    // Nobody's else: how a trigger of ours on the target knows us, whatever name the URL gives us.
    ("changeover.session", "on", 0),
    // Our limits are ours: each wait of ours has its own. First, since the others take time too.
    ("statement_timeout", "0", 0),
    ("lock_timeout", "0", 0),
    ("idle_in_transaction_session_timeout", "0", 0),
    ("idle_session_timeout", "0", 140_000),
    ("transaction_timeout", "0", 170_000),
    // Linux counts a full window as no answer (tcp(7), TCP_USER_TIMEOUT): a copy that is held would be cut off.
    ("tcp_user_timeout", "0", 0),
    ("client_encoding", "UTF8", 0),
    // How values are written.
    ("DateStyle", "ISO", 0),
    ("IntervalStyle", "postgres", 0),
    ("TimeZone", "UTC", 0),
    ("bytea_output", "hex", 0),
    // Anything above 0 is "shortest that reads back exactly" since 12; 3 is that for older servers too.
    ("extra_float_digits", "3", 0),
    ("lc_monetary", "C", 0),
    ("xmloption", "content", 0),
    // How values are read.
    ("array_nulls", "on", 0),
    ("standard_conforming_strings", "on", 0),
    ("transform_null_equals", "off", 0),
    // How names are written and found: only what is qualified, so that nobody's schema comes first.
    ("quote_all_identifiers", "off", 0),
    ("search_path", "", 0),
    // An error instead of fewer rows where a row security policy applies to us.
    ("row_security", "off", 0),
    ("default_transaction_isolation", "read committed", 0),
    // A database that an earlier `complete` has closed to writes is still ours to clean up.
    ("default_transaction_read_only", "off", 0),
    ("default_transaction_deferrable", "off", 0),
    // What we say is settled must survive a crash of the server. Where less is enough it is asked for; more
    // (`remote_apply`) would let the slowest standby set the pace of the stream.
    ("synchronous_commit", "on", 0),
    // Our larger queries look at catalogs: compiling one takes longer than running it.
    ("jit", "off", 0),
    // We try what a role may do by doing it.
    ("exit_on_error", "off", 0),
    ("client_min_messages", "warning", 0),
];

/// The settings a server of this version has.
pub(super) fn for_server(version_num: u32) -> impl Iterator<Item = (&'static str, &'static str)> {
    PINNED.iter().filter(move |(_, _, since)| *since <= version_num).map(|(name, value, _)| (*name, *value))
}

/// `SET` for one of them.
pub(super) fn statement(name: &str, value: &str) -> String {
    format!("SET {name} = '{value}'")
}

/// As parameters of a walsender's startup packet, which outrank what role and database say. The version is not known
/// yet, so these are the ones that every server has; [`later_for_walsender`] are set afterwards.
pub(super) fn for_walsender() -> impl Iterator<Item = (&'static str, &'static str)> {
    for_server(0)
}

/// What only newer servers have. Decoding runs in transactions, so `transaction_timeout` would end the session in the
/// middle of a large one.
pub(super) fn later_for_walsender(version_num: u32) -> impl Iterator<Item = (&'static str, &'static str)> {
    let later = move |(_, _, since): &&Pinned| (1..=version_num).contains(since);
    PINNED.iter().filter(later).map(|(name, value, _)| (*name, *value))
}

/// `changeover <purpose>`; what the URL asks for wins.
pub(super) fn application_name(endpoint: &Endpoint, purpose: &str) -> String {
    endpoint.application_name().map_or_else(|| format!("changeover {purpose}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_asked_only_for_what_it_has() {
        let has = |version, name| for_server(version).any(|(known, _)| known == name);
        assert!(!has(130_000, "idle_session_timeout") && has(140_000, "idle_session_timeout"));
        assert!(!has(160_009, "transaction_timeout") && has(170_000, "transaction_timeout"));
    }

    #[test]
    fn a_walsender_has_every_setting_of_its_version_once() {
        for version in [130_000, 140_000, 160_000, 180_001] {
            let mut walsender: Vec<_> = for_walsender().chain(later_for_walsender(version)).collect();
            let mut session: Vec<_> = for_server(version).collect();
            walsender.sort_unstable();
            session.sort_unstable();
            assert_eq!(walsender, session, "{version}");
        }
    }
}
