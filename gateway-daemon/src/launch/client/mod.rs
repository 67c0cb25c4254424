//! The caller's side of `weir run`.
//!
//! Descriptors 0 to 2 that carry nothing but bytes (files, pipes, /dev/null) go to the command as they are. Terminals
//! among them are replaced by one pty, so that the agent never holds the caller's own; sockets and everything else by
//! pipes that are relayed here, so that nobody's connection is lent to the agent. Then, until the command has ended:
//!
//! - keys and output are relayed between the caller's terminal, in raw mode, and the pty ([`terminal`]);
//! - a command that stops (Ctrl-Z) stops `weir run` as well, and with it the caller's shell goes on; `fg` wakes both;
//! - signals sent to `weir run` are sent on, and a new window size reaches the pty;
//! - a command in a pipeline (`weir run … | less`) begins in its pty's background: it gets keys only once it asks for
//!   them, so that it takes none from its neighbours.

mod session;
mod stdio;
mod terminal;

use std::{io, os::fd::AsFd, path::PathBuf};

use crate::{
    control::{Client, ClientError, Reply, Request, RunRequest, Text},
    launch::Ground,
};

/// What `weir run` was asked to start.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The daemon's control socket.
    pub control: PathBuf,
    /// The agent's name.
    pub agent: String,
    /// Where the agent's token lies, if not where the configuration says.
    pub token_file: Option<PathBuf>,
    /// The command and its arguments.
    pub argv: Vec<Text>,
}

/// Why the command did not run to its end under `weir run`.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The daemon could not be asked.
    #[error(transparent)]
    Control(#[from] ClientError),
    /// The daemon refused, or the command could not be started.
    #[error("{message}")]
    Refused {
        /// The daemon's words.
        message: String,
        /// What to exit with.
        exit_code: u8,
    },
    /// The daemon went away while the command ran.
    #[error("the daemon went away; the command may still be running, without a way out")]
    DaemonGone,
    /// The daemon said something that has no place here.
    #[error("the daemon's answer is not one to `run`")]
    Unexpected,
    /// The caller cannot open the token.
    #[error("cannot open the token file `{}`: {source}; it must be one that you can read", .path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused something on the caller's side.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl RunError {
    /// What `weir run` exits with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { exit_code, .. } => *exit_code,
            _ => 1,
        }
    }
}

/// Says what was tried when the system refused.
trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, RunError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: &'static str) -> Result<T, RunError> {
        self.map_err(|source| RunError::Io { doing, source: source.into() })
    }
}

/// Runs a command as an agent and gives the status to exit with: the command's, or 128 and the number of the signal
/// that ended it. To be called while the process has one thread, since it blocks signals.
///
/// # Errors
/// The command could not be started, or lost sight of. The terminal is as it was.
pub fn run(options: RunOptions) -> Result<u8, RunError> {
    let RunOptions { control, agent, token_file, argv } = options;
    let token_file = token_file.map(std::path::absolute).transpose().doing("name the token file")?;
    // Opened here, with the caller's rights.
    let open =
        |path: &PathBuf| std::fs::File::open(path).map_err(|source| RunError::Token { path: path.clone(), source });
    let token = token_file.as_ref().map(open).transpose()?;
    let mut client = Client::connect(&control)?;
    let signals = session::Signals::catch().doing("catch signals")?;
    let (stdio, relays, screen) = stdio::prepare()?;
    let request = Request::Run(RunRequest {
        agent,
        token_file,
        argv,
        env: std::env::vars_os().map(|(n, v)| (Text::from(&*n), Text::from(&*v))).collect(),
        cwd: Text::from(std::env::current_dir().doing("tell the working folder")?.as_os_str()),
        terminal: screen.as_ref().map(terminal::Screen::ground),
    });
    let reply = {
        let mut descriptors = stdio.borrow();
        descriptors.extend(token.as_ref().map(AsFd::as_fd));
        client.request(&request, &descriptors)?
    };
    // Only the command's side holds its ends from here on.
    drop((stdio, token));
    match reply {
        Reply::Started { .. } => {}
        Reply::Failed { message, exit_code } => {
            return Err(RunError::Refused { message, exit_code });
        }
        Reply::Stopped { .. }
        | Reply::Exited { .. }
        | Reply::Killed { .. }
        | Reply::Text { .. }
        | Reply::Row { .. }
        | Reply::Done => {
            return Err(RunError::Unexpected);
        }
    }
    let code = session::attend(client, &signals, screen)?;
    relays.finish();
    Ok(code)
}

impl Ground {
    /// Foreground if `yes`.
    fn foreground_if(yes: bool) -> Self {
        if yes { Self::Foreground } else { Self::Background }
    }
}
