//! One test a pitfall that decoding meets.

use super::support::{
    VERSIONS, begin, commit, data, decoder, feed, insert, logical, lsn, recorded, relation, stream_abort,
    stream_commit, stream_start, stream_stop, text,
};
use crate::decode::Error;
use crate::model::{Batch, Change, ChangeKind, Datum, Disposition, Frame, OldKind};

fn recorded_changes(major: u32) -> Vec<Batch> {
    feed(&mut decoder(1 << 20), &recorded(major, "changes")).unwrap()
}

fn changes(batches: &[Batch]) -> Vec<&Change> {
    batches.iter().flat_map(|batch| &batch.transactions).flat_map(|transaction| &transaction.changes).collect()
}

#[test]
fn pitfall_2_order_is_that_of_commits_whatever_the_positions_of_changes() {
    for major in VERSIONS {
        let batches = recorded_changes(major);
        let transactions: Vec<_> = batches.iter().flat_map(|batch| &batch.transactions).collect();
        assert!(transactions.is_sorted_by_key(|transaction| transaction.end));
        // Rows of one COPY share a position.
        assert!(transactions.iter().any(|transaction| {
            transaction.changes.len() == 3
                && transaction.changes.iter().all(|change| change.lsn == transaction.changes[0].lsn)
        }));
        // The last one began before the one that committed before it.
        let [.., before, last] = &transactions[..] else { panic!("too few transactions") };
        assert!(last.changes[0].lsn < before.changes[0].lsn && last.end > before.end);
    }
}

#[test]
fn pitfall_2_a_change_may_stand_where_the_transaction_before_it_ends() {
    let frames = [
        begin(100),
        relation(None, 1, &["id"]),
        insert(None, 90, 1, &["a"]),
        commit(100, 120),
        begin(130),
        insert(None, 120, 1, &["b"]),
        commit(130, 150),
    ];
    let mut decoder = decoder(1 << 20);
    assert_eq!(text(&feed(&mut decoder, &frames).unwrap()).matches("insert").count(), 2);
    // Sent again after the first was settled: the second is not mistaken for it.
    decoder.begin_session(1);
    assert!(feed(&mut decoder, &frames).unwrap().is_empty());
}

#[test]
fn pitfall_7_old_rows_come_in_the_form_the_replica_identity_says() {
    for major in VERSIONS {
        let batches = recorded_changes(major);
        let mut forms = Vec::new();
        for batch in &batches {
            for change in batch.transactions.iter().flat_map(|transaction| &transaction.changes) {
                let (relation, old) = match &change.kind {
                    ChangeKind::Update { relation, old, .. } => (relation, old.as_ref()),
                    ChangeKind::Delete { relation, old } => (relation, Some(old)),
                    ChangeKind::Insert { .. } | ChangeKind::Truncate { .. } | ChangeKind::Message { .. } => continue,
                };
                let name = batch.relation(*relation).name.name.clone();
                forms.push((name, old.map(|old| old.kind)));
            }
        }
        let of =
            |table: &str| forms.iter().filter(|(name, _)| name == table).map(|(_, form)| *form).collect::<Vec<_>>();
        let (key, full) = (Some(OldKind::Key), Some(OldKind::Full));
        assert_eq!(of("items"), [None, key, key, None, None, None]);
        assert_eq!(of("whole"), [full, full]);
        assert_eq!(of("by index"), [None, key, key]);
    }
}

#[test]
fn pitfall_8_an_unchanged_toast_value_is_neither_null_nor_lost_from_the_old_row() {
    for major in VERSIONS {
        let batches = recorded_changes(major);
        let updates: Vec<_> = changes(&batches)
            .into_iter()
            .filter_map(|change| match &change.kind {
                ChangeKind::Update { old, new, .. } => new.iter().any(|datum| datum == Datum::Unchanged).then_some(old),
                ChangeKind::Insert { .. }
                | ChangeKind::Delete { .. }
                | ChangeKind::Truncate { .. }
                | ChangeKind::Message { .. } => None,
            })
            .collect();
        // Five of items, whose key identity does not hold the value, and one of whole, whose old row does.
        assert_eq!(updates.len(), 6, "PostgreSQL {major}");
        let held = updates.iter().flat_map(|old| old.as_ref()).filter(|old| {
            old.kind == OldKind::Full
                && old.tuple.iter().any(|datum| matches!(datum, Datum::Text(text) if text.len() == 2100))
        });
        assert_eq!(held.count(), 1);
    }
}

#[test]
fn pitfall_12_a_truncate_is_one_change_that_names_every_published_table_and_its_options() {
    for major in VERSIONS {
        let batches = recorded_changes(major);
        let truncates: Vec<_> = changes(&batches)
            .into_iter()
            .filter_map(|change| match &change.kind {
                ChangeKind::Truncate { relations, cascade, restart_identity } => {
                    Some((relations.len(), *cascade, *restart_identity))
                }
                ChangeKind::Insert { .. }
                | ChangeKind::Update { .. }
                | ChangeKind::Delete { .. }
                | ChangeKind::Message { .. } => None,
            })
            .collect();
        assert_eq!(truncates, [(2, true, true), (2, false, false)]);
    }
}

/// Two transactions in chunks that interleave, with a third, whole one in between.
fn interleaved() -> Vec<Frame> {
    vec![
        stream_start(10, true),
        relation(Some(10), 1, &["id"]),
        insert(Some(10), 1, 1, &["a1"]),
        insert(Some(11), 2, 1, &["a2 of sub-transaction 11"]),
        stream_stop(),
        stream_start(20, true),
        relation(Some(21), 1, &["id"]),
        insert(Some(21), 3, 1, &["b1 of sub-transaction 21"]),
        stream_stop(),
        begin(50),
        relation(None, 1, &["id"]),
        insert(None, 4, 1, &["c1"]),
        commit(50, 60),
        stream_start(10, false),
        insert(Some(12), 5, 1, &["a3 of sub-transaction 12"]),
        insert(Some(10), 6, 1, &["a4"]),
        stream_stop(),
        stream_abort(10, 11),
        stream_abort(20, 21),
        stream_start(20, false),
        relation(Some(20), 1, &["id"]),
        insert(Some(20), 7, 1, &["b2"]),
        stream_stop(),
        stream_commit(20, 70, 80),
        stream_commit(10, 90, 99),
    ]
}

#[test]
fn pitfall_15_chunks_interleave_and_a_rolled_back_sub_transaction_leaves_only_its_own_changes_out() {
    let batches = feed(&mut decoder(1 << 20), &interleaved()).unwrap();
    let expected = "begin\n  insert public.t1 id=c1\ncommit\nbegin\n  insert public.t1 id=b2\ncommit\nbegin\n  \
                    insert public.t1 id=a1\n  insert public.t1 id=a3 of sub-transaction 12\n  insert public.t1 id=a4\ncommit\n";
    assert_eq!(text(&batches), expected);
    assert_eq!(batches.last().unwrap().through, lsn(99));
}

#[test]
fn pitfall_15_nothing_is_emitted_of_a_stream_before_its_commit_nor_after_its_abort() {
    let mut decoder = decoder(1);
    let start = [stream_start(10, true), relation(Some(10), 1, &["id"]), insert(Some(10), 1, 1, &["a"]), stream_stop()];
    assert!(feed(&mut decoder, &start).unwrap().is_empty());
    assert!(feed(&mut decoder, &[stream_abort(10, 10)]).unwrap().is_empty());
    assert!(matches!(
        feed(&mut decoder, &[stream_commit(10, 20, 30)]),
        Err(Error::UnknownStream { top, .. }) if top.0 == 10
    ));
}

#[test]
fn pitfall_15_a_description_inside_a_stream_holds_for_that_stream_until_it_commits() {
    let frames = [
        begin(10),
        relation(None, 1, &["id"]),
        insert(None, 5, 1, &["before"]),
        commit(10, 20),
        stream_start(7, true),
        relation(Some(7), 1, &["id", "added"]),
        insert(Some(7), 21, 1, &["in stream", "x"]),
        stream_stop(),
        begin(30),
        insert(None, 25, 1, &["meanwhile"]),
        commit(30, 40),
        stream_commit(7, 50, 60),
        begin(70),
        insert(None, 65, 1, &["after", "y"]),
        commit(70, 80),
    ];
    let batches = feed(&mut decoder(1 << 20), &frames).unwrap();
    let expected = "begin\n  insert public.t1 id=before\ncommit\nbegin\n  insert public.t1 id=meanwhile\ncommit\nbegin\n  \
                    insert public.t1 id=in stream added=x\ncommit\nbegin\n  insert public.t1 id=after added=y\ncommit\n";
    assert_eq!(text(&batches), expected);
}

#[test]
fn pitfall_15_a_later_description_is_not_undone_by_the_commit_of_an_older_stream() {
    let frames = [
        stream_start(7, true),
        relation(Some(7), 1, &["id"]),
        insert(Some(7), 1, 1, &["streamed"]),
        stream_stop(),
        begin(30),
        relation(None, 1, &["id", "added"]),
        insert(None, 25, 1, &["later", "x"]),
        commit(30, 40),
        stream_commit(7, 50, 60),
        begin(70),
        insert(None, 65, 1, &["last", "y"]),
        commit(70, 80),
    ];
    let batches = feed(&mut decoder(1 << 20), &frames).unwrap();
    assert!(
        text(&batches)
            .ends_with("insert public.t1 id=streamed\ncommit\nbegin\n  insert public.t1 id=last added=y\ncommit\n")
    );
}

#[test]
fn pitfall_15_the_description_a_rolled_back_sub_transaction_made_is_rolled_back_too() {
    let frames = [
        stream_start(7, true),
        relation(Some(7), 1, &["id"]),
        insert(Some(7), 1, 1, &["a"]),
        relation(Some(8), 1, &["id", "dropped"]),
        insert(Some(8), 2, 1, &["b", "x"]),
        stream_stop(),
        stream_abort(7, 8),
        stream_start(7, false),
        relation(Some(7), 1, &["id"]),
        insert(Some(7), 3, 1, &["c"]),
        stream_stop(),
        stream_commit(7, 50, 60),
    ];
    let batches = feed(&mut decoder(1 << 20), &frames).unwrap();
    assert_eq!(text(&batches), "begin\n  insert public.t1 id=a\n  insert public.t1 id=c\ncommit\n");
    assert_eq!(batches[0].relations.len(), 1);
}

#[test]
fn pitfall_16_a_slot_with_two_phase_is_refused_by_name() {
    for tag in *b"bPKrp" {
        let message = vec![tag, 0, 0, 0].into();
        let error = feed(&mut decoder(1 << 20), &[data(Some(lsn(0x77)), message)]).unwrap_err();
        assert!(matches!(error, Error::TwoPhase { .. }), "{error}");
        assert!(error.to_string().contains("two_phase") && error.to_string().contains("0/77"), "{error}");
    }
}

#[test]
fn pitfall_17_messages_outside_transactions_are_counted_and_nothing_else() {
    let mut decoder = decoder(1 << 20);
    let frames = [logical(None, false, "early"), begin(10), logical(None, true, "kept"), commit(10, 20)];
    assert_eq!(text(&feed(&mut decoder, &frames).unwrap()), "begin\n  message prefix kept\ncommit\n");
    assert_eq!(decoder.counts().loose_messages, 1);
    let error = feed(&mut decoder, &[logical(None, true, "in no transaction")]).unwrap_err();
    assert!(matches!(error, Error::Unexpected { .. }), "{error}");
}

#[test]
fn pitfall_17_a_message_that_a_roll_back_in_its_stream_may_concern_is_left_to_the_source() {
    let in_sub_transaction = [relation(Some(8), 1, &["id"]), insert(Some(8), 1, 1, &["dropped"])];
    let mut frames = vec![stream_start(7, true), logical(Some(7), true, "by whom?")];
    frames.extend(in_sub_transaction);
    frames.extend([stream_stop(), stream_abort(7, 8)]);
    let mut first = decoder(1);
    feed(&mut first, &frames).unwrap();
    assert!(first.takes_streams());
    let error = feed(&mut first, &[stream_commit(7, 50, 60)]).unwrap_err();
    assert!(matches!(error, Error::AmbiguousMessages { .. }), "{error}");
    assert_eq!((error.disposition(), first.takes_streams()), (Disposition::Retry, false));
    // The next session does without streams.
    first.begin_session(2);
    let unstreamed = [begin(50), logical(None, true, "by the top-level transaction"), commit(50, 60)];
    assert_eq!(
        text(&feed(&mut first, &unstreamed).unwrap()),
        "begin\n  message prefix by the top-level transaction\ncommit\n"
    );
    // Settled before, or rolled back as a whole: nothing to be unsure about.
    for end in [stream_commit(7, 50, 60), stream_abort(7, 7)] {
        let mut decoder = decoder(1);
        feed(&mut decoder, &[begin(50), logical(None, true, "x"), commit(50, 60)]).unwrap();
        decoder.begin_session(2);
        feed(&mut decoder, &frames).unwrap();
        assert!(feed(&mut decoder, &[end]).unwrap().is_empty());
    }
}

#[test]
fn pitfall_17_a_message_after_the_last_roll_back_in_its_stream_is_kept() {
    let frames = [
        stream_start(7, true),
        relation(Some(8), 1, &["id"]),
        insert(Some(8), 1, 1, &["dropped"]),
        stream_stop(),
        stream_abort(7, 8),
        stream_start(7, false),
        logical(Some(7), true, "after"),
        stream_stop(),
        stream_commit(7, 50, 60),
    ];
    let batches = feed(&mut decoder(1 << 20), &frames).unwrap();
    assert_eq!(text(&batches), "begin\n  message prefix after\ncommit\n");
}

#[test]
fn pitfall_18_a_changed_shape_is_listed_beside_the_old_one() {
    for major in VERSIONS {
        let batches = recorded_changes(major);
        let shapes: Vec<_> = batches[0].relations.iter().filter(|relation| relation.name.name == "items").collect();
        assert_eq!(shapes.iter().map(|shape| shape.columns.len()).collect::<Vec<_>>(), [4, 5, 5]);
        assert_eq!((shapes[1].columns[4].type_oid, shapes[2].columns[4].type_oid), (23, 20));
    }
}

#[test]
fn pitfall_33_transactions_without_changes_only_move_the_position() {
    let mut decoder = decoder(1 << 20);
    let batches = feed(&mut decoder, &[begin(10), commit(10, 20), begin(30), commit(30, 40)]).unwrap();
    assert_eq!(batches.len(), 1);
    assert_eq!((batches[0].through, batches[0].transactions.len()), (lsn(40), 0));
}

#[test]
fn pitfall_34_types_that_are_not_built_in_are_known_by_name() {
    for major in VERSIONS {
        for batch in recorded_changes(major) {
            for column in batch.relations.iter().flat_map(|relation| &relation.columns) {
                assert_eq!(column.type_name.is_some(), column.type_oid >= 16384, "{column:?}");
            }
        }
    }
}
