//! What an agent has used up, within one session: its turns are held back, its statements refused, and an answer in whose
//! middle an amount runs out is cut off.
//!
//! The rest of such an answer is dropped while the server is asked to cancel, and the error that the server ends the
//! statement with is replaced by Weir's: rows and then an error, as the server itself fails in the middle of an answer. A
//! server that was done before it heard must come to the state that an error leaves, too:
//!
//! | the server says | the agent is told |
//! | --- | --- |
//! | an error | Weir's error |
//! | ready, in a transaction | Weir's error, once a stand-in has failed the transaction |
//! | ready, nothing had effects | Weir's error |
//! | ready, something had effects | the session ends: it cannot be undone, and must not look so |
//!
//! Where more of a pipeline has run behind it, the session ends as well.

use std::collections::VecDeque;

use bytes::BytesMut;

use super::{
    Fault, Judge, Machine, Stop,
    errors::used_up,
    expect::{Copies, Expect},
    requests::Asked,
    statements::REFUSED_QUERY,
};
use crate::{
    limits::Over,
    policy::Clearance,
    protocol::postgres::answer::{self, ErrorAnswer},
};

/// An answer that is cut off.
#[derive(Debug)]
pub(super) struct Cut {
    asked: Asked,
    over: Over,
    /// The server is yet to be asked to stop.
    to_cancel: bool,
    /// The server completed the Execute: what is said of it is said with the next Sync.
    completed: bool,
}

impl<J: Judge> Machine<J> {
    /// Waits for the agent's turn: once for a message, however often it is given.
    ///
    /// # Errors
    /// When it may have no session any more.
    pub(super) fn admit(&mut self) -> Result<Option<Stop>, Fault> {
        if self.admitted {
            return Ok(None);
        }
        self.may_record()?;
        self.admitted = true;
        Ok(self.account.statement().map(Stop::Until))
    }

    /// Whether answers are under way that must be counted before the next decision. The server is asked for them: of a
    /// pipeline without its Sync it would keep their end to itself.
    pub(super) fn waits_for_count(&mut self) -> bool {
        let answers = |expect: &Expect| matches!(expect, Expect::Query { .. } | Expect::Execute { .. });
        let waits = self.expect.iter().any(answers);
        if waits && !self.waits_for_count {
            self.flush_server();
        }
        self.waits_for_count = waits;
        waits
    }

    /// Ends the session of an agent whose part of the record is used up: even a refusal would add to it.
    pub(super) fn may_record(&self) -> Result<(), Fault> {
        self.account.over_record().map_or(Ok(()), |over| Err(Fault::UsedUp(over)))
    }

    /// Queues a statement for the server.
    pub(super) fn forward(&mut self, frame: &[u8], clearance: Clearance, asked: Asked) {
        self.effects |= matches!(clearance, Clearance::Effect(_));
        self.to_server.forward(frame, clearance, asked.event);
    }

    /// Whether the server is to be asked to stop what runs; true once for each cut.
    pub fn take_cancel(&mut self) -> bool {
        self.cut.as_mut().is_some_and(|cut| std::mem::take(&mut cut.to_cancel))
    }

    /// Ends the session since the server could not be asked to stop.
    ///
    /// # Errors
    /// Always, while an answer is cut off.
    pub fn cancel_failed(&mut self) -> Result<(), Fault> {
        self.cut.take().map_or(Ok(()), |cut| Err(Fault::UsedUp(cut.over)))
    }

    /// Whether the next rows of this request may pass; if not, its answer is cut off from here on.
    pub(super) fn rows_may_pass(&mut self, asked: Asked) -> Result<bool, Fault> {
        if self.cut.is_none() {
            self.may_record()?;
            let Some(over) = self.account.over_answers() else { return Ok(true) };
            self.cut = Some(Cut { asked, over, to_cancel: true, completed: false });
            // Of a pipeline without its Sync the server would keep the end to itself, and the agent is not read meanwhile.
            self.flush_server();
        }
        Ok(!self.is_cut(Some(asked)))
    }

    /// Whether what comes for this request is dropped.
    pub(super) fn is_cut(&self, asked: Option<Asked>) -> bool {
        self.cut.as_ref().is_some_and(|cut| Some(cut.asked) == asked)
    }

    /// The error that ends a request that is cut off, in the place of the server's own.
    pub(super) fn end_cut(&mut self, asked: Option<Asked>) -> Option<ErrorAnswer> {
        self.cut.take_if(|cut| cut.completed || Some(cut.asked) == asked).map(|cut| used_up(&cut.over))
    }

    /// The server completed an Execute whose answer is cut off before it heard that it should not. The Execute is no longer
    /// expected.
    pub(super) fn execute_was_cut(&mut self) -> Result<(), Fault> {
        let Some(cut) = self.cut.take() else { return Ok(()) };
        match (self.expect.front(), self.expect.len()) {
            (None, _) => self.stand_in(Some(cut.asked), used_up(&cut.over)),
            (Some(Expect::Sync { .. }), 1) => self.cut = Some(Cut { completed: true, ..cut }),
            (Some(_), _) => return Err(Fault::UsedUp(cut.over)),
        }
        Ok(())
    }

    /// The server is ready, behind a statement whose answer was cut off and that did not fail. What was expected is taken off
    /// already. Whether the agent may be told that it is ready; if not, a stand-in must fail first.
    pub(super) fn ready_after_cut(&mut self, frame: &[u8]) -> Result<bool, Fault> {
        let Some(Cut { asked, over, .. }) = self.cut.take() else { return Ok(true) };
        match frame.last() {
            _ if !self.expect.is_empty() => Err(Fault::UsedUp(over)),
            Some(b'T') => {
                self.refuse_query(asked, used_up(&over));
                Ok(false)
            }
            Some(b'I') if self.effects => Err(Fault::UsedUp(over)),
            Some(_) | None => {
                let answer = used_up(&over);
                let bytes = answer.to_bytes();
                self.requests.fail(asked.number, answer.sqlstate, &answer.message);
                self.requests.answer(&mut self.log, asked.number, &bytes, 0, self.limits.answer_bytes)?;
                let needs = self.requests.end(&mut self.log, asked.number)?.max(self.log.appended());
                self.to_agent.push(&bytes, needs);
                Ok(true)
            }
        }
    }

    /// Asks the server for the answers that it keeps back up to a Sync.
    pub(super) fn flush_server(&mut self) {
        let mut bytes = BytesMut::new();
        answer::flush(&mut bytes);
        self.to_server.push(&bytes, 0);
    }

    /// Sends the stand-in of a refused Query.
    pub(super) fn refuse_query(&mut self, asked: Asked, answer: ErrorAnswer) {
        let mut bytes = BytesMut::new();
        answer::query(&mut bytes, REFUSED_QUERY);
        self.to_server.push(&bytes, 0);
        let (changes, refused) = (VecDeque::new(), Some(Box::new(answer)));
        self.expect.push_back(Expect::Query { asked, changes, statements: 0, copies: Copies::No, refused });
        self.fence_names();
    }
}
