//! `weir connection test`: it goes the way that a session goes, with a daemon and without, and names the step that fails.

use anyhow::{Context, Result, ensure};
use end_to_end::{Database, Program, Ran, Setup, Weir, servers};
use serde_json::Value;

use crate::stage::{outsider_psql, reader, rows, text};

/// The steps of the only report in what was printed.
fn steps(ran: &Ran) -> Result<Vec<Value>> {
    let told: Vec<Value> = ran.stdout().lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let report = told.first().with_context(|| format!("no report: {}", ran.stderr()))?;
    Ok(report.get("steps").and_then(Value::as_array).cloned().unwrap_or_default())
}

/// What one step says, with its verdict before it and its mend behind it.
fn step(steps: &[Value], name: &str) -> String {
    let of = |step: &Value| format!("{}: {} → {}", text(step, "/verdict"), text(step, "/seen"), text(step, "/mend"));
    steps.iter().filter(|step| text(step, "/step") == name).map(of).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_good_connection_is_told_step_by_step_without_a_daemon() -> Result<()> {
    let database = Database::create()?;
    let mut weir = Weir::start(|setup| reader(setup, &database))?;
    weir.stop()?;
    let ran = weir.weir(["connection", "test", "orders", "--json"])?;
    let (report, steps) = (rows(&ran)?, steps(&ran)?);
    ensure!(report[0]["ok"] == Value::Bool(true) && text(&report[0], "/database") == database.name, "{report:?}");
    let (role, password) = (&servers()?.postgres.role, &servers()?.postgres.password);
    for (name, says) in [
        ("resolve", "ok: 127.0.0.1 is 127.0.0.1"),
        ("credential", "ok: could be had, without an end"),
        ("connect", "ok: 127.0.0.1:"),
        // The servers of the tests have one for a few days.
        ("tls", "warning: TLSv1.3; certificate of localhost, 127.0.0.1, ::1 for `127.0.0.1`, against /"),
        ("login", &format!("ok: as `{role}` by SCRAM-SHA-256-PLUS")),
        ("server", "ok: PostgreSQL 15."),
        ("server", "a primary, which takes writes"),
        ("rights", &format!("warning: `{role}` owns the database")),
        ("catalogue", "ok: read in "),
        ("sockets", "ok: no agent's user"),
    ] {
        ensure!(step(&steps, name).contains(says), "{name}: {}", step(&steps, name));
    }
    ensure!(step(&steps, "tls").contains(" days → renew the server's certificate"), "{}", step(&steps, "tls"));
    let shown = weir.weir(["connection", "test"])?.succeeded()?;
    ensure!(shown.contains("can be served") && shown.contains("  ok       catalogue"), "{shown}");
    ensure!(!shown.contains(password.as_str()) && !ran.stdout().contains(password.as_str()), "the password is told");
    Ok(())
}

#[test]
fn where_a_daemon_runs_it_makes_the_test_that_the_kernel_refuses_others() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    outsider_psql(&weir, None, "shell", &database.address()?)?.run()?.failed()?;
    let words = weir.program(["connection", "test", "--json"])?.into_command();
    let words: Vec<_> = std::iter::once(words.get_program()).chain(words.get_args()).map(ToOwned::to_owned).collect();
    let ran = weir.setup().scope().program("shell", &words)?.run()?;
    ran.succeeded()?;
    ensure!(step(&steps(&ran)?, "login").starts_with("ok: as "), "{}", ran.stdout());
    let acts = weir.weir(["log", "--json"])?.succeeded()?;
    ensure!(acts.contains("connection-test"), "the test is not on the record: {acts}");
    // Who is not root gets neither way.
    let user = end_to_end::UnixUser::claim()?;
    let refused = weir.setup().scope().program_as(&user.name, "shell", &words)?.run()?.failed()?;
    ensure!(refused.contains("only root"), "{refused}");
    Ok(())
}

#[test]
fn what_the_daemon_has_otherwise_than_the_file_is_told() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let file = weir.setup().folder().join("weir.toml");
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, text.replace("tls = \"verify-full\"", "tls = \"verify-ca\""))?;
    let steps = steps(&weir.weir(["connection", "test", "--json"])?)?;
    ensure!(step(&steps, "daemon").contains("as the file was at its start → restart"), "{steps:?}");
    ensure!(step(&steps, "tls").starts_with("warning: "), "{steps:?}");
    Ok(())
}

/// What to change, the step that fails by it, and what is said.
type Failing = (&'static str, fn(&mut toml::Table) -> Result<()>, &'static str, &'static [&'static str]);

const FAILING: [Failing; 6] = [
    (
        "no such name",
        |connection| set(connection, "host", "no.such.host.invalid"),
        "resolve",
        &["leads to no address", "mend `host`"],
    ),
    (
        "nobody listens",
        |connection| set(connection, "port", 1),
        "connect",
        &["cannot connect", "is the server running"],
    ),
    (
        "no such file",
        |connection| set(connection, "password", toml::toml! { file = "/no/such/file" }),
        "credential",
        &["`/no/such/file` cannot be read", "`password`"],
    ),
    (
        "a certificate of another CA",
        |connection| {
            connection.remove("ca_file");
            Ok(())
        },
        "tls",
        &["signed by nobody whom the roots vouch for", "set `ca_file`"],
    ),
    ("no such database", |connection| set(connection, "database", "no-such"), "login", &["3D000", "mend `database`"]),
    ("no such role", |connection| set(connection, "user", "no_such_role"), "login", &["28P01", "check `user` and"]),
];

fn set(connection: &mut toml::Table, key: &str, value: impl Into<toml::Value>) -> Result<()> {
    connection.insert(key.to_owned(), value.into());
    Ok(())
}

#[test]
fn the_step_that_fails_is_named_with_its_mend() -> Result<()> {
    let database = Database::create()?;
    let mut weir = Weir::start(|setup| reader(setup, &database))?;
    weir.stop()?;
    let good = weir.setup().config.clone();
    for (what, change, fails, says) in FAILING {
        let mut config = good.clone();
        let connections = config.get_mut("connection").and_then(toml::Value::as_array_mut);
        let connection = connections.and_then(|all| all.first_mut()?.as_table_mut()).context("no connection")?;
        change(connection)?;
        std::fs::write(weir.setup().folder().join("weir.toml"), config.to_string())?;
        let ran = weir.weir(["connection", "test", "--json"])?;
        ensure!(ran.status().code() == Some(1), "{what}: {} {}", ran.stdout(), ran.stderr());
        let told = step(&steps(&ran)?, fails);
        ensure!(
            told.starts_with("failed: ") && says.iter().all(|says| told.contains(says)),
            "{what}: {}",
            ran.stdout()
        );
    }
    let unknown = weir.weir(["connection", "test", "no-such"])?.failed()?;
    ensure!(unknown.contains("no connection `no-such`") && unknown.contains("orders"), "{unknown}");
    Ok(())
}

#[test]
fn rights_that_no_agent_needs_are_warned_of() -> Result<()> {
    let database = Database::create()?;
    let role = format!("{}_strong", database.name);
    let password = &servers()?.postgres.password;
    database.sql(&format!("CREATE ROLE {role} LOGIN BYPASSRLS CREATEROLE PASSWORD '{password}'"))?;
    let tested = (|| {
        database.sql(&format!("GRANT pg_read_server_files TO {role}"))?;
        let mut weir = Weir::start(|setup: &mut Setup| {
            reader(setup, &database)?;
            let connections = setup.config.get_mut("connection").and_then(toml::Value::as_array_mut);
            let connection = connections.and_then(|all| all.first_mut()?.as_table_mut()).context("no connection")?;
            set(connection, "user", role.clone())
        })?;
        weir.stop()?;
        let ran = weir.weir(["connection", "test", "--json"])?;
        ran.succeeded()?;
        let rights = step(&steps(&ran)?, "rights");
        for right in ["BYPASSRLS", "CREATEROLE", "pg_read_server_files"] {
            ensure!(rights.contains(right), "{rights}");
        }
        Ok(())
    })();
    database.sql(&format!("DROP ROLE {role}"))?;
    tested
}

#[test]
fn a_configuration_that_others_can_write_is_not_used() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let database = Database::create()?;
    let mut weir = Weir::start(|setup| reader(setup, &database))?;
    weir.stop()?;
    let file = weir.setup().folder().join("weir.toml");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666))?;
    for verb in [&["daemon"][..], &["connection", "test"]] {
        let program = Program::new([&servers()?.weir]).args(verb).args(["--config"]).args([&file]);
        let told = program.run()?.failed()?;
        ensure!(told.contains("can be written by everybody") && told.contains("chmod go-w"), "{told}");
    }
    Ok(())
}
