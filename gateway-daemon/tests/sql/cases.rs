//! Statements of every kind with what they are read as. A line of `statements/*.sql` is a text; its reading is in the
//! snapshot of its file.

use std::{fmt::Write as _, fs, path::Path};

use crate::support::{CATALOG, describe, on_a_big_stack};
use gateway_daemon::sql::{Reading, StatementKind, read};

/// The kind, in a word or two.
fn kind(kind: &StatementKind) -> String {
    match kind {
        StatementKind::Prepare { name, statement } => format!("Prepare {name} [{}]", describe(statement).join("; ")),
        StatementKind::Transaction(control) => format!("{control:?}"),
        other => format!("{other:?}"),
    }
}

fn lines(reading: &Reading) -> String {
    let mut out = String::new();
    for statement in &reading.statements {
        writeln!(out, "    {}", kind(&statement.kind)).unwrap();
        describe(statement).iter().for_each(|access| writeln!(out, "      {access}").unwrap());
        statement.reasons.iter().for_each(|reason| writeln!(out, "      because {reason}").unwrap());
        statement.effects.iter().for_each(|effect| writeln!(out, "      then {effect:?}").unwrap());
        statement.executes.iter().for_each(|name| writeln!(out, "      executes {name}").unwrap());
    }
    out
}

#[test]
fn every_kind_of_statement_is_read_as_written_down() {
    on_a_big_stack(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sql/statements");
        for file in ["select", "write", "ddl", "code", "admin", "session", "functions", "refused"] {
            let texts = fs::read_to_string(folder.join(format!("{file}.sql"))).unwrap();
            let mut out = String::new();
            for text in texts.lines() {
                writeln!(out, "{text}").unwrap();
                match read(text, &CATALOG, &CATALOG.session_names()) {
                    Ok(reading) => out.push_str(&lines(&reading)),
                    Err(error) => writeln!(out, "    cannot be read: {error}").unwrap(),
                }
            }
            insta::assert_snapshot!(file, out);
        }
    });
}
