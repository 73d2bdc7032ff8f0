//! A plain-text dump, taken apart into its table of contents' entries.

use std::collections::BTreeMap;

use super::lexer::{Malformed, StatementEnd, Token, TokenKind, Tokens};
use crate::model::TableName;

const BECOME: &str = "SET SESSION AUTHORIZATION ";

/// A section of a dump: what to set on the session first, then entries in an order that satisfies their dependencies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dump {
    pub(crate) preamble: Vec<Setting>,
    pub(crate) entries: Vec<Entry>,
    /// Tables were left out, so that an entry may need what is not there.
    pub(crate) partial: bool,
}

/// One object of the dump (`_printTocEntry` in pg_backup_archiver.c).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// `TABLE`, `INDEX`, `FK CONSTRAINT`, ...
    pub(crate) kind: String,
    /// As pg_dump prints it: for an index its name, for a constraint `table name`. For people and for `kind`'s sake;
    /// which table it belongs to is read from the statement.
    pub(crate) name: String,
    pub(crate) schema: Option<String>,
    /// What differs from the preamble when its statements run: `default_tablespace`, `default_table_access_method`.
    pub(crate) settings: Vec<Setting>,
    /// Without their semicolons.
    pub(crate) statements: Vec<String>,
}

/// A `SET` or `set_config` of the dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) name: String,
    pub(crate) statement: String,
}

impl Dump {
    /// Takes a plain-text dump apart.
    pub(crate) fn parse(text: &str) -> Result<Self, Malformed> {
        let mut splitter = Splitter::default();
        let mut tokens = Tokens::new(text);
        let (mut start, mut end) = (None, StatementEnd::default());
        while let Some(token) = tokens.next_token()? {
            match start {
                None if token.is_comment() => splitter.on_comment(&token),
                // `\restrict` and its kin are for psql.
                None if matches!(token.kind, TokenKind::Meta | TokenKind::Semicolon) => {}
                None | Some(_) => {
                    let from = *start.get_or_insert(token.start);
                    if end.on(&token) {
                        splitter.on_statement(text[from..token.start].trim_end());
                        (start, end) = (None, StatementEnd::default());
                    }
                }
            }
        }
        match start {
            Some(at_bytes) => Err(Malformed { at_bytes, what: "a statement without its end" }),
            None => Ok(splitter.finish()),
        }
    }
}

#[derive(Default)]
struct Splitter {
    dump: Dump,
    current: Option<Entry>,
    /// Settings since the preamble, by name.
    settings: BTreeMap<String, String>,
}

impl Splitter {
    fn on_comment(&mut self, comment: &Token<'_>) {
        let Some(mut entry) = header(comment.text) else { return };
        entry.settings = self
            .settings
            .iter()
            .map(|(name, statement)| Setting { name: name.clone(), statement: statement.clone() })
            .collect();
        self.dump.entries.extend(self.current.replace(entry));
    }

    /// The archiver writes `SET` before the header of the entry that needs it, so it belongs to what follows.
    fn on_statement(&mut self, statement: &str) {
        match (setting_name(statement), &mut self.current) {
            (Some(name), None) => self.dump.preamble.push(Setting { name, statement: statement.to_owned() }),
            (Some(name), Some(_)) => drop(self.settings.insert(name, statement.to_owned())),
            (None, Some(entry)) => entry.statements.push(as_member(statement)),
            (None, None) => self.current = Some(Entry { statements: vec![statement.to_owned()], ..Entry::default() }),
        }
    }

    fn finish(mut self) -> Dump {
        self.dump.entries.extend(self.current);
        self.dump.entries.retain(|entry| !entry.statements.is_empty());
        self.dump
    }
}

/// `-- Name: orders; Type: TABLE; Schema: public; Owner: shop`. Read from the right, since a name may hold anything.
fn header(comment: &str) -> Option<Entry> {
    let rest = comment.strip_prefix("-- Name: ").or_else(|| comment.strip_prefix("-- Data for Name: "))?;
    let (rest, _owner) = rest.rsplit_once("; Owner: ")?;
    let (rest, schema) = rest.rsplit_once("; Schema: ")?;
    let (name, kind) = rest.rsplit_once("; Type: ")?;
    let schema = (schema != "-").then(|| schema.to_owned());
    Some(Entry { kind: kind.to_owned(), name: name.to_owned(), schema, ..Entry::default() })
}

/// pg_dump changes the session's user around what somebody else granted, which only a superuser may do and which is no
/// setting for the entries behind it. Whoever is a member of the grantor may become it, and grants in its name.
fn as_member(statement: &str) -> String {
    match statement.strip_prefix(BECOME) {
        Some(role) => format!("SET ROLE {role}"),
        None if statement == "RESET SESSION AUTHORIZATION" => "RESET ROLE".to_owned(),
        None => statement.to_owned(),
    }
}

/// The parameter that `SET x = ..` or `SELECT pg_catalog.set_config('x', ..)` sets.
fn setting_name(statement: &str) -> Option<String> {
    if statement.starts_with(BECOME) {
        return None;
    }
    if let Some(rest) = statement.strip_prefix("SET ") {
        return rest.split([' ', '=']).next().map(str::to_owned);
    }
    let rest = statement.strip_prefix("SELECT pg_catalog.set_config('")?;
    rest.split('\'').next().map(str::to_owned)
}

impl Entry {
    /// The table (or view) that an index, constraint or trigger stands on: behind `ALTER TABLE [ONLY]` or the first
    /// `ON [ONLY]`, qualified as pg_dump writes every name.
    pub(crate) fn relation(&self) -> Option<TableName> {
        let tokens = self.tokens(0);
        let after_on = || tokens.iter().position(|token| token.is_word("on")).map(|at| at + 1);
        let at = match tokens.as_slice() {
            [alter, table, ..] if alter.is_word("alter") && table.is_word("table") => 2,
            _ => after_on()?,
        };
        name_at(&tokens, at + usize::from(tokens.get(at)?.is_word("only")))
    }

    /// What stands behind the last `FROM`, which ends `CREATE STATISTICS`; expressions before it may hold others.
    pub(crate) fn read_relation(&self) -> Option<TableName> {
        let tokens = self.tokens(0);
        let at = tokens.iter().rposition(|token| token.is_word("from"))?;
        name_at(&tokens, at + 1)
    }

    /// The constraint that the first statement adds.
    pub(crate) fn added_constraint(&self) -> Option<String> {
        let tokens = self.tokens(0);
        let at = tokens.windows(2).position(|pair| pair[0].is_word("add") && pair[1].is_word("constraint"))?;
        tokens.get(at + 2)?.identifier()
    }

    /// Whether the first statement holds these words in a row, outside quotes and comments.
    pub(crate) fn says(&self, words: &[&str]) -> bool {
        self.tokens(0)
            .windows(words.len())
            .any(|window| window.iter().zip(words).all(|(token, word)| token.is_word(word)))
    }

    /// `kind schema.name`, for messages and for the record of what is done.
    pub(crate) fn title(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{} {schema}.{}", self.kind, self.name),
            None => format!("{} {}", self.kind, self.name),
        }
    }

    /// The policy, rule or trigger that the first statement makes or comments on, and its table.
    pub(crate) fn named_part(&self) -> Option<(String, TableName)> {
        let tokens = self.tokens(0);
        let kind = |token: &Token<'_>| ["policy", "rule", "trigger"].iter().any(|kind| token.is_word(kind));
        let at = tokens.iter().position(kind)? + 1;
        let name = tokens.get(at)?.identifier()?;
        // `CREATE RULE r AS ON INSERT TO t`, `CREATE TRIGGER g AFTER INSERT ON t`, `COMMENT ON RULE r ON t`.
        let comments = tokens.first()?.is_word("comment");
        let before = if tokens[at - 1].is_word("rule") && !comments { "to" } else { "on" };
        let on = tokens.iter().skip(at + 1).position(|token| token.is_word(before))? + at + 1;
        Some((name, name_at(&tokens, on + 1)?))
    }

    /// Keeps the statements that `keeps` says yes to, each shown as an entry of its own.
    pub(crate) fn retain_statements(&mut self, keeps: impl Fn(&Self) -> bool) {
        self.statements.retain(|statement| keeps(&Self { statements: vec![statement.clone()], ..Self::default() }));
    }

    /// Drops `SECURITY LABEL FOR provider ...`.
    pub(crate) fn leave_out_labels_of(&mut self, provider: &str) {
        self.retain_statements(|statement| {
            let tokens = statement.tokens(0);
            let labels = statement.says(&["security", "label", "for"]);
            let of = tokens.get(3).and_then(Token::identifier);
            !(labels && tokens[0].is_word("security") && of.as_deref() == Some(provider))
        });
    }

    fn tokens(&self, statement: usize) -> Vec<Token<'_>> {
        let mut tokens = Tokens::new(self.statements.get(statement).map_or("", String::as_str));
        std::iter::from_fn(|| tokens.next_token().ok().flatten()).filter(|token| !token.is_comment()).collect()
    }
}

/// A qualified name, as pg_dump writes every one.
fn name_at(tokens: &[Token<'_>], at: usize) -> Option<TableName> {
    let (schema, name) = (tokens.get(at)?.identifier()?, tokens.get(at + 2)?.identifier()?);
    (tokens.get(at + 1)?.text == ".").then(|| TableName::new(schema, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = r#"--
-- PostgreSQL database dump
--

\restrict q8YkX

-- Dumped from database version 15.20

SET statement_timeout = 0;
SELECT pg_catalog.set_config('search_path', '', false);

--
-- Name: f(); Type: FUNCTION; Schema: public; Owner: me
--

CREATE FUNCTION public.f() RETURNS text
    LANGUAGE sql
    AS $_$
--
-- Name: fake; Type: TABLE; Schema: public; Owner: me
--
SET default_tablespace = 'fake';
\unrestrict fake
select $$;$$ $_$;


ALTER FUNCTION public.f() OWNER TO me;

SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: odd; Type: name; Type: TABLE; Schema: we.ird; Owner: me
--

CREATE TABLE "we.ird"."odd; Type: name" (
    id integer -- Name: x; Type: y; Schema: z; Owner: w
);

SET default_tablespace = fast;

--
-- Name: i; Type: INDEX; Schema: public; Owner: me; Tablespace: fast
--

CREATE UNIQUE INDEX i ON ONLY "we.ird"."odd; Type: name" USING btree (id);

\unrestrict q8YkX
"#;

    #[test]
    fn entries_are_split_at_headers_and_nowhere_else() {
        let dump = Dump::parse(DUMP).unwrap();
        assert_eq!(
            dump.preamble.iter().map(|setting| &*setting.name).collect::<Vec<_>>(),
            ["statement_timeout", "search_path"]
        );
        let shape: Vec<_> = dump
            .entries
            .iter()
            .map(|entry| (&*entry.kind, &*entry.name, entry.schema.as_deref(), entry.statements.len()))
            .collect();
        assert_eq!(
            shape,
            [
                ("FUNCTION", "f()", Some("public"), 2),
                ("TABLE", "odd; Type: name", Some("we.ird"), 1),
                ("INDEX", "i", Some("public"), 1),
            ]
        );
        assert!(dump.entries[0].statements[0].contains(r"\unrestrict fake"));
    }

    #[test]
    fn an_entry_carries_the_settings_that_were_in_force() {
        let dump = Dump::parse(DUMP).unwrap();
        let settings = |index: usize| -> Vec<&str> {
            dump.entries[index].settings.iter().map(|setting| setting.statement.as_str()).collect()
        };
        assert!(settings(0).is_empty());
        assert_eq!(settings(1), ["SET default_table_access_method = heap", "SET default_tablespace = ''"]);
        assert_eq!(settings(2), ["SET default_table_access_method = heap", "SET default_tablespace = fast"]);
    }

    #[test]
    fn an_entry_knows_its_relation() {
        let relation =
            |statement: &str| Entry { statements: vec![statement.to_owned()], ..Entry::default() }.relation();
        let dump = Dump::parse(DUMP).unwrap();
        assert_eq!(dump.entries[2].relation(), Some(TableName::new("we.ird", "odd; Type: name")));
        for (statement, expected) in [
            ("ALTER TABLE ONLY public.t\n    ADD CONSTRAINT t_pkey PRIMARY KEY (id)", Some(("public", "t"))),
            ("ALTER TABLE public.\"T on x\" ADD CONSTRAINT \"on\" CHECK (a)", Some(("public", "T on x"))),
            ("CREATE INDEX \"on\" ON public.t USING btree (x)", Some(("public", "t"))),
            ("ALTER INDEX public.a ATTACH PARTITION public.b", None),
        ] {
            assert_eq!(relation(statement), expected.map(|(schema, name)| TableName::new(schema, name)), "{statement}");
        }
    }

    #[test]
    fn what_somebody_else_granted_is_granted_in_their_name_and_sets_nothing_behind_it() {
        let text = "-- Name: TABLE a; Type: ACL; Schema: public; Owner: me\n\nGRANT SELECT ON TABLE public.a TO b;\n\
                    SET SESSION AUTHORIZATION \"b\";\nGRANT SELECT ON TABLE public.a TO c;\nRESET SESSION AUTHORIZATION;\n\
                    -- Name: c; Type: TABLE; Schema: public; Owner: me\n\nCREATE TABLE public.c ();\n";
        let dump = Dump::parse(text).unwrap();
        assert_eq!(
            dump.entries[0].statements,
            [
                "GRANT SELECT ON TABLE public.a TO b",
                "SET ROLE \"b\"",
                "GRANT SELECT ON TABLE public.a TO c",
                "RESET ROLE"
            ]
        );
        assert!(dump.preamble.is_empty() && dump.entries[1].settings.is_empty());
    }

    #[test]
    fn a_part_of_a_table_is_told_by_its_name_and_table() {
        for statement in [
            "CREATE POLICY \"p on\" ON s.t FOR SELECT USING (true)",
            "CREATE RULE \"p on\" AS\n    ON INSERT TO s.t DO NOTHING",
            "CREATE CONSTRAINT TRIGGER \"p on\" AFTER INSERT ON s.t FROM s.u NOT DEFERRABLE",
            "COMMENT ON RULE \"p on\" ON s.t IS 'x'",
        ] {
            let entry = Entry { statements: vec![statement.to_owned()], ..Entry::default() };
            assert_eq!(entry.named_part(), Some(("p on".to_owned(), TableName::new("s", "t"))), "{statement}");
        }
    }

    #[test]
    fn statistics_know_their_table() {
        let sql = "CREATE STATISTICS s.x (mcv) ON EXTRACT(year FROM d), lower(b) FROM \"s.p\".t";
        let entry = Entry { statements: vec![sql.to_owned()], ..Entry::default() };
        assert_eq!(entry.read_relation(), Some(TableName::new("s.p", "t")));
    }

    #[test]
    fn half_a_statement_is_refused() {
        assert!(Dump::parse("SELECT 1").is_err());
    }
}
