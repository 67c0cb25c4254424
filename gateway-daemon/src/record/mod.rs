//! Step "record": requests, decisions and answers, durable in redb before they count.

mod event;
mod receipt;

pub use event::{
    AdminEvent, Answer, DecisionRecord, Event, KernelRefusal, Outcome, Request, RequestKind,
    SessionEnd, SessionId, SessionStart,
};
pub use receipt::Receipt;
