//! Who the agent is, and for how long: tokens, freezes, kills.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use end_to_end::{Agent, Database, Program, Setup, UnixUser, Weir, servers, sign, wait_until};
use serde_json::{Value, json};

use crate::player::{Style, everything, words};

const SCENARIOS: &str = include_str!("identity.py");
/// Until what must end at once has ended.
const AT_ONCE: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(30);

fn weir(database: &Database, starter: Option<&UnixUser>) -> Result<Weir> {
    Weir::start(|setup| {
        everything(setup, database)?;
        if let Some(starter) = starter {
            first(setup, "agent")?.insert("starters".into(), vec![starter.name.clone()].into());
        }
        // A token counts to the second here.
        first(setup, "issuer")?.insert("leeway".into(), "0s".into());
        Ok(())
    })
}

/// The first table of the array `name` of the configuration.
fn first<'a>(setup: &'a mut Setup, name: &str) -> Result<&'a mut toml::Table> {
    let array = setup.config.get_mut(name).and_then(toml::Value::as_array_mut);
    array.and_then(|array| array.first_mut()?.as_table_mut()).with_context(|| format!("no [[{name}]]"))
}

/// A session that asks something whenever it is told to.
struct Open {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Open {
    fn start(agent: &Agent<'_>, database: &Database) -> Result<Self> {
        let mut command = agent.program(words(SCENARIOS, "when_told", database, Style::Brief)?)?.into_command();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("no stdin")?;
        let stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut open = Self { child, stdin, stdout };
        ensure!(open.line()? == "Z I", "the session does not begin");
        Ok(open)
    }

    /// The next line of what it shows.
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Asks once more, and is answered.
    fn works(&mut self) -> Result<()> {
        writeln!(self.stdin, "ask")?;
        let lines = [self.line()?, self.line()?, self.line()?, self.line()?];
        ensure!(lines == ["T", "D 1", "C SELECT 1", "Z I"], "the session shows {lines:?}");
        Ok(())
    }

    /// What it is told when it is ended by Weir, unasked.
    fn told(mut self) -> Result<String> {
        let mut told = String::new();
        self.stdout.read_to_string(&mut told)?;
        self.child.wait()?;
        Ok(told)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // It may have ended before.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_session_ends_with_its_token_saying_so_and_no_new_one_begins() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database, None)?;
    let agent = weir.agent("claude")?;
    agent.renew(&agent.person().short_token(Duration::from_secs(4))?)?;
    let mut open = Open::start(&agent, &database)?;
    open.works()?;
    let again = words(SCENARIOS, "again_at_the_end", &database, Style::Brief)?;
    let second = agent.run(again)?.stdout();
    let told = open.told()?;
    ensure!(told.contains("E 28000") && told.contains("token") && told.contains("closed"), "{told}");
    let errors: Vec<_> = second.lines().filter(|line| line.starts_with("E 28000")).collect();
    ensure!(errors.len() == 2, "an open session is ended and a new one refused, each with its reason: {second}");
    let refused = agent.run(["true"])?.failed()?;
    ensure!(refused.contains("expired"), "{refused}");
    Ok(())
}

#[test]
fn a_token_file_that_others_can_write_starts_nothing() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database, None)?;
    let agent = weir.agent("claude")?;
    let file = weir.setup().folder().join("claude.token");
    for (mode, shown) in [(0o666, "0666"), (0o620, "0620")] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode))?;
        let refused = agent.run(["true"])?.failed()?;
        ensure!(refused.contains(&format!("by its group or by others (mode {shown}); `chmod go-w` it")), "{refused}");
    }
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644))?;
    agent.run(["true"])?.succeeded()?;
    Ok(())
}

#[test]
fn a_renewed_token_file_keeps_a_session_going() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database, None)?;
    let agent = weir.agent("claude")?;
    let end = Instant::now() + Duration::from_secs(6);
    agent.renew(&agent.person().short_token(Duration::from_secs(6))?)?;
    let mut open = Open::start(&agent, &database)?;
    agent.renew(&agent.person().token()?)?;
    wait_until("the first token has expired", DEADLINE, || Ok((Instant::now() > end + AT_ONCE).then_some(())))?;
    open.works()?;
    drop(open);
    let log = weir.weir(["log", "--json"])?.succeeded()?;
    ensure!(log.contains("token-renewed"), "{log}");
    Ok(())
}

#[test]
fn refresh_keeps_a_session_going_for_the_same_subject_alone() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database, None)?;
    let agent = weir.agent("claude")?;
    let end = Instant::now() + Duration::from_secs(6);
    agent.renew(&agent.person().short_token(Duration::from_secs(6))?)?;
    let mut open = Open::start(&agent, &database)?;
    let file = weir.setup().folder().join("refresh.token");
    let refresh = |token: &str| {
        std::fs::write(&file, token)?;
        weir.program(["agent", "refresh", "claude", "--token-file"])?.args([&file]).run()
    };
    let mut other = agent.person().claims(DEADLINE)?;
    other["sub"] = "somebody else".into();
    let refused = refresh(&sign(&other)?)?;
    let said = format!("{}{}", refused.stdout(), refused.stderr());
    ensure!(said.contains("subject"), "a token for another subject: {said}");
    refresh(&agent.person().token()?)?.succeeded()?;
    wait_until("the first token has expired", DEADLINE, || Ok((Instant::now() > end + AT_ONCE).then_some(())))?;
    open.works()
}

#[test]
fn freezing_an_agent_ends_its_sessions_within_a_second_until_it_is_thawed() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database, None)?;
    let agent = weir.agent("claude")?;
    let opened = [Open::start(&agent, &database)?, Open::start(&agent, &database)?];
    let asked = Instant::now();
    weir.weir(["agent", "freeze", "claude"])?.succeeded()?;
    for open in opened {
        let told = open.told()?;
        ensure!(told.contains("E 28000") && told.contains("frozen"), "{told}");
    }
    ensure!(asked.elapsed() < AT_ONCE, "it took {:?}", asked.elapsed());
    let refused = agent.psql(&database, "SELECT 1")?.failed()?;
    ensure!(refused.contains("frozen"), "{refused}");
    weir.weir(["agent", "thaw", "claude"])?.succeeded()?;
    assert_eq!(agent.psql(&database, "SELECT 1")?.succeeded()?, "1");
    Ok(())
}

#[test]
fn a_killed_session_ends_at_once_and_what_it_ran_is_cancelled() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database, None)?;
    let agent = weir.agent("claude")?;
    let mut kept = Open::start(&agent, &database)?;
    let mut sleeper = agent.program(words(SCENARIOS, "sleep", &database, Style::Brief)?)?.into_command();
    let sleeper = sleeper.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^SELECT pg_sleep' AND state = 'active'";
    let count = || database.sql(sleeping);
    wait_until("the server sleeps", DEADLINE, || Ok((count()? == "1").then_some(())))?;
    let sessions = weir.weir(["sessions", "--json"])?.succeeded()?;
    let newest: Value = serde_json::from_str(sessions.lines().next().context("no session")?)?;
    let id = newest["start"]["session"].as_str().context("a session without a name")?;
    let asked = Instant::now();
    weir.weir(["session", "kill", id])?.succeeded()?;
    let told = String::from_utf8(sleeper.wait_with_output()?.stdout)?;
    ensure!(told.contains("E 57P01") && told.contains("killed by root"), "{told}");
    ensure!(asked.elapsed() < AT_ONCE, "it took {:?}", asked.elapsed());
    wait_until("the server wakes", DEADLINE, || Ok((count()? == "0").then_some(())))?;
    kept.works()
}

#[test]
fn only_root_and_listed_starters_may_start_an_agent() -> Result<()> {
    let (listed, unlisted) = (UnixUser::claim()?, UnixUser::claim()?);
    let database = Database::create()?;
    let weir = weir(&database, Some(&listed))?;
    let agent = weir.agent("claude")?;
    let token = weir.setup().folder().join("starter.token");
    std::fs::write(&token, agent.person().token()?)?;
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644))?;
    let run = |user: &UnixUser| {
        let setpriv = ["setpriv", "--reuid", &user.name, "--regid", &user.name, "--init-groups"];
        let control = weir.setup().folder().join("run/control.sock");
        let run = Program::new(setpriv).args([&servers()?.weir]).args(["run", "--agent", "claude", "--control"]);
        run.args([&control]).args(["--token-file"]).args([&token]).args(["--", "id", "-un"]).run()
    };
    assert_eq!(run(&listed)?.succeeded()?, agent.user());
    let refused = run(&unlisted)?.failed()?;
    ensure!(refused.contains("may not start agent `claude`"), "{refused}");
    Ok(())
}

#[test]
fn a_token_that_is_wrong_starts_nothing_and_the_refusal_says_what_is_wrong() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database, None)?;
    let agent = weir.agent("claude")?;
    let good = agent.person().claims(DEADLINE)?;
    let with = |key: &str, value: Value| -> Result<String> {
        let mut claims = good.clone();
        claims[key] = value;
        sign(&claims)
    };
    let without = |key: &str| -> Result<String> {
        let mut claims = good.clone();
        claims.as_object_mut().context("claims are an object")?.remove(key);
        sign(&claims)
    };
    let (head, rest) = sign(&good)?.split_once('.').map(|(a, b)| (a.to_owned(), b.to_owned())).context("no dot")?;
    let (payload, signature) = rest.split_once('.').context("no second dot")?;
    let other = with("sub", "root".into())?;
    let other_payload = other.split('.').nth(1).context("no payload")?;
    let now = good["iat"].as_u64().context("no iat")?;
    for (token, reason) in [
        (String::new(), "empty"),
        ("no token".to_owned(), "1 parts"),
        (format!("{head}.{payload}.{signature}.x.y"), "encrypted"),
        (format!("{head}.{payload}."), "signature is empty"),
        (format!("{head}.{other_payload}.{signature}"), "signature is wrong"),
        // {"alg":"none","kid":"x"}, {"alg":"HS256","kid":"x"}
        (format!("eyJhbGciOiJub25lIiwia2lkIjoieCJ9.{payload}.{signature}"), "not signed"),
        (format!("eyJhbGciOiJIUzI1NiIsImtpZCI6IngifQ.{payload}.{signature}"), "symmetric"),
        // The same with `alg` RS256 and `crit`, `jku`, `jwk`, or `kid` twice.
        (format!("eyJhbGciOiJSUzI1NiIsImtpZCI6IngiLCJjcml0IjpbImV4cCJdfQ.{payload}.{signature}"), "has `crit`"),
        (
            format!("eyJhbGciOiJSUzI1NiIsImtpZCI6IngiLCJqa3UiOiJodHRwczovL3guZXhhbXBsZSJ9.{payload}.{signature}"),
            "has `jku`",
        ),
        (format!("eyJhbGciOiJSUzI1NiIsImtpZCI6IngiLCJqd2siOnt9fQ.{payload}.{signature}"), "has `jwk`"),
        (format!("eyJhbGciOiJSUzI1NiIsImtpZCI6IngiLCJraWQiOiJ5In0.{payload}.{signature}"), "header"),
        (with("exp", (now - 100).into())?, "expired"),
        (with("nbf", (now + 1000).into())?, "not valid for another"),
        (with("iat", (now + 1000).into())?, "in the future"),
        (with("iss", "https://elsewhere.example".into())?, "`iss`"),
        (with("iss", json!([good["iss"]]))?, "`iss` is not"),
        (with("aud", "somebody else".into())?, "`aud`"),
        (with("exp", "soon".into())?, "`exp` is not"),
        (with("sub", "".into())?, "`sub` is empty"),
        (with("sub", "a\u{202e}b".into())?, "control or invisible"),
        (with("groups", 7.into())?, "groups"),
        (with("cnf", json!({"jkt": "x"}))?, "`cnf`"),
        (without("sub")?, "no `sub`"),
        (without("exp")?, "no `exp`"),
        (without("aud")?, "no `aud`"),
        (without("iss")?, "no `iss`"),
        ("x".repeat(1 << 20), "longer than"),
    ] {
        agent.renew(&token)?;
        let refused = agent.run(["true"])?.failed()?;
        ensure!(refused.contains(reason), "{token:.80}: expected `{reason}` in {refused}");
        let leaked = token.split('.').nth(1).filter(|payload| payload.len() > 20);
        ensure!(leaked.is_none_or(|payload| !refused.contains(payload)), "the refusal repeats the token");
    }
    let log = weir.weir(["log", "--json"])?.succeeded()?;
    ensure!(log.lines().filter(|line| line.contains("run-refused")).count() == 27, "each refusal is on the record");
    ensure!(!log.contains(&head) && !weir.log().contains(&head), "a token is on the record or in the log");
    Ok(())
}
