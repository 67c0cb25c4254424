//! Connections that came to be no session, on the record: their own events would tell nobody why.

use std::{net::SocketAddr, time::Duration};

use super::Front;
use crate::{
    limits::{Account, Refused},
    protocol::postgres::answer::{ErrorAnswer, TOO_MANY, USED_UP},
    record::{Event, KernelRefusal},
};

/// A connection that an agent made.
pub(super) struct Connect<'a> {
    pub(super) account: &'a Account,
    pub(super) destination: SocketAddr,
    pub(super) cgroup: u64,
    pub(super) pid: u32,
    pub(super) uid: u32,
}

/// Records a refusal. Those for a limit an agent can bring about as often as it likes: the first is told at once, what
/// follows soon as a number.
pub(super) fn record(front: &Front, connect: &Connect<'_>, answer: &ErrorAnswer) {
    let Connect { account, destination, cgroup, pid, uid } = *connect;
    let refused = Refused { why: answer.message.clone(), destination, cgroup, pid, uid, count: 1 };
    let now = match answer.sqlstate {
        TOO_MANY | USED_UP => account.note_refusal(refused),
        _ => Some(refused),
    };
    if let Some(refused) = now {
        tracing::info!(sqlstate = answer.sqlstate, "no session: {}", refused.why);
        front.record_refused(account, refused);
    }
}

impl Front {
    /// Records the refusals of each agent that were gathered for `age`.
    pub fn record_gathered(&self, age: Duration) {
        for account in self.accounts.all() {
            if let Some(refused) = account.gathered_refusals(age) {
                self.record_refused(account, refused);
            }
        }
    }

    fn record_refused(&self, account: &Account, refused: Refused) {
        let Refused { why, destination, cgroup, pid, uid, count } = refused;
        let refused = KernelRefusal {
            agent: Some(account.agent.to_string()),
            uid,
            pid,
            comm: String::new(),
            cgroup,
            destination,
            what: why,
            count,
        };
        if let Err(error) = self.recorder.record(&Event::Refused(refused)) {
            tracing::error!(%error, "a refusal is not on the record");
        }
    }
}
