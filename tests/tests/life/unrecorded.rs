//! What is said loudly: a scope that isn't the root, and a daemon that doesn't record.

use anyhow::{Context, Result};
use end_to_end::{Database, Weir};
use serde_json::Value;

use crate::stage::{CLAUDE, reader, text};

/// The doctor's line about `check`.
fn finding(weir: &Weir, check: &str) -> Result<Value> {
    let doctor = weir.weir(["doctor", "--json"])?;
    assert_eq!(doctor.status().code(), Some(1), "a doctor that finds something fails");
    let findings: Vec<Value> = serde_json::from_str(&doctor.stdout())?;
    let found = findings.into_iter().find(|finding| text(finding, "/check") == check);
    found.with_context(|| format!("the doctor says nothing of `{check}`"))
}

#[test]
fn a_scope_that_is_not_the_root_is_said_loudly() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let scope = weir.setup().scope().name.clone();
    let found = finding(&weir, "scope")?;
    assert_eq!(text(&found, "/verdict"), "FAILED");
    assert!(text(&found, "/seen").contains(&scope) && !text(&found, "/mend").is_empty(), "{found}");
    let status = weir.weir(["status"])?.succeeded()?;
    assert!(status.contains("THE SCOPE IS NOT THE ROOT") && status.contains(&scope), "{status}");
    assert!(weir.log().contains("the scope is not the root"));
    Ok(())
}

#[test]
fn a_daemon_that_does_not_record_serves_and_says_so_loudly() -> Result<()> {
    let database = Database::create()?;
    let mut weir = Weir::start(|setup| reader(setup, &database))?;
    assert_eq!(text(&finding(&weir, "record")?, "/verdict"), "ok");
    weir.stop()?;
    weir.start_again(&["--unsafe-no-record"])?;
    let counted = weir.agent(CLAUDE)?.psql(&database, "SELECT count(*) FROM customers")?.succeeded()?;
    assert_eq!(counted, "100");
    let status = weir.weir(["status"])?.succeeded()?;
    assert!(status.contains("NOTHING IS RECORDED"), "{status}");
    let found = finding(&weir, "record")?;
    assert_eq!(text(&found, "/verdict"), "FAILED");
    assert!(text(&found, "/seen").contains("NOTHING IS RECORDED"), "{found}");
    assert!(weir.log().contains("NOTHING IS RECORDED"));
    let refused = weir.weir(["log"])?.failed()?;
    assert!(refused.contains("there is no record"), "{refused}");
    // Back with a record, what happened meanwhile is not on it, and the next is.
    weir.stop()?;
    weir.start_again(&[])?;
    weir.agent(CLAUDE)?.psql(&database, "SELECT 'recorded again'")?.succeeded()?;
    let log = weir.weir(["log", "--json"])?.succeeded()?;
    assert!(log.contains("recorded again") && !log.contains("count(*)"), "{log}");
    Ok(())
}
