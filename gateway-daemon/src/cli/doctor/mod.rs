//! `weir doctor`: what Weir needs of this host, what the daemon says of itself, and what an agent could reach around it.

pub(super) mod ports;
mod postgres;
mod reach;

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use serde_json::{Value, json};

use super::{ask_row, plain, print_json};
use crate::{
    config::{Agent, Config, EgressMode, RunsAs},
    control::Request,
    daemon::{RUNTIME_SOCKETS, may_connect, pool_fault, sockets_open_to_agents, unseen_of_closed},
    launch::{self, Apartness},
    redirect::{Check, Verdict, probe},
    show::line,
};

/// Socket families whose modules an unprivileged `socket()` may load, and which neither the redirect nor, outside of
/// `weir run`, a seccomp filter sees. Those of rxrpc, rds and smc have threads of the kernel connect or send over IP.
const FAMILY_MODULES: [&str; 7] = ["sctp", "smc", "rds", "tipc", "vsock", "dccp", "rxrpc"];
const MODPROBE_FOLDERS: [&str; 3] = ["/etc/modprobe.d", "/run/modprobe.d", "/usr/lib/modprobe.d"];
/// One line of the doctor's.
struct Finding {
    name: String,
    verdict: Level,
    seen: String,
    mend: String,
}

/// How a finding came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Ok,
    /// Worth knowing; nothing that Weir is there for is open by it.
    Note,
    /// Open on purpose, and not for long.
    Warning,
    Failed,
    CannotTell,
}

impl From<Check> for Finding {
    fn from(check: Check) -> Self {
        let verdict = match check.verdict {
            Verdict::Ok => Level::Ok,
            Verdict::Failed => Level::Failed,
            Verdict::Unknown => Level::CannotTell,
        };
        Self { name: check.name.into(), verdict, seen: check.seen, mend: check.mend.into() }
    }
}

pub(super) fn doctor(path: &Path, json: bool, probe_listeners: bool) -> Result<ExitCode> {
    let mut findings = Vec::new();
    let config = Config::load(path);
    let (pins, port) = match &config {
        Ok(config) => (config.daemon.pins.clone(), config.daemon.listener_port),
        Err(_) => (PathBuf::from("/sys/fs/bpf/weir"), 943),
    };
    findings.extend(probe(&pins, port).into_iter().map(Finding::from));
    findings.push(match Config::load_for_root(path) {
        Ok(config) => finding("configuration", Level::Ok, config.path.display().to_string(), ""),
        Err(error) => finding("configuration", Level::Failed, error.to_string(), "mend the file"),
    });
    if let Ok(config) = &config {
        about_config(config, &mut findings);
    }
    findings.push(modules());
    findings.push(apartness());
    let daemon = about_daemon(path, &mut findings);
    if let Ok(config) = &config {
        findings.extend(ports::findings(config, daemon, probe_listeners));
    }
    show(&findings, json)?;
    let bad = findings.iter().any(|finding| matches!(finding.verdict, Level::Failed | Level::CannotTell));
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn finding(name: &str, verdict: Level, seen: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { name: name.to_owned(), verdict, seen: seen.into(), mend: mend.into() }
}

fn about_config(config: &Config, findings: &mut Vec<Finding>) {
    findings.push(if config.daemon.scope == "/" {
        finding("scope", Level::Ok, "the root: every process of the host", "")
    } else {
        let seen = format!("{}: sockets made outside of it are not caught", config.daemon.scope);
        finding("scope", Level::Failed, seen, "leave `daemon.scope` out, unless this is a test")
    });
    for connection in config.observed() {
        let seen = "ONLY OBSERVES: what the policies deny is let pass";
        let mend = "when `weir policy suggest` has nothing more to propose: mode = \"enforce\", and restart the daemon";
        findings.push(finding(&format!("mode of {connection}"), Level::Warning, seen, mend));
    }
    for agent in &config.agents {
        let name = format!("egress of {}", agent.name);
        let seen = format!("{}, {} addresses allowed beside", agent.egress.mode.word(), agent.egress.allow.len());
        findings.push(match agent.egress.mode {
            EgressMode::Open => {
                let mend = "leave `egress` out (`databases`), or set it to `closed`, unless all that is not declared is its own";
                finding(&name, Level::Note, "open: it reaches what is not declared, databases too", mend)
            }
            EgressMode::Databases | EgressMode::Closed => finding(&name, Level::Ok, seen, ""),
        });
    }
    if let Some(unseen) = unseen_of_closed(config) {
        findings.push(finding(
            "egress closed",
            Level::Note,
            unseen,
            "boot Linux 6.16 or later, or give the daemon CAP_PERFMON and a kernel with BTF",
        ));
    }
    for connection in &config.connections {
        let name = format!("sockets of {}", connection.name);
        findings.push(match sockets_open_to_agents(config, connection) {
            None => finding(&name, Level::Ok, "no agent's user can open one", ""),
            Some(why) => finding(&name, Level::Failed, why, "see above; the connection is withheld meanwhile"),
        });
    }
    for agent in &config.agents {
        about_agent(agent, findings);
    }
}

fn about_agent(agent: &Agent, findings: &mut Vec<Finding>) {
    if let RunsAs::Pool(pool) = &agent.runs_as {
        let name = format!("uid pool of {}", agent.name);
        findings.push(match pool_fault(pool) {
            None => finding(&name, Level::Ok, format!("{pool}: {} uids, nobody's", pool.size()), ""),
            Some(fault) => finding(&name, Level::Failed, fault, "the daemon does not start before"),
        });
    }
    let open: Option<Vec<&str>> = RUNTIME_SOCKETS
        .into_iter()
        .filter_map(|socket| match may_connect(Path::new(socket), agent) {
            Some(false) => None,
            Some(true) => Some(Some(socket)),
            None => Some(None),
        })
        .collect();
    let name = format!("runtimes and {}", agent.name);
    findings.push(match open {
        None => {
            let seen = format!("the {} of `{}` does not exist", agent.runs_as, agent.name);
            finding("agent's user", Level::Failed, seen, "make it: useradd -r")
        }
        Some(open) if open.is_empty() => finding(&name, Level::Ok, "no container runtime's socket is open to it", ""),
        Some(open) => {
            let mend = format!("take the {} out of the groups of {}", agent.runs_as, open.join(", "));
            finding(&name, Level::Failed, format!("can open {}", open.join(", ")), mend)
        }
    });
}

/// Whether the modules of families that nothing polices are barred.
fn modules() -> Finding {
    let mut barred = BTreeSet::new();
    for folder in MODPROBE_FOLDERS {
        for file in fs::read_dir(folder).into_iter().flatten().flatten() {
            let text = fs::read_to_string(file.path()).unwrap_or_default();
            for text in text.lines() {
                let mut words = text.split_whitespace();
                if let (Some("install"), Some(module), Some("/bin/false" | "/bin/true")) =
                    (words.next(), words.next(), words.next())
                {
                    barred.insert(module.to_owned());
                }
            }
        }
    }
    let open: Vec<&str> = FAMILY_MODULES.into_iter().filter(|module| !barred.contains(*module)).collect();
    if open.is_empty() {
        return finding("socket families", Level::Ok, "the modules of other families are barred", "");
    }
    let seen =
        format!("an unprivileged process may load {}; `weir run` filters them, other ways do not", open.join(", "));
    let lines: Vec<String> = open.iter().map(|module| format!("install {module} /bin/false")).collect();
    finding("socket families", Level::Note, seen, format!("in /etc/modprobe.d/weir.conf: {}", lines.join("; ")))
}

/// What keeps runs from each other, and from the host's other processes.
fn apartness() -> Finding {
    let name = "runs kept apart";
    match launch::apartness() {
        Ok(found @ Apartness::Domain) => finding(name, Level::Ok, found.to_string(), ""),
        Ok(found @ Apartness::Users) => finding(
            name,
            Level::Note,
            found.to_string(),
            "boot Linux 6.12 or later with Landlock on (`lsm=` names it); until then give each agent a user of its own, \
             and let no service trust who connects to an abstract socket",
        ),
        Err(error) => finding(name, Level::CannotTell, error.to_string(), "boot a kernel with Landlock on"),
    }
}

/// Adds what the daemon says of itself; gives its process, if it says so.
fn about_daemon(path: &Path, findings: &mut Vec<Finding>) -> Option<u64> {
    let status = match ask_row(path, &Request::Status) {
        Ok(status) => status,
        Err(error) => {
            let mend = "start it: systemctl start weir, or `weir daemon`";
            findings.push(finding("daemon", Level::Failed, format!("{error:#}"), mend));
            return None;
        }
    };
    let version = status.get("version").map(plain).unwrap_or_default();
    findings.push(finding("daemon", Level::Ok, format!("version {version} serves"), ""));
    let recording = status.get("recording") == Some(&Value::Bool(true));
    let trouble = status.get("record_trouble").filter(|trouble| !trouble.is_null()).map(plain);
    findings.push(match (recording, trouble) {
        (false, _) => {
            let mend = "start the daemon without --unsafe-no-record";
            finding("record", Level::Failed, "NOTHING IS RECORDED", mend)
        }
        (true, Some(trouble)) => {
            finding("record", Level::Failed, trouble, "make room, or mend the disk: it goes on by itself")
        }
        (true, None) => finding("record", Level::Ok, "is written", ""),
    });
    let others = status.get("programs_of_others").and_then(Value::as_array).cloned().unwrap_or_default();
    findings.push(if others.is_empty() {
        finding("programs at the scope", Level::Ok, "Weir's alone", "")
    } else {
        let names: Vec<String> = others.iter().map(plain).collect();
        let seen = format!("others see, and may change, the same addresses: {}", names.join("; "));
        finding("programs at the scope", Level::Note, seen, "make sure that they are wanted")
    });
    status.get("pid").and_then(Value::as_u64)
}

fn show(findings: &[Finding], json: bool) -> Result<()> {
    let word = |verdict| match verdict {
        Level::Ok => "ok",
        Level::Failed => "FAILED",
        Level::Note => "note",
        Level::Warning => "WARNING",
        Level::CannotTell => "CANNOT TELL",
    };
    if json {
        let rows: Vec<Value> = findings
            .iter()
            .map(|f| json!({ "check": f.name, "verdict": word(f.verdict), "seen": f.seen, "mend": f.mend }))
            .collect();
        print_json(&rows)?;
        return Ok(());
    }
    let mut out = io::stdout().lock();
    for finding in findings {
        writeln!(out, "{:<12} {:<24} {}", word(finding.verdict), line(&finding.name, 60), line(&finding.seen, 1000))?;
        if finding.verdict != Level::Ok && !finding.mend.is_empty() {
            writeln!(out, "{:<12} {:<24} → {}", "", "", line(&finding.mend, 1000))?;
        }
    }
    Ok(())
}
