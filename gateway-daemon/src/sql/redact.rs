//! Secrets in statements: the text as the record may keep it.

use std::{borrow::Cow, ops::Range};

use super::{
    ReadError, Reading,
    lex::{Kind, Lexer},
};

/// Words that stand before or beside secrets. A text that could not be read and has one of them loses all its literals.
const SUSPICIOUS: &[&str] =
    &["password", "passwd", "connection", "subscription", "conninfo", "mapping", "server", "dblink", "secret"];

/// The text as the record may keep it: secrets replaced by what `digest` makes of the literal, quotes included. Borrowed
/// where there is none.
pub fn for_record<'a>(
    text: &'a str,
    outcome: Result<&Reading, &ReadError>,
    digest: &dyn Fn(&str) -> String,
) -> Cow<'a, str> {
    let secrets = match outcome {
        Ok(reading) => Cow::Borrowed(&reading.secrets),
        Err(_) => Cow::Owned(secrets_of_unread(text)),
    };
    if secrets.is_empty() {
        return Cow::Borrowed(text);
    }
    let mut kept = String::with_capacity(text.len());
    let mut at = 0;
    for secret in secrets.iter() {
        kept.push_str(text.get(at..secret.start).unwrap_or_default());
        kept.push_str(&digest(text.get(secret.clone()).unwrap_or_default()));
        at = secret.end;
    }
    kept.push_str(text.get(at..).unwrap_or_default());
    Cow::Owned(kept)
}

/// Every string literal of a part of the text; from where the scanner gave up, all the rest.
pub(super) fn literals(text: &str, part: Range<usize>) -> Vec<Range<usize>> {
    let Some(statement) = text.get(part.clone()) else { return vec![part] };
    let mut found = Vec::new();
    let mut at = 0;
    for token in Lexer::new(statement) {
        match token {
            Ok(token) => {
                if matches!(token.kind, Kind::PlainString | Kind::OtherString) {
                    found.push(part.start + token.start..part.start + token.end);
                }
                at = token.end;
            }
            Err(_) => found.push(part.start + at..part.end),
        }
    }
    found
}

fn secrets_of_unread(text: &str) -> Vec<Range<usize>> {
    let lower = text.to_ascii_lowercase();
    if SUSPICIOUS.iter().any(|word| lower.contains(word)) { literals(text, 0..text.len()) } else { Vec::new() }
}

/// Whether a literal's own text (a function's body, SQL in a string) has words that secrets stand beside.
pub(super) fn is_suspicious(literal: &str) -> bool {
    let lower = literal.to_ascii_lowercase();
    SUSPICIOUS.iter().any(|word| lower.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{Catalog, read};

    fn kept(text: &str) -> String {
        let catalog = Catalog::default();
        let outcome = read(text, &catalog, &catalog.session_names());
        for_record(text, outcome.as_ref(), &|secret| format!("<{}>", secret.len())).into_owned()
    }

    #[test]
    fn secrets_leave_the_text_and_nothing_else_does() {
        for (text, want) in [
            ("CREATE ROLE r PASSWORD 'secret'", "CREATE ROLE r PASSWORD <8>"),
            (r"ALTER USER r PASSWORD E'sec\'ret' -- x", r"ALTER USER r PASSWORD <11> -- x"),
            ("ALTER ROLE r PASSWORD $x$secret$x$", "ALTER ROLE r PASSWORD <12>"),
            (
                "SELECT 'kept'; ALTER ROLE r PASSWORD 'secret'; SELECT 'kept'",
                "SELECT 'kept'; ALTER ROLE r PASSWORD <8>; SELECT 'kept'",
            ),
            (
                "CREATE SUBSCRIPTION s CONNECTION 'password=secret' PUBLICATION p",
                "CREATE SUBSCRIPTION s CONNECTION <17> PUBLICATION p",
            ),
            (
                "CREATE USER MAPPING FOR u SERVER s OPTIONS (user 'u', password 'secret')",
                "CREATE USER MAPPING FOR u SERVER s OPTIONS (user <3>, password <8>)",
            ),
            ("ALTER SERVER s OPTIONS (SET password 'secret')", "ALTER SERVER s OPTIONS (SET password <8>)"),
            ("DO $$ BEGIN ALTER ROLE r PASSWORD 'x'; END $$", "DO <42>"),
            ("DO 'BEGIN END'", "DO 'BEGIN END'"),
            ("SELECT dblink('host=h password=secret', 'SELECT 1')", "SELECT dblink(<24>, <10>)"),
            ("COPY t TO PROGRAM 'curl -u a:b'", "COPY t TO PROGRAM <13>"),
            ("SELECT 'password' FROM t", "SELECT 'password' FROM t"),
        ] {
            assert_eq!(kept(text), want);
        }
    }

    #[test]
    fn what_cannot_be_read_loses_its_literals_where_it_speaks_of_secrets() {
        for (text, want) in [
            ("ALTER ROL r PASSWORD 'secret'", "ALTER ROL r PASSWORD <8>"),
            ("ALTER ROLE r PASSWORD 'secret", "ALTER ROLE r PASSWORD<8>"),
            ("SELEC 'x'", "SELEC 'x'"),
        ] {
            assert_eq!(kept(text), want);
        }
    }
}
