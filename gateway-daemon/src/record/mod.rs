//! Step "record": requests, decisions and answers, durable in redb before they count.
//!
//! In come [`Event`]s and the bytes of answers; out go [`Receipt`]s, given when what they cover is on the disk, and the
//! rows that [`Reader`] finds again. What always holds: no receipt before its commit; sequence numbers and times never
//! go backwards; what was taken is written, in order, or everyone is refused. `FORMAT.md` has the files.
//!
//! ```text
//!  SessionLog ─ append ─► data ─ commit ─► queue ─► writer thread ─ one commit ─► redb window
//!      ▲                                                │
//!      └────────────── Progress (count, one wake) ◄─────┘
//! ```

mod backlog;
mod batch;
mod block;
mod error;
mod event;
mod exact;
#[cfg(test)]
mod faults;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod index;
mod pack;
mod queue;
mod read;
mod receipt;
mod recorder;
mod session;
mod settings;
mod time;
mod unfold;
mod usage;
mod window;
mod writer;

pub use error::StoreError;
pub use event::{
    AdminEvent, Answer, DecisionRecord, Denied, DeniedAccess, Event, KernelRefusal, Outcome, Request, RequestKind,
    Runs, SessionEnd, SessionId, SessionIdError, SessionStart,
};
pub use read::{
    DecisionFilter, Log, LogFilter, Reader, Row, RowContent, SessionFilter, SessionInfo, SessionSummary, Sessions,
};
pub use receipt::Receipt;
pub use recorder::{Finding, Recorded, Recorder};
pub use session::SessionLog;
pub use settings::StoreSettings;
pub use time::Time;
