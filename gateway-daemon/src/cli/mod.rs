//! The command line: every verb but `daemon` and `launcher` is a client of the control socket, or reads files offline.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::{
    accept::PortKeeping,
    config::{Config, DEFAULT_PATH},
    control::{Client, Request},
    daemon::{self, Options, Recording},
    launch,
};

mod agents;
mod asking;
mod connections;
mod doctor;
mod init;
mod manual;
mod policies;
mod policy_tests;
mod records;
mod suggest;
mod unit;

use asking::{ask_row, ask_rows, connect, control_socket, plain, print_json, print_text, refused};

/// Weir identifies AI agents, decides every statement that they send to a database, and records what they get.
#[derive(Debug, Parser)]
#[command(
    name = "weir",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  weir daemon                                   serve, in the foreground
  weir run --agent claude -- psql -h db orders  run a command as an agent
  weir log -f --decision deny                   watch what is refused
  weir explain --agent claude --connection orders 'SELECT * FROM customers'"
)]
struct Cli {
    /// The configuration.
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Set Weir up: ask, test the server and the provider, write the configuration and a policy. Changes no file that is there.
    #[command(after_help = "\
Examples:
  weir init                                     asks on the terminal
  weir init --yes --host db.internal --database orders --issuer-url https://idp.example.com
  weir init --dir ./trial                       writes ./trial/weir.toml

Nothing is written before all is answered and tested, and then all at once.

Exit status: 0 when all was written, 1 when nothing was.")]
    Init(init::InitArgs),
    /// Serve: redirect, identify, decide, record. Runs in the foreground, as root; SIGHUP loads the policies anew.
    #[command(after_help = "\
Examples:
  weir daemon
  WEIR_LOG=debug weir daemon --config ./weir.toml

The log goes to standard error; WEIR_LOG says how much (error, warn, info, debug, trace). A daemon that ends leaves \
its programs in the kernel: agents are refused until one serves again, or `weir detach` takes the programs away.")]
    Daemon(DaemonArgs),
    /// Run a command as an agent. For root and the agent's starters.
    #[command(after_help = "\
Examples:
  weir run --agent claude -- psql -h db.internal -d orders
  weir run --agent ci --token-file ./token -- python3 migrate.py

The command runs as the agent's Unix user, in the current folder, with your environment but for what belongs to your \
session.

Exit status: the command's own; 128+N when signal N ended it; 127 when it was not found, 126 when it could not be executed, \
1 when Weir refused.")]
    Run(RunArgs),
    /// Say how the daemon is: what it serves, whom it lets through, what it withholds.
    #[command(after_help = "\
Examples:
  weir status
  weir status --json | jq .withheld")]
    Status(JsonArgs),
    /// Check what Weir needs of this host, and say how to mend what is missing.
    #[command(after_help = "\
Examples:
  weir doctor                                   as root, who sees all
  weir doctor --probe                           finds a PostgreSQL at whatever port
  weir doctor --json | jq '.[] | select(.verdict != \"ok\")'

Exit status: 0 when all is well, 1 when a check failed or could not be made.")]
    Doctor(DoctorArgs),
    /// List agents, freeze and thaw them, renew their tokens; assign what runs already.
    #[command(
        subcommand,
        after_help = "\
Examples:
  weir agent list
  weir agent freeze claude
  weir agent thaw claude
  weir agent refresh claude --token-file ./token
  weir agent assign claude --pid 4711
  weir agent unit claude"
    )]
    Agent(agents::AgentVerb),
    /// Test the way to the servers of connections.
    #[command(
        subcommand,
        after_help = "\
Examples:
  weir connection test
  weir connection test orders"
    )]
    Connection(connections::ConnectionVerb),
    /// Check and test policies, load them anew, say who may do what, propose some.
    #[command(
        subcommand,
        after_help = "\
Examples:
  weir policy check ./policies                  before they are put in force
  weir policy reload
  weir policy doc
  weir policy suggest                           from what was denied in the last 7 days"
    )]
    Policy(policies::PolicyVerb),
    /// Say how a statement would be decided, and by which policies; nothing is sent to the server.
    #[command(after_help = "\
Examples:
  weir explain --agent claude --connection orders 'SELECT * FROM customers'
  weir explain --agent ci --group corp/readers --connection orders --json 'DROP TABLE x'

Exit status: 0 when the policies allow it, 2 when they do not (also where the connection observes, and lets it pass), 1 \
when that cannot be told.")]
    Explain(policies::ExplainArgs),
    /// List sessions on the record, the newest first.
    #[command(after_help = "\
Examples:
  weir sessions
  weir sessions --agent claude --since 1h
  weir sessions --group corp/readers --json
  weir sessions --store /var/lib/weir/record    with the daemon down")]
    Sessions(records::SessionsArgs),
    /// Show one session: statements, decisions, answers.
    #[command(after_help = "\
Examples:
  weir show 0000000000001234                    a name that `weir sessions` shows
  weir show 0000000000001234 --rows all
  weir show 0000000000001234 --json")]
    Show(records::ShowArgs),
    /// Show requests, refusals and acts in order.
    #[command(after_help = "\
Examples:
  weir log -f
  weir log --agent claude --table customers --since 1h
  weir log --decision deny --json
  weir log --decision observed                  what passed only since its connection observes
  weir log --store /var/lib/weir/record         with the daemon down")]
    Log(records::LogArgs),
    /// End open sessions.
    #[command(
        subcommand,
        after_help = "\
Examples:
  weir session kill 0000000000001234            a name that `weir sessions` shows as open"
    )]
    Session(agents::SessionVerb),
    /// Show or replace the host CA, whose certificates agents see.
    #[command(
        subcommand,
        after_help = "\
Examples:
  weir ca show
  weir ca rotate"
    )]
    Ca(agents::CaVerb),
    /// Take the programs away: nothing is redirected or refused any more. Root only; stop the daemon first.
    #[command(after_help = "\
Examples:
  weir detach                                   says what it took, a line each")]
    Detach,
    /// Print what a shell needs to complete Weir's words.
    #[command(after_help = "\
Examples:
  weir completions bash > /usr/share/bash-completion/completions/weir
  weir completions zsh > /usr/share/zsh/vendor-completions/_weir")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual: a page for each verb.
    #[command(after_help = "\
Examples:
  weir man /usr/local/share/man/man1 && man weir-policy-test")]
    Man {
        /// The folder; it is made where it is missing.
        folder: PathBuf,
    },
    /// The process that starts commands; the daemon runs it.
    #[command(hide = true)]
    Launcher,
}

#[derive(Debug, Args)]
struct DaemonArgs {
    /// Record NOTHING: receipts are given at once. To measure with, never to serve with.
    #[arg(long)]
    unsafe_no_record: bool,
    /// Take a listener's port that is not privileged: only for a container's own network namespace.
    #[arg(long)]
    unprivileged_port: bool,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The agent's configured name.
    #[arg(long)]
    agent: String,
    /// The agent's token, watched for a newer one [default: the agent's `token_file` in the configuration].
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The daemon's control socket [default: the configuration's, or /run/weir/control.sock where that cannot be read].
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
struct DoctorArgs {
    /// Ask what listens on this host's TCP ports and is not protected whether it is PostgreSQL.
    #[arg(long)]
    probe: bool,
    /// One line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct JsonArgs {
    /// One line of JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // A reader that goes away, as `head` does, ends the output, not the program with a message.
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Its own output may be closed as well.
            let _ = writeln!(io::stderr(), "weir: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error with its causes, but for those that an error has told itself.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.as_str() {
        "" => cause,
        _ if told.contains(&cause) => told,
        _ => format!("{told}: {cause}"),
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn run(cli: Cli) -> Result<ExitCode> {
    let config = cli.config.as_path();
    match cli.verb {
        Verb::Launcher => launch::launcher_main().map(|()| ExitCode::SUCCESS).map_err(Into::into),
        Verb::Init(args) => init::init(config, args),
        Verb::Daemon(args) => serve(config, &args),
        Verb::Run(args) => run_agent(config, args),
        Verb::Status(args) => status(config, &args),
        Verb::Doctor(args) => doctor::doctor(config, args.json, args.probe),
        Verb::Agent(verb) => agents::agent(config, verb),
        Verb::Connection(verb) => connections::connection(config, verb),
        Verb::Policy(verb) => policies::policy(config, verb),
        Verb::Explain(args) => policies::explain(config, args),
        Verb::Sessions(args) => records::sessions(config, args),
        Verb::Show(args) => records::show(config, args),
        Verb::Log(args) => records::log(config, args),
        Verb::Session(verb) => agents::session(config, verb),
        Verb::Ca(verb) => agents::ca(config, verb),
        Verb::Detach => detach(config),
        Verb::Completions { shell } => manual::completions(shell),
        Verb::Man { folder } => manual::man(&folder),
    }
}

fn serve(path: &Path, args: &DaemonArgs) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("the daemon must run as root: it loads programs into the kernel and starts agents as their users");
    }
    let config = Config::load_for_root(path)?;
    // First of all, before a socket, a thread or a secret: what the launcher has, agents could inherit.
    let launcher = launch::split_off().context("the launcher cannot be split off")?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("WEIR_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).init();
    raise_file_limit();
    let options = Options {
        recording: if args.unsafe_no_record { Recording::UnsafeOff } else { Recording::On },
        port: if args.unprivileged_port { PortKeeping::ProgramsAlone } else { PortKeeping::Privileged },
    };
    daemon::run(config, options, launcher)?;
    Ok(ExitCode::SUCCESS)
}

/// A session has two sockets, and the limit on open files is mostly 1024. Behind the launcher's start: what agents inherit
/// stays as it was.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit on open files cannot be raised");
    }
}

fn run_agent(path: &Path, args: RunArgs) -> Result<ExitCode> {
    let options = launch::client::RunOptions {
        control: args.control.map_or_else(|| control_socket(path), Ok)?,
        agent: args.agent,
        token_file: args.token_file,
        argv: args.command.iter().map(|word| word.as_os_str().into()).collect(),
    };
    match launch::client::run(options) {
        Ok(code) => Ok(code.into()),
        Err(error) => {
            let _ = writeln!(io::stderr(), "weir: {}", crate::show::lines(&error.to_string(), usize::MAX));
            Ok(error.exit_code().into())
        }
    }
}

fn status(path: &Path, args: &JsonArgs) -> Result<ExitCode> {
    let row = ask_row(path, &Request::Status)?;
    if args.json {
        return print_json(&row);
    }
    let mut out = io::stdout().lock();
    let text = |key: &str| row.get(key).map(plain).unwrap_or_default();
    if row.get("recording") == Some(&serde_json::Value::Bool(false)) {
        writeln!(out, "NOTHING IS RECORDED: the daemon runs with --unsafe-no-record\n")?;
    }
    if text("scope") != "/" {
        writeln!(out, "THE SCOPE IS NOT THE ROOT ({}): sockets made outside of it are not caught\n", text("scope"))?;
    }
    if row.get("observed").and_then(serde_json::Value::as_array).is_some_and(|observed| !observed.is_empty()) {
        writeln!(out, "CONNECTIONS ONLY OBSERVE (below): what the policies deny there is let pass\n")?;
    }
    for (label, key) in [
        ("version", "version"),
        ("serving since", "started"),
        ("sessions", "sessions"),
        ("runs", "runs"),
        ("kept apart", "runs_kept_apart"),
        ("policy set", "policy_set"),
        ("listener port", "listener_port"),
        ("programs", "programs_ours"),
    ] {
        writeln!(out, "{label:<16}{}", crate::show::line(&text(key), 200))?;
    }
    for (label, key) in [
        ("connection", "connections"),
        ("ONLY OBSERVED", "observed"),
        ("egress", "egress"),
        ("WITHHELD", "withheld"),
        ("home left over", "homes_left"),
        ("let through", "allowed"),
        ("protected", "protected"),
        ("others' program", "programs_of_others"),
    ] {
        for item in row.get(key).and_then(serde_json::Value::as_array).into_iter().flatten() {
            writeln!(out, "{label:<16}{}", crate::show::line(&plain(item), 1000))?;
        }
    }
    if let Some(trouble) = row.get("record_trouble").filter(|trouble| !trouble.is_null()) {
        writeln!(
            out,
            "\nTHE RECORD IS IN TROUBLE, so agents are refused: {}",
            crate::show::line(&plain(trouble), 1000)
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn detach(path: &Path) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("only root may take the programs away");
    }
    let config = Config::load(path)?;
    if Client::connect(&config.control_socket()).is_ok() {
        bail!("the daemon runs: stop it first, or it would serve without its programs");
    }
    let taken = crate::redirect::detach(&config.daemon.pins)?;
    let mut out = io::stdout().lock();
    if taken.is_empty() {
        writeln!(out, "nothing was attached below {}", config.daemon.pins.display())?;
    }
    for what in taken {
        writeln!(out, "{what}")?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests;
