//! What the entries of keys and statistics say: enough to build a key's index before the constraint is there.

use super::entries::Entry;
use super::lexer::{Token, TokenKind};
use crate::model::TableName;

/// A primary key or unique constraint in two statements that together do what its entry's first one does: the index may
/// be built beside others of its table, and becoming a constraint takes it a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyInTwo {
    /// Of the constraint and its index, unquoted.
    pub(crate) name: String,
    pub(crate) build: String,
    pub(crate) attach: String,
}

impl Entry {
    /// The two statements; `None` for what `USING INDEX` cannot take (exclusion constraints, `WITHOUT OVERLAPS`) and for
    /// whatever else is not written as pg_dump's `dumpConstraint` writes keys: it is to be run as it is. Keys of
    /// partitioned tables look the same, and are for the caller to leave out ("ALTER TABLE" in the documentation).
    pub(crate) fn key_in_two(&self) -> Option<KeyInTwo> {
        let text = self.statements.first()?;
        let tokens = self.tokens(0);
        let mut reader = Reader { text, tokens: &tokens, at: 0 };
        reader.words(&["alter", "table"])?;
        reader.skip(&["only"]);
        let relation = reader.qualified()?;
        reader.words(&["add", "constraint"])?;
        let (name, quoted_name) = reader.identifier()?;
        // Everything up to here stands before `USING INDEX` as it stands before the key.
        let head = &text[..reader.end()];
        let (kind, nulls) = if reader.skip(&["primary", "key"]) {
            ("PRIMARY KEY", "")
        } else {
            reader.words(&["unique"])?;
            ("UNIQUE", reader.nulls())
        };
        let columns = reader.parentheses()?;
        if columns.tokens.iter().any(|token| token.is_word("overlaps")) {
            return None;
        }
        let included =
            reader.skip(&["include"]).then(|| reader.parentheses()).map_or(Some(None), |list| list.map(Some))?;
        let storage = reader.skip(&["with"]).then(|| reader.parentheses()).map_or(Some(None), |list| list.map(Some))?;
        let timing = reader.timing()?;
        let clause = |word: &str, list: Option<List<'_>>| list.map(|list| format!(" {word} {}", list.text));
        let build = format!(
            "CREATE UNIQUE INDEX {quoted_name} ON {relation} USING btree {}{}{nulls}{}",
            columns.text,
            clause("INCLUDE", included).unwrap_or_default(),
            clause("WITH", storage).unwrap_or_default(),
        );
        Some(KeyInTwo { name, build, attach: format!("{head} {kind} USING INDEX {quoted_name}{timing}") })
    }

    /// The table that `CREATE STATISTICS .. ON .. FROM` names: behind the last `FROM` outside parentheses, since an
    /// expression may hold one of its own.
    pub(crate) fn statistics_relation(&self) -> Option<TableName> {
        let tokens = self.tokens(0);
        let (mut depth, mut from) = (0_usize, None);
        for (at, token) in tokens.iter().enumerate() {
            match token.kind {
                TokenKind::Open => depth += 1,
                TokenKind::Close => depth = depth.saturating_sub(1),
                TokenKind::Word if depth == 0 && token.is_word("from") => from = Some(at + 1),
                TokenKind::Word
                | TokenKind::LineComment
                | TokenKind::BlockComment
                | TokenKind::Quoted
                | TokenKind::Literal
                | TokenKind::Meta
                | TokenKind::Semicolon
                | TokenKind::Symbol => {}
            }
        }
        let at = from?;
        let (schema, name) = (tokens.get(at)?.identifier()?, tokens.get(at + 2)?.identifier()?);
        (tokens.get(at + 1)?.text == ".").then(|| TableName::new(schema, name))
    }
}

/// Reads a statement's tokens from left to right.
struct Reader<'a> {
    text: &'a str,
    tokens: &'a [Token<'a>],
    at: usize,
}

struct List<'a> {
    tokens: &'a [Token<'a>],
    /// With its parentheses.
    text: &'a str,
}

impl<'a> Reader<'a> {
    /// Passes these words if they come next.
    fn skip(&mut self, words: &[&str]) -> bool {
        let next = &self.tokens[self.at..];
        let there = next.len() >= words.len() && next.iter().zip(words).all(|(token, word)| token.is_word(word));
        if there {
            self.at += words.len();
        }
        there
    }

    fn words(&mut self, words: &[&str]) -> Option<()> {
        self.skip(words).then_some(())
    }

    /// Unquoted, and as written.
    fn identifier(&mut self) -> Option<(String, &'a str)> {
        let token = self.tokens.get(self.at)?;
        self.at += 1;
        Some((token.identifier()?, token.text))
    }

    /// `schema.name` as written.
    fn qualified(&mut self) -> Option<&'a str> {
        let start = self.tokens.get(self.at)?.start;
        self.identifier()?;
        let dot = self.tokens.get(self.at)?;
        self.at += 1;
        self.identifier()?;
        (dot.text == ".").then(|| &self.text[start..self.end()])
    }

    /// Where the token that was read last ends.
    fn end(&self) -> usize {
        self.tokens[..self.at].last().map_or(0, |token| token.start + token.text.len())
    }

    /// From PostgreSQL 15 on. It stands before the columns of a constraint and behind those of an index.
    fn nulls(&mut self) -> &'static str {
        match () {
            () if self.skip(&["nulls", "not", "distinct"]) => " NULLS NOT DISTINCT",
            () if self.skip(&["nulls", "distinct"]) => " NULLS DISTINCT",
            () => "",
        }
    }

    fn parentheses(&mut self) -> Option<List<'a>> {
        let first = self.at;
        let mut depth = 0_usize;
        loop {
            let token = self.tokens.get(self.at)?;
            self.at += 1;
            depth = match token.kind {
                TokenKind::Open => depth + 1,
                TokenKind::Close => depth.checked_sub(1)?,
                TokenKind::Word
                | TokenKind::LineComment
                | TokenKind::BlockComment
                | TokenKind::Quoted
                | TokenKind::Literal
                | TokenKind::Meta
                | TokenKind::Semicolon
                | TokenKind::Symbol => depth,
            };
            if depth == 0 {
                // A list begins with a parenthesis, or there is none.
                let text = &self.text[self.tokens[first].start..self.end()];
                return text.starts_with('(').then(|| List { tokens: &self.tokens[first..self.at], text });
            }
        }
    }

    /// When it is checked, up to the end of the statement; `None` when something else stands there.
    fn timing(&mut self) -> Option<&'static str> {
        let deferrable = self.skip(&["deferrable"]);
        let deferred = deferrable && self.skip(&["initially", "deferred"]);
        let over = self.at == self.tokens.len();
        over.then_some(match (deferrable, deferred) {
            (true, true) => " DEFERRABLE INITIALLY DEFERRED",
            (true, false) => " DEFERRABLE",
            (false, _) => "",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(statement: &str) -> Option<(String, String)> {
        let entry = Entry { statements: vec![statement.to_owned()], ..Entry::default() };
        entry.key_in_two().map(|key| (key.build, key.attach))
    }

    /// Each as pg_dump of the version in which the clause appeared writes it (`dumpConstraint` in pg_dump.c).
    #[test]
    fn a_key_becomes_an_index_and_a_constraint_that_takes_it() {
        for (statement, build, attach) in [
            (
                "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT t_pkey PRIMARY KEY (id)",
                "CREATE UNIQUE INDEX t_pkey ON public.t USING btree (id)",
                "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT t_pkey PRIMARY KEY USING INDEX t_pkey",
            ),
            (
                "ALTER TABLE ONLY \"Mixed Case\".\"Weird \"\"name; -- x\"\n    ADD CONSTRAINT \"p k\" PRIMARY KEY (\"ID\", \"a,)b\") INCLUDE (n, \"o\"\"f\")",
                "CREATE UNIQUE INDEX \"p k\" ON \"Mixed Case\".\"Weird \"\"name; -- x\" USING btree (\"ID\", \"a,)b\") INCLUDE (n, \"o\"\"f\")",
                "ALTER TABLE ONLY \"Mixed Case\".\"Weird \"\"name; -- x\"\n    ADD CONSTRAINT \"p k\" PRIMARY KEY USING INDEX \"p k\"",
            ),
            (
                "ALTER TABLE ONLY public.booking\n    ADD CONSTRAINT booking_u UNIQUE (room, id) DEFERRABLE INITIALLY DEFERRED",
                "CREATE UNIQUE INDEX booking_u ON public.booking USING btree (room, id)",
                "ALTER TABLE ONLY public.booking\n    ADD CONSTRAINT booking_u UNIQUE USING INDEX booking_u DEFERRABLE INITIALLY DEFERRED",
            ),
            (
                "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT \"unique\" UNIQUE (\"nulls\") WITH (fillfactor='70', deduplicate_items='off') DEFERRABLE",
                "CREATE UNIQUE INDEX \"unique\" ON public.t USING btree (\"nulls\") WITH (fillfactor='70', deduplicate_items='off')",
                "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT \"unique\" UNIQUE USING INDEX \"unique\" DEFERRABLE",
            ),
            (
                "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT u UNIQUE NULLS NOT DISTINCT (a, b) INCLUDE (c) WITH (fillfactor='50')",
                "CREATE UNIQUE INDEX u ON public.t USING btree (a, b) INCLUDE (c) NULLS NOT DISTINCT WITH (fillfactor='50')",
                "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT u UNIQUE USING INDEX u",
            ),
        ] {
            assert_eq!(split(statement), Some((build.to_owned(), attach.to_owned())), "{statement}");
        }
    }

    #[test]
    fn what_cannot_take_an_index_stays_as_it_is() {
        for statement in [
            "ALTER TABLE ONLY public.booking\n    ADD CONSTRAINT no_overlap EXCLUDE USING gist (during WITH &&)",
            "ALTER TABLE ONLY public.stay\n    ADD CONSTRAINT stay_pkey PRIMARY KEY (room, during WITHOUT OVERLAPS)",
            "ALTER TABLE public.t\n    ADD CONSTRAINT late CHECK ((room <> 13)) NOT VALID",
            "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES public.u(id)",
            "ALTER TABLE public.t\n    ADD CONSTRAINT n NOT NULL a NOT VALID",
            "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT u UNIQUE (a) NOT ENFORCED",
            "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT u UNIQUE USING INDEX u",
            "CREATE UNIQUE INDEX u ON public.t USING btree (a)",
            "",
        ] {
            assert_eq!(split(statement), None, "{statement}");
        }
    }

    #[test]
    fn statistics_know_their_table() {
        for (statement, expected) in [
            ("CREATE STATISTICS public.s (ndistinct) ON id, room FROM public.booking", Some(("public", "booking"))),
            (
                "CREATE STATISTICS x.\"from\" ON EXTRACT(year FROM at), (lower(\"from\")) FROM x.\"a from b\"",
                Some(("x", "a from b")),
            ),
            ("ALTER STATISTICS public.s SET STATISTICS 7", None),
        ] {
            let entry = Entry { statements: vec![statement.to_owned()], ..Entry::default() };
            let expected = expected.map(|(schema, name)| TableName::new(schema, name));
            assert_eq!(entry.statistics_relation(), expected, "{statement}");
        }
    }
}
