//! The record's disk fills up, and there is room again.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use end_to_end::{Database, Program, Weir, servers, wait_until};
use tempfile::TempDir;

use crate::stage::{CLAUDE, Client, PYTHON, Told, WRITE, log, reader, text};

const RECOVERED: Duration = Duration::from_secs(20);
/// More statements than a full disk can take.
const STATEMENTS: u32 = 400;

/// Sends a start-up message, and prints what comes.
const START: &str = r"
import socket, struct, sys

body = b'\0\3\0\0user\0x\0database\0' + sys.argv[2].encode() + b'\0\0'
with socket.create_connection(('127.0.0.1', int(sys.argv[1]))) as s:
    s.sendall(struct.pack('!i', len(body) + 4) + body)
    while data := s.recv(4096):
        print(data.decode(errors='replace').replace('\0', ' '))
";

/// A file system of 24 MiB.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Program::new(["mount", "-t", "tmpfs", "-o", "size=24m", "weir-test"])
            .args([folder.path()])
            .run()?
            .succeeded()?;
        Ok(Self(folder))
    }

    /// Takes all the room that is left.
    fn fill(&self) -> Result<PathBuf> {
        let path = self.0.path().join("ballast");
        let mut ballast = File::create(&path)?;
        while ballast.write_all(&[0; 4096]).is_ok() {}
        Ok(path)
    }

    fn store(&self) -> Result<PathBuf> {
        let store = self.0.path().join("record");
        fs::create_dir_all(&store)?;
        Ok(store)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Program::new(["umount", "--lazy"]).args([self.0.path()]).run());
    }
}

#[test]
fn a_full_disk_refuses_agents_with_its_reason_and_space_mends_it_without_a_restart() -> Result<()> {
    let disk = SmallDisk::mount()?;
    let database = Database::create()?;
    let weir = Weir::start(|setup| {
        reader(setup, &database)?;
        setup.policy("write.cedar", WRITE)?;
        setup.set("store.dir", path_text(&disk.store()?)?)
    })?;
    let agent = weir.agent(CLAUDE)?;
    let mut client = Client::start(&agent, &database)?;
    client.connect()?.rows()?;
    let ballast = disk.fill()?;

    let mut answered = Vec::new();
    let refused = work_until_refused(&mut client, &mut answered)?;
    let why = refused.refused()?;
    assert!(why.contains("no space left") && why.contains("nothing is served that cannot be recorded"), "{why}");
    // libpq keeps no SQLSTATE of an error that ends its connection; the bytes have it.
    let port = servers()?.postgres.port.to_string();
    let said = agent.run([PYTHON, "-c", START, &port, &database.name])?.succeeded()?;
    assert!(said.contains("C58030") && said.contains("no space left"), "{said}");
    // What was refused did not run, and a new session gets the same answer.
    let number = answered.len();
    assert_eq!(database.sql(&format!("SELECT count(*) FROM customers WHERE name LIKE 'kept {number} %'"))?, "0");
    let mut late = Client::start(&agent, &database)?;
    let refused = late.connect()?;
    let why = refused.refused()?;
    assert!(why.contains("no space left"), "{why}");

    let status = weir.weir(["status"])?.succeeded()?;
    assert!(status.contains("THE RECORD IS IN TROUBLE") && status.contains("no space left"), "{status}");
    let doctor = weir.weir(["doctor"])?;
    assert!(!doctor.status().success());
    assert!(doctor.stdout().contains("no space left"), "{}", doctor.stdout());

    fs::remove_file(ballast)?;
    wait_until("agents are served again", RECOVERED, || {
        if late.connect()?.error.is_some() {
            return Ok(None);
        }
        Ok(late.sql("SELECT 'served again'")?.error.is_none().then_some(()))
    })?;
    let status = weir.weir(["status"])?.succeeded()?;
    assert!(!status.contains("TROUBLE"), "{status}");

    let log = log(&weir)?;
    for what in &answered {
        let on_record = log.iter().any(|row| text(row, "/event/request/sql").contains(what.as_str()));
        assert!(on_record, "`{what}` was answered and is not on the record");
    }
    assert!(log.iter().any(|row| text(row, "/event/admin/what") == "store-recovered"));
    Ok(())
}

/// Long statements, so that the store needs room for each; what was answered goes to `answered`.
fn work_until_refused(client: &mut Client, answered: &mut Vec<String>) -> Result<Told> {
    for number in 0..STATEMENTS {
        let what = format!("kept {number} ");
        let told = client
            .sql(&format!("INSERT INTO customers VALUES ({number} + 2000, '{what}{}', '', '')", noise(number)))?;
        if told.error.is_some() {
            return Ok(told);
        }
        answered.push(what);
    }
    anyhow::bail!("{STATEMENTS} statements went on the record of a full disk")
}

/// 60 KB that do not compress away.
fn noise(seed: u32) -> String {
    let mut state = u64::from(seed) | 0x9e37_79b9_7f4a_7c15;
    let mut text = String::new();
    while text.len() < 60_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push_str(&format!("{state:016x}"));
    }
    text
}

fn path_text(path: &Path) -> Result<String> {
    let text = path.to_str();
    ensure!(text.is_some(), "{} isn't UTF-8", path.display());
    Ok(text.unwrap_or_default().to_owned())
}
