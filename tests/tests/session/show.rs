//! What `weir show` makes of answers that describe themselves elsewhere, and in binary.

use anyhow::{Context, Result, ensure};
use end_to_end::{Database, Weir};

use crate::player::{Style, play, weir};
use crate::record::events;

const SCENARIOS: &str = include_str!("show.py");
/// Binary cursors; psycopg prepares from the sixth run on.
const PROGRAM: &str = r#"
import sys, psycopg
sql = """SELECT id, amount, date '2026-01-31' AS day, '{"a": 1}'::jsonb AS doc, ARRAY[1.50, NULL] AS prices,
         gen_random_uuid() IS NOT NULL AS fine FROM orders WHERE id = %s"""
with psycopg.connect(sys.argv[1], autocommit=True) as c, c.cursor(binary=True) as cursor:
    for n in range(1, 21):
        assert cursor.execute(sql, (n,)).fetchone()[0] == n
"#;

/// The page of the only session, each line with single spaces.
fn page(weir: &Weir) -> Result<Vec<String>> {
    let starts = events(weir, "session_start")?;
    let session = starts.first().and_then(|start| start["session"].as_str()).context("no session")?;
    let page = weir.weir(["show", session])?.succeeded()?;
    Ok(page.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect())
}

#[test]
fn rows_of_a_statement_that_was_described_once_have_its_names_and_readable_values() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database)?;
    play(&weir.agent("claude")?, &database, SCENARIOS, "described_once", Style::Brief)?;
    let page = page(&weir)?;
    let count = |line: &str| page.iter().filter(|shown| *shown == line).count();
    // The statement's own description, three runs, and a portal's two.
    assert_eq!(count("id amount placed"), 6, "{page:#?}");
    for row in ["2 3.00", "3 4.50", "4 6.00", "10 15.00", "11 16.50"] {
        assert_eq!(count(&format!("{row} 2026-01-31 12:00:00+00")), 1, "{row}: {page:#?}");
    }
    for parameter in [2, 3, 4, 10] {
        assert_eq!(count(&format!("$1 = {parameter}")), 1, "{page:#?}");
    }
    ensure!(!page.iter().any(|line| line.contains("column 1")), "{page:#?}");
    Ok(())
}

#[test]
fn what_a_driver_fetches_in_binary_is_readable() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database)?;
    let words = ["/usr/bin/python3", "-c", PROGRAM, &database.address()?];
    weir.agent("claude")?.run(words)?.succeeded()?;
    let page = page(&weir)?;
    let heads = page.iter().filter(|line| *line == "id amount day doc prices fine").count();
    assert_eq!(heads, 20, "{page:#?}");
    let row = r#"7 10.50 2026-01-31 {"a": 1} {1.50,NULL} t"#;
    ensure!(page.iter().any(|line| line == row), "{row} is not in {page:#?}");
    ensure!(!page.iter().any(|line| line.contains("\\x")), "{page:#?}");
    Ok(())
}
