//! What nests as deep as is permitted is read on the stack that the daemon's workers have.

use std::time::{Duration, Instant};

use gateway_daemon::sql::{Catalog, Class, MAX_ACCESSES, MAX_NESTING, ReadError, read};

use crate::support::{CATALOG, on_a_big_stack};

/// A statement that nests `n` times, by a way in which statements can.
type Nest = fn(usize) -> String;

const WAYS: &[(&str, Nest)] = &[
    ("operators", |n| format!("SELECT 1{}", "+1".repeat(n))),
    ("prefix operators", |n| format!("SELECT {}1", "- ".repeat(n))),
    ("NOT", |n| format!("SELECT {}true", "NOT ".repeat(n))),
    ("brackets", |n| format!("SELECT {}1{}", "(".repeat(n), ")".repeat(n))),
    ("bracketed operators", |n| format!("SELECT {}1{}", "(1+".repeat(n), ")".repeat(n))),
    ("CASE ELSE", |n| format!("SELECT {}1{}", "CASE WHEN a THEN 1 ELSE ".repeat(n), " END".repeat(n))),
    ("CASE WHEN", |n| format!("SELECT {}true{}", "CASE WHEN ".repeat(n), " THEN 1 END".repeat(n))),
    ("CASE THEN", |n| format!("SELECT {}1{}", "CASE WHEN true THEN ".repeat(n), " END".repeat(n))),
    ("subselects", |n| format!("SELECT {}1{}", "(SELECT ".repeat(n), ")".repeat(n))),
    ("FROM subselects", |n| format!("SELECT {}1{}", "1 FROM (SELECT ".repeat(n), ") x".repeat(n))),
    ("IN subselects", |n| format!("SELECT {}1{}", "1 IN (SELECT ".repeat(n), ")".repeat(n))),
    ("WITH", |n| format!("{}SELECT 1{}", "WITH x AS (".repeat(n), ") SELECT 1".repeat(n))),
    ("casts", |n| format!("SELECT a{}", "::text".repeat(n))),
    ("CAST", |n| format!("SELECT {}1{}", "CAST(".repeat(n), " AS text)".repeat(n))),
    ("arrays", |n| format!("SELECT {}1{}", "ARRAY[".repeat(n), "]".repeat(n))),
    ("subscripts", |n| format!("SELECT {}1{}", "a[".repeat(n), "]".repeat(n))),
    ("calls", |n| format!("SELECT {}1{}", "f(".repeat(n), ")".repeat(n))),
    ("FILTER", |n| format!("SELECT {}true{}", "f() FILTER (WHERE ".repeat(n), ")".repeat(n))),
    ("OVER", |n| format!("SELECT {}1{}", "f() OVER (ORDER BY ".repeat(n), ")".repeat(n))),
    ("WITHIN GROUP", |n| format!("SELECT {}1{}", "f() WITHIN GROUP (ORDER BY ".repeat(n), ")".repeat(n))),
    ("rows", |n| format!("SELECT {}1{}", "ROW(".repeat(n), ")".repeat(n))),
    ("UNION", |n| format!("SELECT 1{}", " UNION SELECT 1".repeat(n))),
    ("bracketed UNION", |n| format!("{}SELECT 1{}", "(SELECT 1 UNION ".repeat(n), ")".repeat(n))),
    ("joins", |n| format!("SELECT FROM t{}", " JOIN t ON a AND b".repeat(n))),
    ("bracketed joins", |n| format!("SELECT FROM {}t{}", "(t CROSS JOIN ".repeat(n), ")".repeat(n))),
    ("BETWEEN", |n| format!("SELECT 1{}", " BETWEEN 1 AND NOT 1".repeat(n))),
    ("JSON_OBJECT", |n| format!("SELECT {}1{}", "JSON_OBJECT('a': ".repeat(n), ")".repeat(n))),
    ("JSON_VALUE", |n| format!("SELECT {}1{}", "JSON_VALUE(".repeat(n), ", '$' RETURNING int)".repeat(n))),
    ("JSON_TABLE", |n| {
        format!(
            "SELECT 1 FROM JSON_TABLE('{{}}', '$' COLUMNS ({}a int{}))",
            "NESTED PATH '$' COLUMNS (".repeat(n),
            ")".repeat(n)
        )
    }),
    ("XMLFOREST", |n| format!("SELECT {}1{}", "xmlforest(".repeat(n), " as a)".repeat(n))),
    ("GROUPING SETS", |n| format!("SELECT 1 GROUP BY {}a{}", "GROUPING SETS (".repeat(n), ")".repeat(n))),
    ("COLLATE", |n| format!("SELECT a{}", " COLLATE \"C\"".repeat(n))),
    ("AT TIME ZONE", |n| format!("SELECT a{}", " AT TIME ZONE 'x'".repeat(n))),
    ("IS NULL in brackets", |n| format!("SELECT {}a{}", "(".repeat(n), " IS NULL)".repeat(n))),
    ("schemas", |n| format!("CREATE SCHEMA s{}", " CREATE VIEW v AS SELECT 1".repeat(n))),
    ("VALUES", |n| {
        format!("SELECT 1 FROM {}(VALUES (1)) x{}", "(VALUES ((SELECT 1 FROM ".repeat(n), "))) x".repeat(n))
    }),
    ("typed operators", |n| format!("SELECT 1{}", " OPERATOR(pg_catalog.+) 1".repeat(n))),
];

#[test]
fn whatever_is_not_refused_as_too_deep_is_read_without_end_of_stack() {
    on_a_big_stack(|| {
        for (way, nest) in WAYS {
            // The deepest of each kind that the check lets through is the worst that the parser can meet.
            let (mut passes, mut fails) = (1, MAX_NESTING + 2);
            while fails - passes > 1 {
                let middle = passes.midpoint(fails);
                match read(&nest(middle), &CATALOG, &CATALOG.session_names()) {
                    Err(ReadError::TooDeep { .. }) => fails = middle,
                    Ok(_) | Err(_) => passes = middle,
                }
            }
            println!("{way}: {passes}");
            assert!(passes >= 50, "{way} nests {passes} deep and no more");
        }
    });
}

#[test]
fn honest_statements_are_within_the_limits() {
    on_a_big_stack(|| {
        let list = |n: usize, item: &str| vec![item; n].join(", ");
        for text in [
            format!("SELECT 1{}", " || 'x'".repeat(200)),
            format!("SELECT id FROM orders WHERE id IN ({})", list(10_000, "17")),
            format!("INSERT INTO orders (customer_id, total, comment) VALUES {}", list(3000, "(1, -2.5, 'x')")),
            format!("SELECT id FROM orders WHERE {}", vec!["total = 1"; 1000].join(" OR ")),
            format!("SELECT {} FROM orders", list(300, "CASE WHEN total > 1 THEN 1 ELSE 0 END")),
            format!("SELECT 1{}", " UNION ALL SELECT total FROM orders".repeat(300)),
        ] {
            let reading = read(&text, &CATALOG, &CATALOG.session_names()).unwrap();
            assert_eq!(reading.statements.len(), 1);
        }
    });
}

/// What is looked up in a list that the statement makes must not cost the square of its length.
#[test]
fn long_statements_are_read_in_time_and_nothing_without_a_catalogue() {
    on_a_big_stack(|| {
        let many =
            |n: usize, item: fn(usize) -> String, between: &str| (0..n).map(item).collect::<Vec<_>>().join(between);
        for text in [
            format!("SELECT FROM {}", many(60_000, |i| format!("t{i}"), ", ")),
            format!("SELECT FROM {}", many(20_000, |i| format!("f{i}()"), ", ")),
            format!("WITH {} SELECT 1", many(10_000, |i| format!("c{i} AS (SELECT FROM c{i})"), ", ")),
            format!(
                "SELECT {} FROM orders ORDER BY {}",
                many(20_000, |i| format!("id AS a{i}"), ", "),
                many(20_000, |i| format!("a{i}"), ", ")
            ),
            many(20_000, |i| format!("SELECT a{i} FROM t{i}"), ";"),
        ] {
            let start = Instant::now();
            match read(&text, &CATALOG, &CATALOG.session_names()) {
                Ok(_) | Err(ReadError::TooManyAccesses { .. }) => {}
                Err(error) => panic!("{error}: {}", &text[..60]),
            }
            // A debug build on a busy machine: generous, and far below what a square would take.
            assert!(start.elapsed() < Duration::from_secs(60), "{:?}: {}", start.elapsed(), &text[..60]);
        }
    });
}

#[test]
fn a_statement_on_more_things_than_are_decided_is_refused_with_their_number() {
    on_a_big_stack(|| {
        let tables = |n: usize| (0..n).map(|i| format!("archive.t{i}")).collect::<Vec<_>>().join(", ");
        let read = |text: &str| read(text, &CATALOG, &CATALOG.session_names());
        read(&format!("SELECT 1 FROM {}", tables(MAX_ACCESSES))).unwrap();
        // Each statement of a text has as many.
        read(&format!("LOCK TABLE {0}; TRUNCATE {0}", tables(MAX_ACCESSES))).unwrap();
        let joined = (0..900).map(|i| format!("(SELECT 1 FROM archive.t{i})")).collect::<Vec<_>>().join(", ");
        for (text, found) in [
            (format!("SELECT 1 FROM {}", tables(900)), 900),
            (format!("SELECT {joined}"), 900),
            (format!("SELECT 1; TRUNCATE {}", tables(3_000)), 3_000),
        ] {
            let refused = read(&text).unwrap_err().to_string();
            let expected = format!("the statement does {found} different things to tables and other objects");
            assert_eq!(refused, format!("{expected}, over the limit of {MAX_ACCESSES}"));
        }
    });
}

#[test]
fn without_a_catalogue_no_name_is_taken_for_harmless() {
    let nothing = Catalog::default();
    for text in
        ["SELECT a FROM t", "SELECT query FROM pg_stat_activity", "UPDATE t SET a = 1", "SELECT f()", "TABLE pg_authid"]
    {
        let reading = read(text, &nothing, &nothing.session_names()).unwrap();
        let statement = &reading.statements[0];
        assert!(statement.unresolved || !statement.functions.is_empty(), "{text}");
        assert!(statement.accesses.iter().any(|access| access.action.class() != Class::Read), "{text}");
    }
}
