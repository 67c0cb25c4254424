//! The corpora, read: ordinary statements are understood, and attacks that would do what they must not show it.

use std::{collections::BTreeSet, fmt::Write as _};

use crate::support::{CATALOG, Case, cases, describe};
use gateway_daemon::sql::{Class, read};

/// Ordinary statements that are refused all the same, and why.
const REFUSED: &[(&str, &str)] = &[
    ("pg-b-160", "pg_dump asks for the options of user mappings, which hold passwords"),
    ("pg-b-161", "pg_dump sets a setting whose name comes from a row"),
];

/// The classes of all that a case does; `unread` stands for a text that cannot be read.
fn classes(case: &Case) -> BTreeSet<&'static str> {
    let mut names = CATALOG.session_names();
    let mut classes = BTreeSet::new();
    for text in &case.texts {
        match read(text, &CATALOG, &names) {
            Ok(reading) => {
                for statement in &reading.statements {
                    classes.extend(statement.accesses.iter().map(|access| access.action.class().name()));
                    names.apply(&statement.effects).unwrap();
                }
            }
            Err(_) => {
                classes.insert("unread");
            }
        }
    }
    classes
}

#[test]
fn no_ordinary_statement_is_unknown() {
    let mut wrong = Vec::new();
    for case in cases("benign.jsonl") {
        let mut names = CATALOG.session_names();
        let mut refused = false;
        for text in &case.texts {
            match read(text, &CATALOG, &names) {
                Ok(reading) => {
                    for statement in &reading.statements {
                        if statement.accesses.iter().any(|access| access.action.class() == Class::Unknown) {
                            refused = true;
                            wrong.push((
                                case.id.clone(),
                                format!("{} {:?}", describe(statement).join("; "), statement.reasons),
                            ));
                        }
                        names.apply(&statement.effects).unwrap();
                    }
                }
                Err(error) => wrong.push((case.id.clone(), error.to_string())),
            }
        }
        assert_eq!(refused, REFUSED.iter().any(|(id, _)| *id == case.id), "{} {wrong:?}", case.id);
    }
    wrong.retain(|(id, _)| !REFUSED.iter().any(|(refused, _)| refused == id));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Reading and session control alone: what the corpora's analyst may do.
fn is_read_only(classes: &BTreeSet<&str>) -> bool {
    classes.iter().all(|class| ["read", "session"].contains(class))
}

#[test]
fn ordinary_statements_of_readers_are_reads() {
    let calling = ["pg-b-022"];
    for case in cases("benign.jsonl").iter().filter(|case| case.agent == "analyst") {
        let may = is_read_only(&classes(case));
        let exempt = calling.contains(&&*case.id) || REFUSED.iter().any(|(id, _)| *id == case.id);
        assert_eq!(may, !exempt, "{} {:?}", case.id, classes(case));
    }
}

#[test]
fn attacks_show_what_they_do() {
    let mut table = String::new();
    for case in cases("attacks.jsonl").iter().filter(|case| !case.texts.is_empty()) {
        let classes: Vec<_> = classes(case).into_iter().collect();
        writeln!(table, "{} {:8} {:18} {}", case.id, case.agent, case.kind, classes.join(" ")).unwrap();
    }
    insta::assert_snapshot!("attacks", table);
}

#[test]
fn attacks_that_must_be_denied_are_no_reads() {
    for case in cases("attacks.jsonl") {
        let must = ["denied", "held"].contains(&&*case.expect);
        if must && !case.texts.is_empty() {
            let classes = classes(&case);
            // LISTEN is of class session: which channels may be heard is for policies.
            assert!(!is_read_only(&classes), "{} {classes:?}", case.id);
        }
    }
}
