//! Unix sockets, which the redirect does not see: permissions are the wall.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use anyhow::Result;
use end_to_end::{Database, Weir, servers};
use toml::Value;

use crate::stage::{CLAUDE, Client, PYTHON, log, reader, refusals, text};

const SPEAK: &str = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1]); print('connected')";
const LIST: &str = "import os; print([name for name in ('/run/docker', '/run/containerd') if os.path.isdir(name) and os.listdir(name)])";

#[test]
fn a_connection_is_withheld_while_an_agent_could_open_its_server_s_socket() -> Result<()> {
    let database = Database::create()?;
    let mut open = None;
    let weir = Weir::start(|setup| {
        reader(setup, &database)?;
        let path = setup.folder().join(".s.PGSQL.5432");
        open = Some((UnixListener::bind(&path)?, path.clone()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        declare_socket(&mut setup.config, &path.display().to_string());
        Ok(())
    })?;
    let (_socket, path) = open.ok_or_else(|| anyhow::anyhow!("no socket"))?;
    let mut client = Client::start(&weir.agent(CLAUDE)?, &database)?;
    let refused = client.connect()?;
    let why = refused.refused()?;
    for mend in ["unix_socket_permissions", "unix_socket_group", &path.display().to_string()] {
        assert!(why.contains(mend), "{mend} is not in: {why}");
    }
    let status = weir.weir(["status"])?.succeeded()?;
    assert!(status.contains("WITHHELD") && status.contains("unix_socket_permissions"), "{status}");
    let doctor = weir.weir(["doctor"])?.stdout();
    assert!(doctor.contains("sockets of orders") && doctor.contains("unix_socket_permissions"), "{doctor}");
    let log = log(&weir)?;
    assert!(
        refusals(&log).iter().any(|refusal| text(refusal, "/what").contains("unix_socket_permissions")),
        "the refusal is not on the record"
    );

    // Mended, the next session is served.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o770))?;
    client.connect()?.rows()?;
    assert!(!weir.weir(["status"])?.succeeded()?.contains("WITHHELD"));

    // Open again: seen at the latest when the policies are loaded anew.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
    weir.weir(["policy", "reload"])?.succeeded()?;
    client.connect()?.refused()?;
    Ok(())
}

#[test]
fn a_run_sees_neither_the_server_s_sockets_nor_container_runtimes() -> Result<()> {
    let database = Database::create()?;
    let postgres = &servers()?.postgres;
    let socket = postgres.public_sockets.join(format!(".s.PGSQL.{}", postgres.port)).display().to_string();
    let weir = Weir::start(|setup| {
        reader(setup, &database)?;
        declare_socket(&mut setup.config, &socket);
        Ok(())
    })?;
    let agent = weir.agent(CLAUDE)?;
    // The same user outside of a run: what is covered is there, and open.
    let outside = weir.setup().scope().program_as(agent.user(), "outside", [PYTHON, "-c", SPEAK, &socket])?.run()?;
    assert_eq!(outside.succeeded()?, "connected");
    agent.run([PYTHON, "-c", SPEAK, &socket])?.failed()?;
    assert_eq!(agent.run([PYTHON, "-c", LIST])?.succeeded()?, "[]");
    // Only in the run's own view.
    let outside = weir.setup().scope().program_as(agent.user(), "outside", [PYTHON, "-c", SPEAK, &socket])?.run()?;
    assert_eq!(outside.succeeded()?, "connected");
    Ok(())
}

#[test]
fn nobody_s_socket_or_link_in_a_folder_of_everybody_s_withholds_a_connection_or_stops_a_run() -> Result<()> {
    let database = Database::create()?;
    let mut shared = None;
    let mut weir = Weir::start(|setup| {
        reader(setup, &database)?;
        let folder = setup.folder().join("shared");
        fs::create_dir(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777))?;
        let path = folder.join(".s.PGSQL.5432");
        declare_socket(&mut setup.config, &path.display().to_string());
        shared = Some(path);
        Ok(())
    })?;
    let path = shared.ok_or_else(|| anyhow::anyhow!("no path"))?;
    // The agent's own, and another user's: neither is the server's.
    let bind = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])";
    let user = weir.agent(CLAUDE)?.user().to_owned();
    for user in [user.as_str(), "daemon"] {
        let words = ["umask 0; exec \"$@\"", "sh", PYTHON, "-c", bind, &path.display().to_string()].map(str::to_owned);
        let words = ["sh".to_owned(), "-c".to_owned()].into_iter().chain(words);
        weir.setup().scope().program_as(user, "outside", words)?.run()?.succeeded()?;
        weir.weir(["policy", "reload"])?.succeeded()?;
        assert!(!weir.weir(["status"])?.succeeded()?.contains("WITHHELD"), "{user}");
        fs::remove_file(&path)?;
    }
    // Root's may be the server's.
    let socket = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
    weir.weir(["policy", "reload"])?.succeeded()?;
    assert!(weir.weir(["status"])?.succeeded()?.contains("WITHHELD"));
    drop(socket);
    fs::remove_file(&path)?;

    // Links: to itself, and to what the agent would be kept from seeing.
    let passwd = std::path::Path::new("/etc/passwd");
    for target in [path.as_path(), passwd] {
        std::os::unix::fs::symlink(target, &path)?;
        std::os::unix::fs::lchown(&path, Some(65_534), None)?;
        assert!(!weir.agent(CLAUDE)?.run(["cat", "/etc/passwd"])?.succeeded()?.is_empty());
        fs::remove_file(&path)?;
    }
    weir.stop()
}

/// Names a socket in the first connection.
fn declare_socket(config: &mut toml::Table, path: &str) {
    let connections = config.get_mut("connection").and_then(Value::as_array_mut);
    let first = connections.and_then(|connections| connections.first_mut()).and_then(Value::as_table_mut);
    if let Some(connection) = first {
        connection.insert("unix_sockets".into(), Value::Array(vec![path.into()]));
    }
}
