//! The texts that `weir init` writes.

use std::path::Path;

use super::{DEFAULT_DIR, answers::Answers, talkers::Talker};

/// The read-only baseline, for a group of this name.
const BASELINE: &str = include_str!("../../../../policies/00-baseline.cedar");
const BASELINE_GROUP: &str = "corp/readers";

/// The configuration that goes to `path`.
pub(super) fn configuration(answers: &Answers, path: &Path, talkers: &[Talker]) -> String {
    let Answers { host, port, database, role, connection, agent, agent_user, .. } = answers;
    let starters = list(answers.starters.iter().map(String::as_str));
    let policies = match path.parent() {
        Some(dir) if dir != Path::new(DEFAULT_DIR) => {
            format!("policies = {}\n", quoted(&dir.join("policies").to_string_lossy()))
        }
        Some(_) | None => String::new(),
    };
    let ca_file = |file: Option<&Path>| match file {
        Some(file) => format!("ca_file = {}\n", quoted(&file.to_string_lossy())),
        None => String::new(),
    };
    let (issuer_ca, server_ca) = (ca_file(answers.issuer_ca_file.as_deref()), ca_file(answers.ca_file.as_deref()));
    let issuer = quoted(&answers.issuer_name);
    format!(
        r#"# Weir's configuration, begun by `weir init`. It holds no secret, only where secrets lie.
# README.md has every key ("Configuration"). A change needs a restart of the daemon; `weir connection test` tries it before.

[daemon]
# Unix users who may read the record and ask for the daemon's state, beside root.
auditors = {starters}
# Whom the servers below are closed to: "host" is every process that is no agent's and not in [[allow]], root's included;
# "agents" is the agents' users alone.
guard = "host"
{policies}
# Who vouches for agents.
[[issuer]]
name = {issuer}
issuer = {url}
audience = {audience}
algorithms = {algorithms}
groups = [{groups}]
{issuer_ca}
# Who may be run: `weir run --agent {agent_word} -- CMD…`
[[agent]]
name = {agent}
user = {agent_user}
issuer = {issuer}
starters = {starters}

# What is protected and served.
[[connection]]
name = {connection}
protocol = "postgres"
host = {host}
port = {port}
database = {database}
user = {role}
password = {{ file = {password} }}
{server_ca}{allow}"#,
        url = quoted(&answers.issuer_url),
        audience = quoted(&answers.audience),
        algorithms = list(answers.algorithms.iter().copied()),
        groups = quoted(&answers.groups),
        agent_word = crate::show::line(agent, 63),
        agent = quoted(agent),
        agent_user = quoted(agent_user),
        connection = quoted(connection),
        host = quoted(host),
        database = quoted(database),
        role = quoted(role),
        password = quoted(&answers.password_file.to_string_lossy()),
        allow = allow(talkers),
    )
}

/// Entries for who talks to the server today, each to be thought over.
fn allow(talkers: &[Talker]) -> String {
    if talkers.is_empty() {
        return "\n# Who passes beside the agents, if anybody shall: nobody talked to the server when this was written.\n\
                # [[allow]]\n# cgroup = \"/system.slice/backup.service\"\n# reason = \"\"\n"
            .to_owned();
    }
    let mut text = "\n# Who talked to the server when this was written. From the daemon's start on they are refused: whoever shall go\n\
                    # on gets an entry, with the reason. All processes of the user, or below the cgroup, pass by it.\n"
        .to_owned();
    for talker in talkers {
        let shown = crate::show::line(&talker.to_string(), 300);
        let who = match talker.service() {
            Some(cgroup) => format!("cgroup = {}", quoted(cgroup)),
            None => format!("uid = {}", talker.uid),
        };
        text.push_str(&format!("#\n# {shown}\n# [[allow]]\n# {who}\n# reason = \"\"\n"));
    }
    text
}

/// The policies of the read-only baseline, for the group that was given.
pub(super) fn policies(answers: &Answers) -> String {
    let group = format!("{}/{}", answers.issuer_name, answers.group);
    BASELINE.replace(BASELINE_GROUP, &group.escape_debug().to_string())
}

/// A text of TOML's on one line.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", items.map(quoted).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_quoted_so_that_toml_reads_it_back() {
        for text in ["", "plain", "a\"b\\c", "line\nbreak", "\u{7f}\u{1}", "é"] {
            let read: toml::Table = toml::from_str(&format!("x = {}", quoted(text))).unwrap();
            assert_eq!(read["x"].as_str(), Some(text));
        }
    }

    #[test]
    fn the_baseline_has_the_group_that_is_replaced() {
        assert!(BASELINE.contains(&format!("Group::\"{BASELINE_GROUP}\"")));
    }

    #[test]
    fn a_name_that_a_process_gave_itself_stays_in_its_comment() {
        let talker = Talker { uid: 7, comm: "x\n[[allow]]\nuid = 7".to_owned(), cgroup: None, pid: 9, connections: 1 };
        let text = allow(&[talker]);
        assert!(text.lines().all(|line| line.is_empty() || line.starts_with('#')), "{text}");
    }
}
