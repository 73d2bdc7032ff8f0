//! As much of PostgreSQL's lexer as it takes to see where a statement ends (`scan.l`, and psql's own rules about
//! parentheses and `BEGIN ATOMIC` in `psqlscan.l`).
//!
//! Strings are read as under `standard_conforming_strings = on`. pg_dump doubles backslashes where it is off, which
//! ends every literal at the same place.

/// A dump that is not what pg_dump writes.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("read the dump at byte {at_bytes}: {what}")]
pub struct Malformed {
    pub at_bytes: usize,
    pub what: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// `-- ...` without its line end.
    LineComment,
    BlockComment,
    /// An identifier or keyword as written, or a number.
    Word,
    /// `"..."`, quotes included.
    Quoted,
    /// Any string literal, dollar quotes included.
    Literal,
    /// A line for psql, such as `\restrict`.
    Meta,
    Semicolon,
    Open,
    Close,
    Symbol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: TokenKind,
    pub(super) text: &'a str,
    /// Where it starts, in bytes.
    pub(super) start: usize,
}

impl Token<'_> {
    pub(super) fn is_word(&self, word: &str) -> bool {
        self.kind == TokenKind::Word && self.text.eq_ignore_ascii_case(word)
    }

    pub(super) fn is_comment(&self) -> bool {
        matches!(self.kind, TokenKind::LineComment | TokenKind::BlockComment)
    }

    /// The name an identifier stands for: unquoted or folded to lower case.
    pub(super) fn identifier(&self) -> Option<String> {
        match self.kind {
            TokenKind::Word => Some(self.text.to_lowercase()),
            TokenKind::Quoted => Some(self.text[1..self.text.len() - 1].replace("\"\"", "\"")),
            TokenKind::LineComment
            | TokenKind::BlockComment
            | TokenKind::Literal
            | TokenKind::Meta
            | TokenKind::Semicolon
            | TokenKind::Open
            | TokenKind::Close
            | TokenKind::Symbol => None,
        }
    }
}

/// The tokens of a text, in order. White space is left out.
pub(super) struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Tokens<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// The next token; `None` at the end.
    pub(super) fn next_token(&mut self) -> Result<Option<Token<'a>>, Malformed> {
        self.at += self.rest().len() - self.rest().trim_start().len();
        let Some(first) = self.rest().chars().next() else { return Ok(None) };
        let start = self.at;
        let (kind, length) = self.measure(first)?;
        self.at += length;
        Ok(Some(Token { kind, text: &self.text[start..self.at], start }))
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn measure(&self, first: char) -> Result<(TokenKind, usize), Malformed> {
        let rest = self.rest();
        Ok(match first {
            '-' if rest.starts_with("--") => (TokenKind::LineComment, line_length(rest)),
            '/' if rest.starts_with("/*") => (TokenKind::BlockComment, self.closed(block_comment_length(rest))?),
            '\\' if self.at_line_start() => (TokenKind::Meta, line_length(rest)),
            '"' => (TokenKind::Quoted, self.closed(quoted_length(rest, '"', false))?),
            '\'' => (TokenKind::Literal, self.closed(quoted_length(rest, '\'', false))?),
            'e' | 'E' if rest[1..].starts_with('\'') => {
                (TokenKind::Literal, 1 + self.closed(quoted_length(&rest[1..], '\'', true))?)
            }
            '$' => match dollar_tag(rest) {
                Some(tag) => (TokenKind::Literal, self.closed(dollar_length(rest, tag))?),
                None => (TokenKind::Symbol, 1),
            },
            ';' => (TokenKind::Semicolon, 1),
            '(' => (TokenKind::Open, 1),
            ')' => (TokenKind::Close, 1),
            _ if is_word(first) => (TokenKind::Word, word_length(rest)),
            _ => (TokenKind::Symbol, first.len_utf8()),
        })
    }

    fn closed(&self, length: Option<usize>) -> Result<usize, Malformed> {
        length.ok_or(Malformed { at_bytes: self.at, what: "a quote or comment that never ends" })
    }

    fn at_line_start(&self) -> bool {
        self.at == 0 || self.text[..self.at].ends_with('\n')
    }
}

/// Letters, digits, `_` and everything beyond ASCII; `$` only inside (`scan.l`: ident_start, ident_cont).
fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_' || !character.is_ascii()
}

fn word_length(text: &str) -> usize {
    text.find(|character| !is_word(character) && character != '$').unwrap_or(text.len())
}

fn line_length(text: &str) -> usize {
    text.find(['\n', '\r']).unwrap_or(text.len())
}

/// Block comments nest.
fn block_comment_length(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += rest.chars().next()?.len_utf8();
        }
    }
}

/// From the opening quote to the closing one; a doubled quote stands for itself.
fn quoted_length(text: &str, quote: char, backslash_escapes: bool) -> Option<usize> {
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        if character == '\\' && backslash_escapes {
            characters.next()?;
        } else if character == quote {
            match characters.peek() {
                Some((_, next)) if *next == quote => drop(characters.next()),
                _ => return Some(at + 1),
            }
        }
    }
    None
}

/// `$tag$` at the start of the text; the tag may be empty and does not begin with a digit.
fn dollar_tag(text: &str) -> Option<&str> {
    let inside = &text[1..];
    let length = inside.find(|character| !is_word(character)).unwrap_or(inside.len());
    let starts_with_digit = inside.starts_with(|character: char| character.is_ascii_digit());
    (inside[length..].starts_with('$') && !starts_with_digit).then(|| &text[..length + 2])
}

fn dollar_length(text: &str, tag: &str) -> Option<usize> {
    text[tag.len()..].find(tag).map(|at| at + 2 * tag.len())
}

/// Where one statement ends, fed token by token.
#[derive(Default)]
pub(super) struct StatementEnd {
    parentheses: usize,
    /// Open `BEGIN ATOMIC` and `CASE` inside a routine's body.
    blocks: usize,
    /// The first words of the statement, enough to tell a routine's definition.
    words: Vec<String>,
    after_begin: bool,
}

impl StatementEnd {
    /// `CREATE OR REPLACE PROCEDURE`: the kind is the fourth word at the latest.
    const WORD_COUNT_MAX: usize = 4;

    /// Whether the statement ends with this token.
    pub(super) fn on(&mut self, token: &Token<'_>) -> bool {
        match token.kind {
            TokenKind::Open => self.parentheses += 1,
            TokenKind::Close => self.parentheses = self.parentheses.saturating_sub(1),
            TokenKind::Word => self.on_word(token),
            TokenKind::Semicolon => return self.parentheses == 0 && self.blocks == 0,
            TokenKind::LineComment
            | TokenKind::BlockComment
            | TokenKind::Quoted
            | TokenKind::Literal
            | TokenKind::Meta
            | TokenKind::Symbol => {}
        }
        false
    }

    fn on_word(&mut self, token: &Token<'_>) {
        if self.words.len() < Self::WORD_COUNT_MAX {
            self.words.push(token.text.to_ascii_lowercase());
        }
        let after_begin = std::mem::replace(&mut self.after_begin, token.is_word("begin"));
        if !self.defines_routine() {
            return;
        }
        if (after_begin && token.is_word("atomic")) || (self.blocks > 0 && token.is_word("case")) {
            self.blocks += 1;
        } else if token.is_word("end") {
            self.blocks = self.blocks.saturating_sub(1);
        }
    }

    fn defines_routine(&self) -> bool {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        matches!(
            words.as_slice(),
            ["create", "function" | "procedure", ..] | ["create", "or", "replace", "function" | "procedure", ..]
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statements(text: &str) -> Vec<String> {
        let mut tokens = Tokens::new(text);
        let (mut found, mut start, mut end) = (Vec::new(), None, StatementEnd::default());
        while let Some(token) = tokens.next_token().unwrap() {
            let from = *start.get_or_insert(token.start);
            if end.on(&token) {
                found.push(text[from..token.start].trim().to_owned());
                (start, end) = (None, StatementEnd::default());
            }
        }
        found
    }

    #[test]
    fn a_semicolon_inside_anything_ends_nothing() {
        for statement in [
            r"SELECT 'a;b'",
            r"SELECT 'it''s;'",
            r"SELECT E'it\';s \\'",
            r"SELECT 'back\'",
            r#"SELECT ";" FROM "a"";b""#,
            "SELECT $$;$$, $x$ $$;$$ $y$;$y$ $x$",
            "SELECT a$b, 'x' AS c$d, $1",
            "SELECT /* ; /* ; */ ; */ 1",
            "SELECT 1 -- ;\n + 1",
            "SELECT U&'d;\\0061t', B'1', N';'",
            "CREATE RULE r AS ON INSERT TO t DO (DELETE FROM a; DELETE FROM b)",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql\n BEGIN ATOMIC\n SELECT CASE WHEN true THEN 1 END;\n SELECT 2;\nEND",
            "CREATE OR REPLACE PROCEDURE p()\n BEGIN ATOMIC\n INSERT INTO t VALUES (1);\nEND",
            "SELECT 'ünïcödé;', \"täble;\"",
        ] {
            assert_eq!(statements(&format!("{statement};\nSELECT 2;")), [statement, "SELECT 2"], "{statement}");
        }
    }

    #[test]
    fn begin_and_end_mean_nothing_outside_a_routine() {
        assert_eq!(statements("BEGIN; SELECT CASE WHEN a THEN b END; END; COMMIT;").len(), 4);
        assert_eq!(statements("CREATE TABLE begin (atomic int, \"case\" text); SELECT 1;").len(), 2);
    }

    #[test]
    fn what_never_ends_is_refused() {
        for text in ["SELECT 'a", "SELECT $x$ $y$", "/* /* */", "SELECT \"a", "SELECT E'a\\"] {
            let mut tokens = Tokens::new(text);
            let outcome = std::iter::from_fn(|| tokens.next_token().transpose()).collect::<Result<Vec<_>, _>>();
            assert!(outcome.is_err(), "{text}");
        }
    }

    #[test]
    fn identifiers_are_folded_or_unquoted() {
        let names = |text| {
            let mut tokens = Tokens::new(text);
            std::iter::from_fn(|| tokens.next_token().unwrap())
                .filter_map(|token| token.identifier())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(r#"Public."We""ird".x"#), ["public", "We\"ird", "x"]);
    }
}
