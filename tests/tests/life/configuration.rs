//! Bad configurations: each fault is told with its place and its mend, and the daemon doesn't start.

use anyhow::{Result, ensure};
use end_to_end::{Database, Program, Weir, servers};

use crate::stage::reader;

/// Line 1 and on.
const GOOD: &str = r#"[daemon]
listener_port = 943
guard = "host"

[[issuer]]
name = "corp"
issuer = "https://idp.example"
audience = "weir"
algorithms = ["RS256"]
groups = ["/groups"]

[[agent]]
name = "claude"
user = "nobody"
issuer = "corp"

[[connection]]
name = "orders"
protocol = "postgres"
host = "127.0.0.1"
port = 5432
user = "weir_orders"
password = { file = "/etc/weir/orders.password" }
tls = "verify-full"
"#;

/// What to write in the place of what; the fault's line; the key that is told, and a word of the mend.
const BAD: [(&str, &str, usize, &str, &str); 14] = [
    ("guard = \"host\"", "guards = \"host\"", 3, "daemon.guards", "did you mean `guard`"),
    ("listener_port = 943", "listener_port = 0", 2, "daemon.listener_port", "below 1024"),
    ("guard = \"host\"", "guard = \"none\"", 3, "daemon.guard", "use `host` or `agents`"),
    ("[\"RS256\"]", "[\"HS256\"]", 9, "issuer \"corp\".algorithms", "use RS256"),
    ("[\"/groups\"]", "[\"groups\"]", 10, "issuer \"corp\".groups", "starts with `/`"),
    ("name = \"claude\"", "name = \"../claude\"", 13, "agent \"../claude\".name", "letters, digits"),
    ("user = \"nobody\"", "user = \"root\"", 14, "agent \"claude\".user", "useradd"),
    ("issuer = \"corp\"", "issuer = \"crop\"", 15, "agent \"claude\".issuer", "[[issuer]]"),
    ("\"postgres\"", "\"mysql\"", 19, "connection \"orders\".protocol", "use `postgres`"),
    ("\"127.0.0.1\"", "\"/run/postgresql\"", 20, "connection \"orders\".host", "unix_sockets"),
    ("port = 5432", "port = 0", 21, "connection \"orders\".port", "no port"),
    ("{ file = \"/etc/weir/orders.password\" }", "\"hunter2\"", 23, "password", "write { file = "),
    ("\"verify-full\"", "\"prefer\"", 24, "connection \"orders\".tls", "`verify-full`, `verify-ca`"),
    ("tls =", "targets = [\"10.0.0.1/16:5432\"]\ntls =", 24, "connection \"orders\".targets", "10.0.0.0/16"),
];

#[test]
fn each_fault_of_a_configuration_has_its_line_its_key_and_its_mend() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("weir.toml");
    for (good, bad, line, key, mend) in BAD {
        let text = GOOD.replacen(good, bad, 1);
        ensure!(text != GOOD, "{good} is not there");
        std::fs::write(&path, text)?;
        let told = Program::new([&servers()?.weir]).args(["daemon", "--config"]).args([&path]).run()?.failed()?;
        let place = format!("{}:{line}:", path.display());
        ensure!(told.contains(&place) && told.contains(key) && told.contains(mend), "for `{bad}`: {told}");
        ensure!(!told.contains("hunter2"), "a secret is told: {told}");
    }
    Ok(())
}

#[test]
fn all_faults_are_told_at_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("weir.toml");
    let text = GOOD.replace("943", "0").replace("\"RS256\"", "\"none\"").replace("\"verify-full\"", "\"no\"");
    std::fs::write(&path, text)?;
    let told = Program::new([&servers()?.weir]).args(["daemon", "--config"]).args([&path]).run()?.failed()?;
    let lines: Vec<_> = [2, 9, 24].iter().map(|line| format!("{}:{line}:", path.display())).collect();
    assert!(lines.iter().all(|place| told.contains(place)), "{told}");
    Ok(())
}

#[test]
fn a_daemon_does_not_start_where_it_could_not_protect() -> Result<()> {
    let database = Database::create()?;
    let no_user = not_started(&database, |text| text.replace("user = \"weir-test-", "user = \"nobody-has-this-"))?;
    assert!(no_user.contains("does not exist") && no_user.contains("useradd"), "{no_user}");
    let no_host =
        not_started(&database, |text| text.replace("host = \"127.0.0.1\"", "host = \"no.such.host.invalid\""))?;
    assert!(no_host.contains("connection `orders`") && no_host.contains("no.such.host.invalid"), "{no_host}");
    let unknown = not_started(&database, |text| text.replace("audience =", "audiences = \"x\"\naudience ="))?;
    assert!(unknown.contains("weir.toml:") && unknown.contains("audiences"), "{unknown}");
    let port = not_started(&database, |text| text.replace("listener_port = ", "listener_port = 40"))?;
    assert!(port.contains("privileged"), "{port}");
    Ok(())
}

/// Why a daemon didn't start whose configuration was changed.
fn not_started(database: &Database, change: impl Fn(String) -> String) -> Result<String> {
    let started = Weir::start(|setup| {
        reader(setup, database)?;
        let (before, after) = (setup.config.to_string(), change(setup.config.to_string()));
        ensure!(before != after, "nothing was changed in:\n{before}");
        setup.config = after.parse()?;
        Ok(())
    });
    match started {
        Ok(_) => anyhow::bail!("it started"),
        Err(error) => Ok(format!("{error:#}")),
    }
}
