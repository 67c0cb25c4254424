//! `uid_pool`: each run has a uid of its own, which is nobody else's while the run or a process of it lives.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use end_to_end::{Agent, Database, Program, Weir, wait_until};

use crate::stage::{CLAUDE, Client, PYTHON, READ};

const SOON: Duration = Duration::from_secs(20);

/// A run that says one line and waits for its end.
struct Held {
    process: Child,
    said: String,
}

impl Held {
    fn start(agent: &Agent<'_>, script: &str) -> Result<Self> {
        let mut command = agent.program(["sh", "-c", &format!("{script}; exec sleep 1000")])?.into_command();
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut said = String::new();
        BufReader::new(process.stdout.take().context("no pipe")?).read_line(&mut said)?;
        Ok(Self { process, said: said.trim().to_owned() })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// A daemon whose agent has this pool. Each test has one of its own: they run side by side.
fn pooled(database: &Database, pool: &str) -> Result<Weir> {
    Weir::start(|setup| {
        setup.policy("read.cedar", READ)?;
        setup.pool_agent(CLAUDE, &["readers"], pool)?;
        setup.connection("orders", database)
    })
}

const WHO: &str = r#"echo "$(id -u) $(id -g) $(id -G) $HOME $USER""#;

#[test]
fn each_run_has_a_uid_and_a_home_of_its_own_and_nobody_else_s() -> Result<()> {
    let database = Database::create()?;
    let weir = pooled(&database, "2000310000-2000310009")?;
    let agent = weir.agent(CLAUDE)?;
    let first = Held::start(&agent, &format!("echo secret > ~/mine; {WHO}"))?;
    let words: Vec<&str> = first.said.split(' ').collect();
    assert_eq!(words[..3], ["2000310000"; 3], "{}", first.said);
    assert_eq!(words[4], CLAUDE);
    let home = words[3].to_owned();
    assert!(home.starts_with(&weir.setup().homes().display().to_string()), "{home}");

    let second = Held::start(&agent, &format!("cat {home}/mine 2>&1; kill -0 {} 2>&1; {WHO}", first.process.id()))?;
    assert!(second.said.contains("Permission denied"), "{}", second.said);
    let second = Held::start(&agent, WHO)?;
    assert!(second.said.starts_with("2000310002 2000310002 2000310002 "), "{}", second.said);
    assert!(!second.said.contains(&home), "{}", second.said);

    // Both are the same agent to Weir, and to a client that asks for its own name.
    let mut client = Client::start(&agent, &database)?;
    client.connect()?.rows()?;
    assert_eq!(client.sql("SELECT 1")?.rows()?, [[serde_json::json!(1)]]);

    drop(first);
    wait_until("the home goes", SOON, || Ok((!fs::exists(&home)?).then_some(())))
}

#[test]
fn a_uid_comes_back_when_its_run_is_over_and_not_before_even_under_another_daemon() -> Result<()> {
    let database = Database::create()?;
    let mut weir = pooled(&database, "2000311000-2000311001")?;
    let (_one, _two) = {
        let agent = weir.agent(CLAUDE)?;
        (Held::start(&agent, WHO)?, Held::start(&agent, WHO)?)
    };
    let told = weir.agent(CLAUDE)?.run(["true"])?.failed()?;
    assert!(told.contains("all 2 uids of agent `claude`'s `uid_pool` are taken (2 by its runs"), "{told}");
    // A daemon that dies leaves the runs; the next one knows whose the uids are.
    weir.kill()?;
    weir.start_again(&[])?;
    let told = weir.agent(CLAUDE)?.run(["true"])?.failed()?;
    assert!(told.contains("all 2 uids"), "{told}");
    let runs = weir.setup().scope().path.join("weir/agents").join(CLAUDE);
    fs::write(runs.join("cgroup.kill"), "1")?;
    let uid = wait_until("a uid is free", SOON, || Ok(weir.agent(CLAUDE)?.run(["id", "-u"])?.succeeded().ok()))?;
    assert!(uid.starts_with("200031100"), "{uid}");
    Ok(())
}

#[test]
fn a_uid_that_some_process_has_is_not_given() -> Result<()> {
    let database = Database::create()?;
    let weir = pooled(&database, "2000312000-2000312001")?;
    let agent = weir.agent(CLAUDE)?;
    let mut left = std::process::Command::new("setpriv")
        .args(["--reuid", "2000312000", "--regid", "2000312000", "--clear-groups", "sleep", "1000"])
        .spawn()?;
    let status = format!("/proc/{}/status", left.id());
    wait_until("it has the uid", SOON, || Ok(fs::read_to_string(&status)?.contains("Uid:\t2000312000").then_some(())))?;
    // The other one, and again when that is free: it is not at once.
    let uid = || wait_until("a uid is free", SOON, || Ok(agent.run(["id", "-u"])?.succeeded().ok()));
    let uids = (uid(), uid());
    left.kill()?;
    left.wait()?;
    assert_eq!((uids.0?, uids.1?), ("2000312001".to_owned(), "2000312001".to_owned()));
    Ok(())
}

/// Makes folders one in another, and ends.
const DEEP: &str = r"
import os
os.chdir(os.environ['HOME'])
for _ in range(5000):
    os.mkdir('d')
    os.chdir('d')
print(os.getuid())
";

#[test]
fn a_deep_home_goes_and_its_uid_is_nobody_s_until_then() -> Result<()> {
    let database = Database::create()?;
    let mut weir = pooled(&database, "2000313000-2000313000")?;
    let run = |weir: &Weir| weir.agent(CLAUDE)?.run([PYTHON, "-c", "import os; print(os.getuid())"]);
    let made = weir.agent(CLAUDE)?.run([PYTHON, "-c", DEEP])?.succeeded()?;
    assert_eq!(made, "2000313000");
    wait_until("the uid comes back", 3 * SOON, || Ok(run(&weir)?.succeeded().ok()))?;
    wait_until("every home goes", 3 * SOON, || {
        Ok((fs::read_dir(weir.setup().homes())?.next().is_none()).then_some(()))
    })?;

    // What a daemon leaves behind is the next one's to clear, whoever knows its run: until then the uid is not given.
    weir.agent(CLAUDE)?.run([PYTHON, "-c", DEEP])?.succeeded()?;
    weir.kill()?;
    let left = weir.setup().homes().join("00000000000000aa");
    fs::create_dir(&left)?;
    std::os::unix::fs::chown(&left, Some(2_000_313_000), None)?;
    let held = left.join("held");
    fs::write(&held, "")?;
    immutable(&held, "+i")?;
    weir.start_again(&[])?;
    let refused = run(&weir)?.failed()?;
    let status = weir.weir(["status"])?.succeeded();
    immutable(&held, "-i")?;
    assert!(refused.contains("all 1 uids of agent `claude`'s `uid_pool` are taken"), "{refused}");
    let status = status?;
    assert!(status.contains("home left over") && status.contains("00000000000000aa"), "{status}");
    Ok(())
}

/// Sets or takes a file's attribute that keeps even root from removing it.
fn immutable(file: &std::path::Path, change: &str) -> Result<()> {
    Program::new(["chattr", change]).args([file]).run()?.succeeded().map(drop)
}

/// Tries to make files that give whoever executes them the agent's rights, by each call that could; then what ordinary tools do.
const LASTING: &str = r"
import ctypes, os, platform
c = ctypes.CDLL(None, use_errno=True)
os.chdir(os.environ['HOME'])
open('f', 'w').close()
f = os.open('f', os.O_RDONLY)
AT, TMPFILE = -100, 0o20200000
x86 = platform.machine() == 'x86_64'
calls = {
    'fchmod': (91 if x86 else 52, f, None), 'fchmodat': (268 if x86 else 53, AT, b'f', None), 'fchmodat2': (452, AT, b'f', None, 0),
    'mknodat': (259 if x86 else 33, AT, b'm', None, 0), 'openat': (257 if x86 else 56, AT, b'o', os.O_CREAT | os.O_WRONLY, None),
    'tmpfile': (257 if x86 else 56, AT, b'.', TMPFILE | os.O_RDWR, None),
}
if x86:
    calls.update({'chmod': (90, b'f', None), 'creat': (85, b'c', None), 'mknod': (133, b'n', None, 0), 'open': (2, b'p', os.O_CREAT | os.O_WRONLY, None)})
for name, call in calls.items():
    for mode in (0o104755, 0o102755, 0o106755):
        words = [ctypes.c_long(mode if word is None else word) if not isinstance(word, bytes) else word for word in call]
        done = c.syscall(*words)
        if done >= 0 or ctypes.get_errno() != 1: print(name, oct(mode), done, ctypes.get_errno())
if c.syscall(437, AT, b'f', 0, 0) != -1 or ctypes.get_errno() != 38: print('openat2', ctypes.get_errno())
for name in os.listdir('.'):
    if os.stat(name).st_mode & 0o6000: print('made', name)
# A mode that means nothing is not looked at.
if c.syscall(calls['openat'][0], AT, b'f', os.O_RDONLY, 0o6755) < 0: print('plain open', ctypes.get_errno())
print('tried')
";

#[test]
fn an_agent_makes_no_file_that_would_give_its_rights_to_who_has_its_uid_no_more() -> Result<()> {
    let database = Database::create()?;
    let weir = pooled(&database, "2000314000-2000314009")?;
    let agent = weir.agent(CLAUDE)?;
    assert_eq!(agent.run([PYTHON, "-c", LASTING])?.succeeded()?, "tried");
    // What ordinary tools do goes on.
    let script = "cd && mkdir d && echo x > d/f && chmod 750 d && chmod u+x d/f && tar cf t d && rm -r d && tar xpf t && \
                  cp -pr d e && install -m 755 d/f g && touch h && mktemp -p . >/dev/null && cat e/f";
    assert_eq!(agent.run(["sh", "-ec", script])?.succeeded()?, "x");
    Ok(())
}
