//! `weir init`: what it writes is what a daemon starts with, by flags and by answers; and it writes all or nothing.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use end_to_end::{Database, Program, Ran, Setup, Weir, servers};
use toml::{Table, Value};

use crate::stage::{CLAUDE, PYTHON};

const TERMINAL: &str = include_str!("init.py");

/// Flags that say all that has no default here.
fn flags(database: &Database, dir: &Path, agent_user: &str, password: &Path) -> Result<Vec<String>> {
    let (postgres, idp) = (&servers()?.postgres, &servers()?.idp);
    let words: [(&str, &str); 13] = [
        ("--dir", dir.to_str().context("not UTF-8")?),
        ("--host", "127.0.0.1"),
        ("--port", &postgres.port.to_string()),
        ("--database", &database.name),
        ("--connection", "orders"),
        ("--user", &postgres.role),
        ("--password-file", password.to_str().context("not UTF-8")?),
        ("--ca-file", postgres.ca_certificate.to_str().context("not UTF-8")?),
        ("--issuer-url", &idp.issuer),
        ("--audience", &idp.audience),
        ("--agent", CLAUDE),
        ("--agent-user", agent_user),
        ("--group", "readers"),
    ];
    Ok(words.iter().flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()]).collect())
}

fn init(words: &[String]) -> Result<Ran> {
    Program::new([&servers()?.weir]).args(["init"]).args(words).run()
}

/// A terminal at which somebody types what `script` says.
fn on_terminal(script: &[(&str, &str)], words: &[String]) -> Result<Ran> {
    let script = serde_json::to_string(script)?;
    let program = Program::new([PYTHON, "-c", TERMINAL, &script]).args([&servers()?.weir]);
    program.args(["init"]).args(words).run()
}

/// Puts what was written into the place of the test's own configuration, and leaves what parts the tests.
fn adopt(setup: &mut Setup, dir: &Path) -> Result<()> {
    let mut made: Table = fs::read_to_string(dir.join("weir.toml"))?.parse()?;
    let daemon = made.get_mut("daemon").and_then(Value::as_table_mut).context("no [daemon]")?;
    let own = setup.config.get("daemon").and_then(Value::as_table).context("no [daemon]")?;
    for key in ["state_dir", "runtime_dir", "scope", "cgroup", "pins", "listener_port"] {
        daemon.insert(key.to_owned(), own.get(key).cloned().with_context(|| key.to_owned())?);
    }
    made.insert("store".to_owned(), setup.config.get("store").cloned().context("no [store]")?);
    setup.config = made;
    Ok(())
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path).with_context(|| path.display().to_string())?.permissions().mode() & 0o7777)
}

/// The agent reads, and changes nothing.
fn agent_reads(weir: &Weir, database: &Database) -> Result<()> {
    let agent = weir.agent(CLAUDE)?;
    ensure!(agent.psql(database, "SELECT count(*) FROM customers")?.succeeded()? == "100");
    let refused = agent.psql(database, "DELETE FROM customers")?.failed()?;
    ensure!(refused.contains("Weir refused"), "{refused}");
    Ok(())
}

#[test]
fn what_is_written_by_flags_is_what_a_daemon_starts_with() -> Result<()> {
    let database = Database::create()?;
    let mut folder = None;
    let weir = Weir::start(|setup| {
        setup.agent(CLAUDE, &["readers"])?;
        let user = setup.config["agent"][0]["user"].as_str().context("no user")?.to_owned();
        let dir = setup.folder().join("made");
        let words = flags(&database, &dir, &user, &setup.folder().join("upstream-password"))?;
        let _talks = TcpStream::connect(("127.0.0.1", servers()?.postgres.port))?;
        let told = init(&[words.clone(), vec!["--yes".to_owned()]].concat())?.succeeded()?;
        for says in
            ["can be served", "keys, which sign with RS256", "wrote ", "2 policies would load", "weir daemon --config"]
        {
            ensure!(told.contains(says), "`{says}` is not in {told}");
        }
        ensure!(!told.contains(&servers()?.postgres.password), "the password is told");
        let config = fs::read_to_string(dir.join("weir.toml"))?;
        ensure!(
            config.contains("# [[allow]]") && config.contains("(pid ") && !config.contains("\n[[allow]]"),
            "{config}"
        );
        ensure!(!config.contains(&servers()?.postgres.password), "the password is in it");
        ensure!(mode(&dir.join("weir.toml"))? == 0o644 && mode(&dir.join("policies"))? == 0o755);
        // Again: nothing is touched.
        let again = init(&[words, vec!["--yes".to_owned()]].concat())?.failed()?;
        ensure!(again.contains("weir.toml exists"), "{again}");
        ensure!(fs::read_to_string(dir.join("weir.toml"))? == config);
        ensure!(fs::read_dir(&dir)?.count() == 2, "something is left over");
        adopt(setup, &dir)?;
        folder = Some(dir);
        Ok(())
    })?;
    agent_reads(&weir, &database)
}

#[test]
fn what_is_written_by_answers_is_what_a_daemon_starts_with() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| {
        setup.agent(CLAUDE, &["readers"])?;
        let user = setup.config["agent"][0]["user"].as_str().context("no user")?.to_owned();
        let dir = setup.folder().join("made");
        let (postgres, idp) = (&servers()?.postgres, &servers()?.idp);
        let line = |text: &str| format!("{text}\n");
        let words = ["--dir".to_owned(), dir.display().to_string()];
        let (port, ca) = (line(&postgres.port.to_string()), line(&postgres.ca_certificate.display().to_string()));
        let (name, role, password) = (line(&database.name), line(&postgres.role), line(&postgres.password));
        let (user, issuer, audience) = (line(&user), line(&idp.issuer), line(&idp.audience));
        let ran = on_terminal(
            &[
                ("Its name [claude]: ", "\n"),
                ("runs as [agent-claude]: ", &user),
                ("beside root", "\n"),
                ("name or address: ", "\n"),
                ("this has no default", ""),
                ("name or address: ", "127.0.0.1\n"),
                ("Its port [5432]: ", "70000\n"),
                ("from 1 to 65535", ""),
                ("Its port [5432]: ", &port),
                ("The database: ", &name),
                ("name in policies", "orders\n"),
                ("logs in as", &role),
                ("file of its password", "\n"),
                // Typed wrongly at first.
                ("its password", "wrong\n"),
                ("CA of its certificate", &ca),
                ("28P01", ""),
                ("Answer again?", "\n"),
                ("name or address [127.0.0.1]: ", "\n"),
                ("Its port [", "\n"),
                ("The database [", "\n"),
                ("name in policies [orders]", "\n"),
                ("logs in as [", "\n"),
                ("file of its password [", "\n"),
                ("its password", &password),
                ("CA of its certificate", "\n"),
                ("can be served", ""),
                ("Its URL", "http://idp.example.com\n"),
                ("plain http is for loopback", ""),
                ("Its URL", &issuer),
                ("A name for it [corp]: ", "\n"),
                ("audience", &audience),
                ("groups stand [/groups]: ", "\n"),
                ("group that may read [readers]: ", "\n"),
                ("Write ", "\n"),
            ],
            &words,
        )?;
        let told = ran.succeeded()?;
        ensure!(told.contains("2 policies would load"), "{told}");
        ensure!(!told.contains(&postgres.password) && !told.contains("wrong\r\n"), "a password was shown: {told}");
        let file = dir.join("orders.password");
        ensure!(fs::read_to_string(&file)? == postgres.password && mode(&file)? == 0o400);
        adopt(setup, &dir)
    })?;
    agent_reads(&weir, &database)
}

#[test]
fn whoever_goes_away_leaves_nothing_behind() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let dir = folder.path().join("made");
    let words = ["--dir".to_owned(), dir.display().to_string()];
    let questions = [
        ("Its name [", "\n"),
        ("runs as [", "\n"),
        ("beside root", "\n"),
        ("name or address", "db.invalid\n"),
        ("Its port", "\n"),
        ("The database", "x\n"),
        ("in policies", "\n"),
        ("logs in as", "\n"),
        ("file of its password", "\n"),
    ];
    for (what, last) in [("the input ends", "\u{4}"), ("interrupted", "\u{3}")] {
        let early = on_terminal(&[("Its name [", "\n"), ("runs as [", last)], &words)?;
        ensure!(!early.status().success(), "{what}: {}", early.stdout());
        let script: Vec<_> = questions.into_iter().chain([("is not there; its password", last)]).collect();
        let late = on_terminal(&script, &words)?;
        ensure!(late.status().code() == Some(1) && late.stdout().contains("nothing was written"), "{}", late.stdout());
        ensure!(!dir.exists(), "{what}: something was written");
    }
    Ok(())
}

#[test]
fn nothing_is_written_of_what_does_not_work() -> Result<()> {
    let database = Database::create()?;
    let folder = tempfile::tempdir()?;
    let (dir, password) = (folder.path().join("made"), folder.path().join("password"));
    let words = flags(&database, &dir, "nobody", &password)?;
    let change = |flag: &str, value: &str| {
        let mut words = words.clone();
        if let Some(at) = words.iter().position(|word| word == flag) {
            words[at + 1] = value.to_owned();
        }
        words
    };
    for (words, says) in [
        (words.clone(), "cannot be read"),
        (change("--host", ""), "--host is missing"),
        (change("--issuer-url", "ftp://x"), "neither https nor http"),
        (change("--agent", "../x"), "letters, digits"),
    ] {
        let ran = init(&words)?;
        let told = format!("{}{}", ran.failed()?, ran.stdout());
        ensure!(told.contains(says), "`{says}` is not in {told}");
        ensure!(!dir.exists(), "something was written");
    }
    fs::write(&password, &servers()?.postgres.password)?;
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600))?;
    let idp = change("--issuer-url", "http://127.0.0.1:1");
    let told = init(&idp)?.failed()?;
    ensure!(told.contains("the provider's keys cannot be had") && !dir.exists(), "{told}");
    // Unless that is what is wanted.
    let told = init(&[idp, vec!["--untested".to_owned()]].concat())?.succeeded()?;
    ensure!(told.contains("for --untested") && dir.join("weir.toml").exists(), "{told}");
    Ok(())
}

#[test]
fn a_policy_that_is_there_is_kept() -> Result<()> {
    let database = Database::create()?;
    let folder = tempfile::tempdir()?;
    let (dir, password) = (folder.path().join("made"), folder.path().join("password"));
    fs::write(&password, &servers()?.postgres.password)?;
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600))?;
    let policy = dir.join("policies/00-baseline.cedar");
    fs::create_dir_all(dir.join("policies"))?;
    fs::write(&policy, "// mine\n")?;
    let told = init(&flags(&database, &dir, "nobody", &password)?)?.succeeded()?;
    ensure!(told.contains("00-baseline.cedar, and was left as it is"), "{told}");
    ensure!(fs::read_to_string(&policy)? == "// mine\n");
    Ok(())
}
