//! `weir init`: from a host without a configuration to one that is tested and written, by answers or by flags.
//!
//! Everything is asked, tried and checked before the first file is made; files are made all at once, at the end, and none
//! that exists is touched.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::connections::print as print_report;
use crate::{
    config::{Config, DEFAULT_PATH},
    daemon::{connection_test, known, provider_keys},
    identity::token::Algorithm,
    policy::{self, PolicySet, Source},
    show::{line, lines},
};

mod answers;
mod ask;
mod talkers;
mod template;
mod write;

use answers::{Answers, PROVIDER_FLAGS, SERVER_FLAGS};
use ask::Person;
use write::Staged;

/// Where a configuration is looked for.
const DEFAULT_DIR: &str = "/etc/weir";

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// The server's name or address.
    #[arg(long)]
    host: Option<String>,
    /// The server's port [default: 5432].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// The database.
    #[arg(long)]
    database: Option<String>,
    /// The server's role that Weir logs in as [default: weir_DATABASE].
    #[arg(long, value_name = "ROLE")]
    user: Option<String>,
    /// The file with that role's password, which root alone can read [default: DIR/CONNECTION.password].
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The CA of the server's certificate [default: the system's].
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The connection's name in policies and on the record [default: the database's name].
    #[arg(long, value_name = "NAME")]
    connection: Option<String>,
    /// The agent's name [default: claude].
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// The Unix user that the agent runs as [default: agent-AGENT].
    #[arg(long, value_name = "USER")]
    agent_user: Option<String>,
    /// A Unix user who may start the agent and read the record; may stand several times [default: who called sudo].
    #[arg(long = "starter", value_name = "USER")]
    starters: Vec<String>,
    /// The provider of the agent's tokens: the URL that is their `iss`.
    #[arg(long, value_name = "URL")]
    issuer_url: Option<String>,
    /// The provider's name, which stands before its groups [default: corp].
    #[arg(long, value_name = "NAME")]
    issuer_name: Option<String>,
    /// The CA of the provider's certificate [default: the system's].
    #[arg(long, value_name = "FILE")]
    issuer_ca_file: Option<PathBuf>,
    /// What the tokens' `aud` must name [default: weir].
    #[arg(long)]
    audience: Option<String>,
    /// Where in a token the groups stand, as a JSON pointer [default: /groups].
    #[arg(long, value_name = "POINTER")]
    groups: Option<String>,
    /// The group that may read, as the provider calls it [default: readers].
    #[arg(long)]
    group: Option<String>,
    /// Where to write.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    dir: PathBuf,
    /// Ask nothing: take the default of what no flag says.
    #[arg(long)]
    yes: bool,
    /// Write also when the server or the provider cannot be reached.
    #[arg(long)]
    untested: bool,
}

impl InitArgs {
    /// The flags that were given, of those that a person could be asked for.
    fn given(&self) -> BTreeSet<&'static str> {
        let flags = [
            ("--host", self.host.is_some()),
            ("--port", self.port.is_some()),
            ("--database", self.database.is_some()),
            ("--user", self.user.is_some()),
            ("--password-file", self.password_file.is_some()),
            ("--ca-file", self.ca_file.is_some()),
            ("--connection", self.connection.is_some()),
            ("--agent", self.agent.is_some()),
            ("--agent-user", self.agent_user.is_some()),
            ("--starter", !self.starters.is_empty()),
            ("--issuer-url", self.issuer_url.is_some()),
            ("--issuer-name", self.issuer_name.is_some()),
            ("--audience", self.audience.is_some()),
            ("--groups", self.groups.is_some()),
            ("--group", self.group.is_some()),
        ];
        flags.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag).collect()
    }
}

/// What is asked of the world before anything is written.
struct Tested {
    config: Config,
    policies: String,
    text: String,
}

pub(super) fn init(config: &Path, args: InitArgs) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("only root may set Weir up: the files are root's, and the test logs in with the role's password");
    }
    if config != Path::new(DEFAULT_PATH) {
        bail!("`weir init` writes DIR/weir.toml; name the folder by --dir, not the file by --config");
    }
    let dir = std::path::absolute(&args.dir)?;
    let path = dir.join("weir.toml");
    if path.symlink_metadata().is_ok() {
        bail!(
            "{} exists, and `weir init` changes no file: edit it by hand, or name another folder by --dir",
            path.display()
        );
    }
    let mut person = Person::new(args.yes, args.given());
    let mut answers = Answers::from_flags(&args, &dir);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    answers.ask_agent(&mut person)?;
    server(&runtime, &mut answers, &mut person, &path, args.untested)?;
    provider(&runtime, &mut answers, &mut person, &path, args.untested)?;
    let tested = checked(&answers, &path, &[])?;
    let talkers = talkers::of(&tested.config);
    let talkers = talkers.unwrap_or_else(|error| {
        say(&format!("who talks to the server today cannot be told: {error:#}"));
        Vec::new()
    });
    for talker in &talkers {
        say(&line(&format!("talks to the server now: {talker}"), 300));
    }
    let tested = checked(&answers, &path, &talkers)?;
    if person.is_there() && !person.agrees(&format!("Write {} and what belongs to it?", path.display()), true)? {
        bail!("nothing was written");
    }
    let written = Staged::new(&answers, &path, &tested.text, &tested.policies).write(&runtime)?;
    for file in &written {
        say(&file.to_string());
    }
    look_again(&path)?;
    next_steps(&answers, &path, &talkers)?;
    Ok(ExitCode::SUCCESS)
}

/// Asks for the server until it can be served, or whoever is asked wants it so.
fn server(
    runtime: &tokio::runtime::Runtime,
    answers: &mut Answers,
    person: &mut Person,
    path: &Path,
    untested: bool,
) -> Result<()> {
    loop {
        answers.ask_server(person)?;
        let secret = answers.staged_password()?;
        let config = parsed(&answers.for_test(secret.as_ref()), path)?;
        let connection = config.connections.first().context("no connection was made of the answers")?;
        let report = runtime.block_on(connection_test::test(&config, connection, None));
        print_report(&report)?;
        if report.ok || goes_on("the server cannot be served", person, untested)? {
            return Ok(());
        }
        person.ask_again(&SERVER_FLAGS);
    }
}

/// Asks for the provider until its keys can be had, or whoever is asked wants it so.
fn provider(
    runtime: &tokio::runtime::Runtime,
    answers: &mut Answers,
    person: &mut Person,
    path: &Path,
    untested: bool,
) -> Result<()> {
    loop {
        answers.ask_provider(person)?;
        let config = parsed(&answers.for_test(None), path)?;
        let issuer = config.issuers.first().context("no issuer was made of the answers")?;
        let why = match runtime.block_on(provider_keys(issuer)) {
            Ok(keys) => {
                answers.algorithms = keys.algorithms().into_iter().map(Algorithm::name).collect();
                if !answers.algorithms.is_empty() {
                    say(&format!(
                        "{}: {} keys, which sign with {}",
                        answers.issuer_url,
                        keys.len(),
                        answers.algorithms.join(", ")
                    ));
                    return Ok(());
                }
                answers.algorithms = vec![Algorithm::Rs256.name()];
                "the provider publishes no key that Weir could check a token with".to_owned()
            }
            Err(why) => why,
        };
        say(&format!("FAILED {}", line(&why, 1000)));
        if goes_on("the provider's keys cannot be had", person, untested)? {
            return Ok(());
        }
        person.ask_again(&PROVIDER_FLAGS);
    }
}

/// Whether to go on though something failed; false asks again.
fn goes_on(what: &str, person: &mut Person, untested: bool) -> Result<bool> {
    if untested {
        say("it is written all the same, for --untested");
        return Ok(true);
    }
    if !person.is_there() {
        bail!("{what}: nothing was written; mend it, or write it all the same by --untested");
    }
    if person.agrees("Answer again?", true)? {
        return Ok(false);
    }
    if person.agrees("Write it all the same?", false)? {
        return Ok(true);
    }
    bail!("nothing was written");
}

fn parsed(answers: &Answers, path: &Path) -> Result<Config> {
    let text = template::configuration(answers, path, &[]);
    Config::parse(path, &text).context("these answers make no good configuration")
}

/// The texts to write, through the same checks as the daemon's and `weir policy check`'s.
fn checked(answers: &Answers, path: &Path, talkers: &[talkers::Talker]) -> Result<Tested> {
    let text = template::configuration(answers, path, talkers);
    let config = Config::parse(path, &text).context("these answers make no good configuration")?;
    let policies = template::policies(answers);
    PolicySet::from_sources(&[Source::new(write::POLICY_FILE, &policies)], Some(&known(&config)))
        .map_err(|errors| anyhow::anyhow!("these answers make no good policy:\n{errors}"))?;
    Ok(Tested { config, policies, text })
}

/// What was written, as `weir daemon` and `weir policy check` will see it.
fn look_again(path: &Path) -> Result<()> {
    match Config::load_for_root(path) {
        Ok(config) => {
            let dir = &config.daemon.policies;
            if let Err(faults) = policy::check_guarded(dir, 0) {
                faults.iter().for_each(|fault| say(&fault.to_string()));
            }
            let check = policy::check(dir, Some(&known(&config)));
            say(lines(&check.to_string(), usize::MAX).trim_end());
        }
        // The agent's user is made by hand, so it is missing more often than not.
        Err(error) => say(&format!("before the daemon starts:\n{}", lines(&error.to_string(), usize::MAX))),
    }
    Ok(())
}

fn next_steps(answers: &Answers, path: &Path, talkers: &[talkers::Talker]) -> Result<()> {
    let mut out = io::stdout().lock();
    let config = if path == Path::new(DEFAULT_PATH) { String::new() } else { format!(" --config {}", path.display()) };
    let mut steps = Vec::new();
    if let Ok(None) = nix::unistd::User::from_name(&answers.agent_user) {
        steps.push(format!("useradd --system --create-home {}", answers.agent_user));
    }
    if !talkers.is_empty() {
        let (count, file) = (talkers.len(), path.display());
        steps
            .push(format!("look at the {count} [[allow]] proposed in {file}: who is not let through there is refused"));
    }
    steps.push(format!("weir connection test{config}"));
    steps.push(format!("weir daemon{config}        (README.md has a systemd unit)"));
    steps.push(format!("weir doctor{config}"));
    steps.push(format!(
        "weir run --agent {}{config} --token-file TOKEN -- psql -h {} -p {} -d {}",
        answers.agent, answers.host, answers.port, answers.database
    ));
    writeln!(out, "\nWhat comes next:")?;
    for (number, step) in (1..).zip(&steps) {
        writeln!(out, "  {number}. {}", line(step, 1000))?;
    }
    Ok(())
}

/// A line for people; theirs may be gone, which ends nothing.
fn say(text: &str) {
    let _ = writeln!(io::stdout().lock(), "{text}");
}
