//! What ends a session from within.

use crate::{
    limits::Over,
    protocol::postgres::{answer::ErrorAnswer, backend::BackendError, frame::FrameError, frontend::FrontendError},
    record::StoreError,
};

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The agent broke the protocol or a limit.
    #[error("{0}")]
    Agent(#[from] FrontendError),
    /// The agent's frame cannot be.
    #[error("{0}")]
    AgentFrame(FrameError),
    /// A message where the protocol has no place for it.
    #[error("a message of type `{}` came while COPY data was expected", tag.escape_ascii())]
    InCopy {
        /// Its type.
        tag: u8,
    },
    /// The server broke the protocol or a limit.
    #[error("the server sent what it may not: {0}")]
    Server(#[from] BackendError),
    /// The server's frame cannot be.
    #[error("the server sent what it may not: {0}")]
    ServerFrame(FrameError),
    /// The record cannot be written.
    #[error("{0}")]
    Record(#[from] StoreError),
    /// The identity ended.
    #[error("{}", .0.message)]
    Standing(Box<ErrorAnswer>),
    /// The agent has used up what no session may go on without, or a statement could not be stopped in time.
    #[error("{0}")]
    UsedUp(Over),
}
