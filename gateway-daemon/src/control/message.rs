//! What the CLI asks and the daemon answers.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::record::{LogFilter, SessionFilter};

/// The first message of every connection: one verb.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum Request {
    /// Start a command as an agent. Comes with the descriptors 0, 1, 2 of the command and, when a token file is
    /// named, with that file opened by the caller. Answered by [`Reply::Started`], then by [`Reply::Stopped`] as often
    /// as the command stops, at last by [`Reply::Exited`] or [`Reply::Killed`]; [`RunInput`]s may follow meanwhile.
    Run(RunRequest),
    /// Say how the daemon is. Answered by [`Reply::Row`].
    Status,
    /// Load the policies anew. Root only. Answered by [`Reply::Text`].
    PolicyReload,
    /// Say who may do what by the policies in force. Answered by [`Reply::Text`], or [`Reply::Row`]s.
    PolicyDoc {
        /// Rows instead of a text.
        json: bool,
    },
    /// Decide a statement as if an agent had sent it; nothing is forwarded. Answered by [`Reply::Row`].
    Explain(ExplainRequest),
    /// Read the record. Answered by [`Reply::Row`]s, then [`Reply::Done`].
    Record(RecordRequest),
    /// Test the way to the servers of connections. Root only. Answered by [`Reply::Row`]s, then [`Reply::Done`].
    ConnectionTest(ConnectionTestRequest),
    /// End a session. Root only. Answered by [`Reply::Text`].
    SessionKill {
        /// Its name.
        session: String,
    },
    /// List agents, their runs and who is frozen. Answered by [`Reply::Row`]s, then [`Reply::Done`].
    AgentList,
    /// Refuse an agent everything, until it is thawed. Root only. Answered by [`Reply::Text`].
    AgentFreeze {
        /// The agent.
        agent: String,
    },
    /// Take a freeze back. Root only. Answered by [`Reply::Text`].
    AgentThaw {
        /// The agent.
        agent: String,
    },
    /// Bring a new token for an agent's runs; comes with the opened token file. Root, or who may start the agent.
    /// Answered by [`Reply::Text`].
    AgentRefresh {
        /// The agent.
        agent: String,
    },
    /// Make a process tree that runs already an agent's; comes with the opened token file, when one is named. Root only.
    /// Answered by [`Reply::Text`].
    AgentAssign {
        /// The agent.
        agent: String,
        /// The process that the tree begins with, in the daemon's pid namespace.
        pid: u32,
        /// Where the token lies; the configuration's without.
        token_file: Option<PathBuf>,
    },
    /// Show the host CA. Answered by [`Reply::Row`].
    CaShow,
    /// Make a new host CA. Root only. Answered by [`Reply::Row`].
    CaRotate,
}

/// What `weir explain` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainRequest {
    /// The configured agent's name.
    pub agent: String,
    /// Groups to assume, qualified; those of the agent's newest run when there are none.
    pub groups: Vec<String>,
    /// The declared connection's name.
    pub connection: String,
    /// The database; the connection's own when it has only one.
    pub database: Option<String>,
    /// The statement.
    pub sql: String,
}

/// What `weir connection test` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionTestRequest {
    /// The configuration, absolute; the daemon's own without.
    pub config: Option<PathBuf>,
    /// Which connections; all when there are none.
    pub names: Vec<String>,
    /// The database, in place of the configured one.
    pub database: Option<String>,
}

/// What is read of the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "part", rename_all = "kebab-case")]
pub enum RecordRequest {
    /// The sessions, newest first.
    Sessions {
        /// Which.
        filter: SessionFilter,
    },
    /// One session whole, answers included.
    Show {
        /// Its name.
        session: String,
    },
    /// Requests, refusals and acts, in order.
    Log {
        /// Which.
        filter: LogFilter,
        /// Go on with what comes.
        follow: bool,
    },
}

/// What `weir run` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRequest {
    /// The configured agent's name.
    pub agent: String,
    /// Where the token lies, so that the daemon can watch for a newer one. Its present content is read from the fourth
    /// descriptor alone: what the caller cannot open, the daemon does not open for them.
    pub token_file: Option<PathBuf>,
    /// The command and its arguments; never empty.
    pub argv: Vec<Text>,
    /// The caller's environment, not cleaned yet.
    pub env: Vec<(Text, Text)>,
    /// The caller's working folder, absolute.
    pub cwd: Text,
    /// Whether the terminals among the three descriptors are one pty that the caller made for this run, and how the
    /// command begins on it.
    pub terminal: Option<crate::launch::Ground>,
}

/// What the caller of a run may say while it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "input", rename_all = "kebab-case")]
pub enum RunInput {
    /// Send a signal to the command.
    Signal {
        /// Its number; only [`crate::launch::FORWARDED`] are taken.
        signal: i32,
    },
    /// Let a stopped command go on.
    Resume {
        /// Whether it gets the terminal.
        ground: crate::launch::Ground,
    },
    /// All output of the ended command has been read from the pty.
    Drained,
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// The request is refused or failed; nothing follows.
    Failed {
        /// For the person who asked.
        message: String,
        /// What the CLI exits with: 127 when a command was not found, 126 when it could not be started, else 1.
        exit_code: u8,
    },
    /// An answer for people.
    Text {
        /// Lines, without escapes of a terminal.
        text: String,
    },
    /// One of many things.
    Row {
        /// As `--json` shows it.
        row: serde_json::Value,
    },
    /// Nothing follows.
    Done,
    /// The command runs.
    Started {
        /// Its process, in the daemon's pid namespace.
        pid: i32,
    },
    /// The command stopped and waits for [`RunInput::Resume`].
    Stopped {
        /// By which signal: SIGTSTP, SIGTTIN, …
        signal: i32,
    },
    /// The command ended by itself.
    Exited {
        /// Its exit status.
        code: u8,
    },
    /// The command was ended by a signal.
    Killed {
        /// Which one.
        signal: i32,
    },
}

/// A string of the operating system: JSON text where it is UTF-8, its bytes as numbers where it is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Text {
    /// UTF-8.
    Utf8(String),
    /// Anything else.
    Bytes(Vec<u8>),
}

impl From<&OsStr> for Text {
    fn from(text: &OsStr) -> Self {
        match text.to_str() {
            Some(utf8) => Self::Utf8(utf8.to_owned()),
            None => Self::Bytes(text.as_bytes().to_vec()),
        }
    }
}

impl From<Text> for OsString {
    fn from(text: Text) -> Self {
        match text {
            Text::Utf8(utf8) => utf8.into(),
            Text::Bytes(bytes) => Self::from_vec(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_not_utf8_survives_json() {
        for bytes in [&b"plain"[..], b"\xff\xfe=", b""] {
            let text = Text::from(OsStr::from_bytes(bytes));
            let back: Text = serde_json::from_str(&serde_json::to_string(&text).unwrap()).unwrap();
            assert_eq!(OsString::from(back).as_bytes(), bytes);
        }
    }
}
