//! What `weir init` must know: from flags, from whoever is asked, or by default.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, Mode, fchmod, memfd_create};
use secrecy::{ExposeSecret, SecretString};

use super::{InitArgs, ask::Person};
use crate::identity::token::Algorithm;

/// All that a configuration is made of.
#[derive(Debug, Clone)]
pub(super) struct Answers {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) database: String,
    pub(super) role: String,
    pub(super) password_file: PathBuf,
    /// Typed, for a file that is not there yet.
    pub(super) password: Option<SecretString>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) connection: String,
    pub(super) agent: String,
    pub(super) agent_user: String,
    pub(super) starters: Vec<String>,
    pub(super) issuer_url: String,
    pub(super) issuer_name: String,
    pub(super) issuer_ca_file: Option<PathBuf>,
    pub(super) audience: String,
    pub(super) groups: String,
    pub(super) group: String,
    pub(super) algorithms: Vec<&'static str>,
    dir: PathBuf,
}

/// The flags of what is asked for again when the server cannot be reached.
pub(super) const SERVER_FLAGS: [&str; 6] = ["--host", "--port", "--database", "--user", "--password-file", "--ca-file"];
/// The same, for the provider.
pub(super) const PROVIDER_FLAGS: [&str; 2] = ["--issuer-url", "--audience"];

impl Answers {
    pub(super) fn from_flags(args: &InitArgs, dir: &Path) -> Self {
        let text = |flag: &Option<String>, default: &str| flag.clone().unwrap_or_else(|| default.to_owned());
        let caller = std::env::var("SUDO_USER").ok().filter(|user| !user.is_empty() && user != "root");
        let starters = if args.starters.is_empty() { caller.into_iter().collect() } else { args.starters.clone() };
        let absolute = |file: &PathBuf| std::path::absolute(file).unwrap_or_else(|_| file.clone());
        Self {
            host: text(&args.host, ""),
            port: args.port.unwrap_or(5432),
            database: text(&args.database, ""),
            role: text(&args.user, ""),
            password_file: args.password_file.as_ref().map(absolute).unwrap_or_default(),
            password: None,
            ca_file: args.ca_file.as_ref().map(absolute),
            connection: text(&args.connection, ""),
            agent: text(&args.agent, "claude"),
            agent_user: text(&args.agent_user, ""),
            starters,
            issuer_url: text(&args.issuer_url, ""),
            issuer_name: text(&args.issuer_name, "corp"),
            issuer_ca_file: args.issuer_ca_file.as_ref().map(absolute),
            audience: text(&args.audience, "weir"),
            groups: text(&args.groups, "/groups"),
            group: text(&args.group, "readers"),
            algorithms: vec![Algorithm::Rs256.name()],
            dir: dir.to_owned(),
        }
    }

    /// The server, and how Weir logs in.
    pub(super) fn ask_server(&mut self, person: &mut Person) -> Result<()> {
        person.heading("The server that agents shall reach, and Weir's role on it.");
        person.ask("--host", "Its name or address", &mut self.host)?;
        let mut port = self.port.to_string();
        person.ask_checked("--port", "Its port", &mut port, |text| match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(()),
            Ok(_) | Err(_) => Err("a port is a number from 1 to 65535".to_owned()),
        })?;
        self.port = port.parse().context("the port")?;
        person.ask("--database", "The database", &mut self.database)?;
        or_default(&mut self.connection, || name_of(&self.database));
        person.ask("--connection", "The connection's name in policies", &mut self.connection)?;
        or_default(&mut self.role, || format!("weir_{}", self.database));
        person.ask("--user", "The role that Weir logs in as", &mut self.role)?;
        if self.password_file.as_os_str().is_empty() {
            self.password_file = self.dir.join(format!("{}.password", name_of(&self.connection)));
        }
        person.ask_path("--password-file", "The file of its password", &mut self.password_file)?;
        self.password = None;
        if self.password_file.symlink_metadata().is_err() && person.is_there() {
            self.password =
                person.ask_secret(&format!("{} is not there; its password", self.password_file.display()))?;
        }
        let mut ca_file = self.ca_file.take().unwrap_or_default();
        person.ask_path("--ca-file", "The CA of its certificate (`-`: the system's)", &mut ca_file)?;
        self.ca_file = Some(ca_file).filter(|file| !file.as_os_str().is_empty());
        Ok(())
    }

    /// The provider of tokens.
    pub(super) fn ask_provider(&mut self, person: &mut Person) -> Result<()> {
        person.heading("The OpenID Connect provider that vouches for agents.");
        let is_url = |text: &str| {
            crate::identity::issuer::check_url(text).map_err(|error| format!("the provider's URL: {error}"))
        };
        let question = "Its URL, as `iss` has it in tokens";
        person.ask_checked("--issuer-url", question, &mut self.issuer_url, is_url)?;
        person.ask("--issuer-name", "A name for it", &mut self.issuer_name)?;
        person.ask("--audience", "The audience (`aud`) of its tokens for Weir", &mut self.audience)?;
        person.ask("--groups", "Where in a token the groups stand", &mut self.groups)?;
        person.ask("--group", "The group that may read", &mut self.group)
    }

    /// The agent, and who starts it.
    pub(super) fn ask_agent(&mut self, person: &mut Person) -> Result<()> {
        person.heading("The agent.");
        person.ask("--agent", "Its name", &mut self.agent)?;
        or_default(&mut self.agent_user, || format!("agent-{}", self.agent));
        person.ask("--agent-user", "The Unix user that it runs as", &mut self.agent_user)?;
        let mut starters = self.starters.join(" ");
        let question = "Unix users who may start it and read the record, beside root (`-`: none)";
        person.ask_empty("--starter", question, &mut starters)?;
        self.starters = starters.split_whitespace().map(str::to_owned).collect();
        Ok(())
    }

    /// A typed password in a file without a name, so that the test can read it and nothing is left over.
    pub(super) fn staged_password(&self) -> Result<Option<OwnedFd>> {
        let Some(password) = &self.password else { return Ok(None) };
        let file = memfd_create("weir-password", MemfdFlags::CLOEXEC)?;
        fchmod(&file, Mode::RUSR)?;
        let mut left = password.expose_secret().as_bytes();
        while !left.is_empty() {
            let written = rustix::io::write(&file, left)?;
            left = left.get(written..).unwrap_or_default();
        }
        Ok(Some(file))
    }

    /// These answers with a staged password in the place of the file's.
    pub(super) fn for_test(&self, staged: Option<&OwnedFd>) -> Self {
        let mut answers = self.clone();
        if let Some(file) = staged {
            answers.password_file = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        }
        // Not asked for yet; the form is checked as a whole.
        or_default(&mut answers.issuer_url, || "https://idp.invalid".to_owned());
        answers
    }
}

fn or_default(answer: &mut String, default: impl FnOnce() -> String) {
    if answer.is_empty() {
        *answer = default();
    }
}

/// A text as a name in the configuration.
fn name_of(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    let name: String = text.chars().map(plain).take(63).collect();
    match name.trim_start_matches(['.', '-']) {
        "" => "database".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::name_of;

    #[test]
    fn a_database_s_name_becomes_a_connection_s() {
        for (database, name) in
            [("orders", "orders"), ("my shop", "my-shop"), ("-x", "x"), ("é", "database"), ("", "database")]
        {
            assert_eq!(name_of(database), name, "{database}");
        }
    }
}
