//! What a server says of itself and of Weir's role: its version, what it is, and rights that no agent needs.

use std::time::Duration;

use super::Steps;
use crate::protocol::postgres::upstream::{Failure, RowLimits, Upstream, simple_query_rows};

/// The oldest release whose catalogue Weir reads.
const OLDEST: u32 = 13;

/// For the answers to the questions here.
const LIMITS: RowLimits = RowLimits { rows: 256, bytes: 1 << 20, deadline: Duration::from_secs(10) };

/// Of the server and the role, with names that no search path changes.
const SERVER: &str = "SELECT pg_catalog.current_setting('server_version'), \
     pg_catalog.current_setting('server_version_num'), pg_catalog.current_database()::pg_catalog.text, \
     CURRENT_USER::pg_catalog.text, pg_catalog.pg_is_in_recovery()::pg_catalog.text, \
     pg_catalog.current_setting('transaction_read_only')";

/// Each right by itself, `true` where the role has it.
const RIGHTS: &str = "SELECT r.rolsuper::pg_catalog.text, r.rolbypassrls::pg_catalog.text, \
     r.rolreplication::pg_catalog.text, r.rolcreaterole::pg_catalog.text, r.rolcreatedb::pg_catalog.text, \
     (SELECT (d.datdba OPERATOR(pg_catalog.=) r.oid)::pg_catalog.text FROM pg_catalog.pg_database d \
     WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()), \
     (SELECT pg_catalog.count(*)::pg_catalog.text FROM pg_catalog.pg_class c WHERE c.relowner OPERATOR(pg_catalog.=) r.oid \
     AND c.relkind OPERATOR(pg_catalog.<>) 't') \
     FROM pg_catalog.pg_roles r WHERE r.rolname OPERATOR(pg_catalog.=) CURRENT_USER";

/// The predefined roles (`PostgreSQL` manual, "Predefined Roles") that the role is a member of.
const MEMBERSHIPS: &str = "SELECT m.rolname::pg_catalog.text FROM pg_catalog.pg_roles m \
     WHERE m.rolname OPERATOR(pg_catalog.~) '^pg_' AND pg_catalog.pg_has_role(CURRENT_USER, m.oid, 'MEMBER') ORDER BY 1";

/// What a predefined role is good for to whoever wants to get round Weir.
const DANGEROUS: [(&str, &str); 9] = [
    ("pg_execute_server_program", "runs programs on the server's host"),
    ("pg_read_server_files", "reads files of the server's host"),
    ("pg_write_server_files", "writes files of the server's host"),
    ("pg_read_all_data", "reads every table"),
    ("pg_write_all_data", "writes every table"),
    ("pg_signal_backend", "ends other sessions"),
    ("pg_create_subscription", "lets the server connect elsewhere"),
    ("pg_maintain", "locks every table"),
    ("pg_checkpoint", "makes the server write"),
];

pub(super) async fn look(steps: &mut Steps, upstream: &mut Upstream) {
    match simple_query_rows(upstream, SERVER, &LIMITS).await {
        Ok(rows) => of_server(steps, rows),
        Err(failure) => return unanswered(steps, "server", &failure),
    }
    let rights = match simple_query_rows(upstream, RIGHTS, &LIMITS).await {
        Ok(rows) => rows.into_iter().next().unwrap_or_default(),
        Err(failure) => return unanswered(steps, "rights", &failure),
    };
    match simple_query_rows(upstream, MEMBERSHIPS, &LIMITS).await {
        Ok(rows) => {
            let memberships: Vec<String> = rows.into_iter().flatten().flatten().collect();
            of_rights(steps, &upstream.user.clone(), &rights, &memberships);
        }
        Err(failure) => unanswered(steps, "rights", &failure),
    }
}

fn unanswered(steps: &mut Steps, step: &str, failure: &Failure) {
    steps.failed(step, super::chain(failure), "Weir's role must be able to read pg_catalog");
}

fn of_server(steps: &mut Steps, rows: Vec<Vec<Option<String>>>) {
    let row = rows.into_iter().next().unwrap_or_default();
    let text = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or("?");
    let kind = match (text(4), text(5)) {
        ("true", _) => "a standby, which takes no writes",
        (_, "on") => "a primary, but the role's transactions are read-only",
        _ => "a primary, which takes writes",
    };
    let seen = format!("PostgreSQL {}; database `{}`, role `{}`; {kind}", text(0), text(2), text(3));
    match text(1).parse::<u32>().map(|number| number / 10_000) {
        Ok(major) if major < OLDEST => {
            steps.failed("server", seen, format!("Weir reads the catalogue of PostgreSQL {OLDEST} and later"));
        }
        Ok(_) | Err(_) => steps.ok("server", seen),
    }
}

fn of_rights(steps: &mut Steps, role: &str, rights: &[Option<String>], memberships: &[String]) {
    let before = steps.0.len();
    let value = |at: usize| rights.get(at).and_then(Option::as_deref).unwrap_or_default();
    // As a statement takes it, whatever is in it.
    let quoted = format!("\"{}\"", role.replace('"', "\"\""));
    if value(0) == "true" {
        // It has all that follows by that.
        let seen = format!("`{role}` is a superuser: what a policy lets through by mistake is stopped by nothing");
        return steps.warn("rights", seen, format!("ALTER ROLE {quoted} NOSUPERUSER"));
    }
    for (at, name, means) in [
        (1, "BYPASSRLS", "row security does not bind it"),
        (2, "REPLICATION", "it can read the whole server by replication"),
        (3, "CREATEROLE", "it can make roles, and give itself others"),
        (4, "CREATEDB", "it can make databases that nobody has thought of"),
    ] {
        if value(at) == "true" {
            steps.warn("rights", format!("`{role}` has {name}: {means}"), format!("ALTER ROLE {quoted} NO{name}"));
        }
    }
    for (name, means) in DANGEROUS {
        if memberships.iter().any(|member| member == name) {
            let seen = format!("`{role}` is a member of {name}, which {means}");
            steps.warn("rights", seen, format!("REVOKE {name} FROM {quoted}, or from the role that it has it by"));
        }
    }
    if value(5) == "true" {
        let seen = format!("`{role}` owns the database: it can drop it, and make schemas in it");
        steps.warn("rights", seen, "ALTER DATABASE … OWNER TO another role");
    }
    match value(6).parse::<u64>() {
        Ok(0) | Err(_) => {}
        Ok(owned) => {
            let seen =
                format!("`{role}` owns {owned} relations: it can change and drop them, and lift their row security");
            steps.warn("rights", seen, "ALTER TABLE … OWNER TO another role, and GRANT what its agents need");
        }
    }
    if steps.0.len() == before {
        steps.ok("rights", format!("`{role}` has none beyond what it was granted on objects"));
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    fn told(rights: [&str; 7], memberships: &[&str]) -> Vec<(Verdict, String)> {
        let mut steps = Steps::default();
        let rights: Vec<_> = rights.iter().map(|&right| Some(right.to_owned())).collect();
        let memberships: Vec<_> = memberships.iter().map(|&name| name.to_owned()).collect();
        of_rights(&mut steps, "weir", &rights, &memberships);
        steps.0.into_iter().map(|step| (step.verdict, format!("{} → {}", step.seen, step.mend))).collect()
    }

    const NONE: [&str; 7] = ["false", "false", "false", "false", "false", "false", "0"];

    #[test]
    fn a_role_without_rights_is_well() {
        assert_eq!(told(NONE, &["pg_monitor"]).iter().map(|(verdict, _)| *verdict).collect::<Vec<_>>(), [Verdict::Ok]);
    }

    #[test]
    fn each_dangerous_right_is_warned_of_with_its_mend() {
        for (at, word) in ["NOSUPERUSER", "NOBYPASSRLS", "NOREPLICATION", "NOCREATEROLE", "NOCREATEDB", "DATABASE"]
            .into_iter()
            .enumerate()
        {
            let mut rights = NONE;
            rights[at] = "true";
            let told = told(rights, &[]);
            assert!(told.iter().all(|(verdict, _)| *verdict == Verdict::Warning), "{told:?}");
            assert!(told.len() == 1 && told[0].1.contains(word), "{told:?}");
        }
        for (name, _) in DANGEROUS {
            assert!(told(NONE, &[name])[0].1.contains(&format!("REVOKE {name} FROM \"weir\"")));
        }
    }
}
