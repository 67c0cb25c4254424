//! Agents that a service manager starts below `weir.slice`; here the test makes the cgroups as systemd would.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::{Database, Weir, wait_until};

use crate::stage::{CLAUDE, Client, READ, confined, log, outsider_psql, text};

const SOON: Duration = Duration::from_secs(20);

fn serviced(database: &Database, also: impl FnOnce(&mut end_to_end::Setup) -> Result<()>) -> Result<Weir> {
    Weir::start(|setup| {
        setup.policy("read.cedar", READ)?;
        setup.agent(CLAUDE, &["readers"])?;
        setup.configure_token(CLAUDE)?;
        also(setup)?;
        setup.connection("orders", database)
    })
}

const SERVICE: &str = "weir.slice/weir-claude.slice/claude.service";

/// A client below the agent's slice.
fn service(weir: &Weir, database: &Database, words: &[&str]) -> Result<Client> {
    let words = words.iter().map(|word| (*word).to_owned()).chain(Client::words(database)?);
    Client::of(weir.setup().scope().program(SERVICE, words)?)
}

#[test]
fn what_runs_below_an_agent_s_slice_is_the_agent_from_its_first_connect() -> Result<()> {
    let database = Database::create()?;
    let mut weir = serviced(&database, |_| Ok(()))?;
    let user = weir.agent(CLAUDE)?.user().to_owned();
    let mut client = service(&weir, &database, &confined(&user))?;
    client.connect()?.rows()?;
    client.sql("SELECT 'of a service'")?.rows()?;
    let log = log(&weir)?;
    let asked = log.iter().find(|row| text(row, "/event/request/sql").contains("of a service")).context("no record")?;
    assert_eq!(text(asked, "/session/agent"), CLAUDE);

    // It outlives the daemon as runs do, and ends when the slice is empty.
    weir.kill()?;
    weir.start_again(&[])?;
    wait_until("the next daemon knows it", SOON, || Ok(client.connect()?.error.is_none().then_some(())))?;
    drop(client);
    wait_until("the run ends", SOON, || {
        let agents = crate::stage::rows(&weir.weir(["agent", "list", "--json"])?)?;
        let runs = agents.first().and_then(|agent| agent.pointer("/runs")).and_then(serde_json::Value::as_array);
        Ok(runs.is_some_and(Vec::is_empty).then_some(()))
    })?;
    // Stopping a slice removes its cgroup; what is made in its place is the agent's as well.
    let slice = weir.setup().scope().path.join("weir.slice/weir-claude.slice");
    std::fs::remove_dir(slice.join("claude.service"))?;
    std::fs::remove_dir(&slice)?;
    let mut client = service(&weir, &database, &confined(&user))?;
    wait_until("the new slice is known", SOON, || Ok(client.connect()?.error.is_none().then_some(())))
}

#[test]
fn a_service_that_is_not_confined_or_another_user_s_is_refused_and_told_why() -> Result<()> {
    let database = Database::create()?;
    let weir = serviced(&database, |_| Ok(()))?;
    let user = weir.agent(CLAUDE)?.user().to_owned();
    let loose = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"];
    let mut client = service(&weir, &database, &loose)?;
    let refused = client.connect()?;
    ensure!(refused.refused()?.contains("lacks no_new_privs"), "{refused:?}");
    drop(client);
    let mut client = service(&weir, &database, &confined("65534"))?;
    let refused = client.connect()?;
    ensure!(refused.refused()?.contains("runs as uid 65534, not as its user"), "{refused:?}");
    Ok(())
}

/// Connects as often as it is told and sends nothing; prints how many are told something soon.
const CROWD: &str = r#"
import select, socket, sys, time
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held = [socket.create_connection((host, port)) for _ in range(count)]
end, told = time.monotonic() + 3, {}
while time.monotonic() < end:
    for ready in select.select([s for s in held if s not in told], [], [], 0.1)[0]:
        told[ready] = ready.recv(4096)
print(len(told), sum(b"sessions open, its limit" in said for said in told.values()))
"#;

#[test]
fn connections_of_a_slice_that_is_not_identified_have_the_agent_s_places() -> Result<()> {
    let database = Database::create()?;
    let weir = serviced(&database, |setup| setup.set("limits.agent.connections", 2))?;
    let agent = weir.agent(CLAUDE)?;
    let token = std::fs::read_to_string(agent.token_file())?;
    agent.renew("not a token")?;
    let port = end_to_end::servers()?.postgres.port.to_string();
    let crowd = ["/usr/bin/python3", "-c", CROWD, "127.0.0.1", &port, "14"];
    let words: Vec<_> = confined(agent.user()).into_iter().chain(crowd).map(ToOwned::to_owned).collect();
    let told = weir.setup().scope().program(SERVICE, &words)?.run()?.succeeded()?;
    // Two sessions, and the surplus of places for those that begin.
    assert_eq!(told, "4 4");
    // They gave their places back when they were gone.
    agent.renew(&token)?;
    let mut client = service(&weir, &database, &confined(agent.user()))?;
    wait_until("it is let in", SOON, || Ok(client.connect()?.error.is_none().then_some(())))
}

#[test]
fn a_service_s_own_sandboxes_are_the_agent() -> Result<()> {
    let database = Database::create()?;
    let weir = serviced(&database, |_| Ok(()))?;
    let user = weir.agent(CLAUDE)?.user().to_owned();
    let sandbox =
        [&confined(&user)[..], &["unshare", "--user", "--map-root-user", "unshare", "--user", "--mount"]].concat();
    let mut client = service(&weir, &database, &sandbox)?;
    client.connect()?.rows()?;
    Ok(())
}

#[test]
fn until_its_token_is_verified_a_slice_is_refused() -> Result<()> {
    let database = Database::create()?;
    let weir = serviced(&database, |_| Ok(()))?;
    let agent = weir.agent(CLAUDE)?;
    let token = std::fs::read_to_string(agent.token_file())?;
    agent.renew("not a token")?;
    let mut client = service(&weir, &database, &confined(agent.user()))?;
    let refused = client.connect()?;
    ensure!(refused.refused()?.contains("token"), "{refused:?}");
    agent.renew(&token)?;
    wait_until("the good token is read", SOON, || Ok(client.connect()?.error.is_none().then_some(())))
}

#[test]
fn a_task_below_weir_s_slice_that_is_no_agent_s_reaches_nothing_even_if_it_is_let_through() -> Result<()> {
    let database = Database::create()?;
    let weir = serviced(&database, |setup| {
        let mut allow = toml::toml! { reason = "root is let through, for this test" };
        allow.insert("uid".into(), 0.into());
        setup.push("allow", allow)
    })?;
    let address = database.address()?;
    outsider_psql(&weir, None, "elsewhere", &address)?.run()?.succeeded()?;
    for slice in ["weir.slice/weir-codex.slice/x.service", "weir.slice/x.service"] {
        outsider_psql(&weir, None, slice, &address)?.run()?.failed()?;
    }
    Ok(())
}
