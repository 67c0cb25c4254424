//! The requests of one session on the record: from the event that asks to the one that says how it ended.

use std::{borrow::Cow, collections::VecDeque, sync::Arc, time::Instant};

use aws_lc_rs::digest;

use crate::{
    limits::{Account, TableVolume},
    policy::{Decision, DeniedAccess, ForRecord, LiftOnRecord},
    record::{self, DecisionRecord, Event, Outcome, Request, RequestKind, Runs, SessionLog, StoreError},
    sql::Columns,
};

/// Bytes of one answer after which they are charged before it ends: few enough that a limit is met within the answer.
const CHARGE_BYTES: u64 = 16 * 1024;

/// Requests that were asked for and have not ended.
#[derive(Debug)]
pub(super) struct Requests {
    /// Who is charged for the answers.
    account: Arc<Account>,
    /// Numbers rise by one from front to back.
    live: VecDeque<Live>,
    last: u64,
    /// Refused ones, for the session's end.
    pub(super) refused: u64,
    /// Denied ones that were let pass.
    pub(super) observed: u64,
    /// Rows and bytes that the agent got.
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

/// One request that has not ended.
struct Live {
    number: u64,
    /// The session's event that asked.
    event: u64,
    started: Instant,
    tags: Vec<String>,
    rows: u64,
    bytes: u64,
    /// What of them is not charged yet, and for which tables it will be.
    due: (u64, u64),
    tables: Arc<[Arc<TableVolume>]>,
    digest: Option<digest::Context>,
    error: Option<(String, String)>,
    truncated: bool,
    ended: bool,
}

/// What is asked for.
pub(super) struct Ask<'a> {
    pub(super) kind: RequestKind,
    pub(super) sql: Cow<'a, str>,
    pub(super) parameters: Vec<Option<Vec<u8>>>,
    pub(super) formats: Vec<u16>,
    pub(super) types: Vec<u32>,
    pub(super) accesses: &'a [Arc<str>],
    /// The tables that it reads.
    pub(super) tables: Arc<[Arc<TableVolume>]>,
    pub(super) runs: Option<Runs>,
}

impl<'a> Ask<'a> {
    /// A statement without parameters that runs nothing made earlier.
    pub(super) const fn new(
        kind: RequestKind,
        sql: Cow<'a, str>,
        accesses: &'a [Arc<str>],
        tables: Arc<[Arc<TableVolume>]>,
    ) -> Self {
        Self { kind, sql, parameters: Vec::new(), formats: Vec::new(), types: Vec::new(), accesses, tables, runs: None }
    }
}

/// A request by its number, with the event that asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) number: u64,
    pub(super) event: u64,
    /// That the event says that a denial is lifted, if it does.
    pub(super) lifted: Option<LiftOnRecord>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("number", &self.number).field("event", &self.event).finish_non_exhaustive()
    }
}

impl Live {
    /// Charges what is due. A short answer is charged once, a long one as it goes.
    fn charge(&mut self, account: &Account, now: Instant) {
        let (rows, bytes) = std::mem::take(&mut self.due);
        if (rows, bytes) != (0, 0) {
            account.charge(now, &self.tables, rows, bytes);
        }
    }
}

impl Requests {
    pub(super) const fn charged_to(account: Arc<Account>) -> Self {
        Self { account, live: VecDeque::new(), last: 0, refused: 0, observed: 0, rows: 0, bytes: 0 }
    }

    /// Puts a request and its decision on the record (not yet committed).
    pub(super) fn ask(&mut self, log: &mut SessionLog, ask: Ask<'_>, decision: &Decision) -> Result<Asked, StoreError> {
        let number = self.last + 1;
        let ForRecord { allowed, reason, denied, lifted } = decision.for_record();
        let observed = lifted.is_some();
        let denied = (!denied.is_empty())
            .then(|| record::Denied { observed, accesses: denied.iter().map(denied_access).collect() });
        let event = log.append(&Event::Request(Request {
            session: log.id(),
            request: number,
            kind: ask.kind,
            sql: ask.sql.into_owned(),
            parameters: ask.parameters,
            formats: ask.formats,
            types: ask.types,
            accesses: ask.accesses.iter().map(|access| access.to_string()).collect(),
            decision: DecisionRecord {
                allowed,
                policies: decision.policies.iter().map(ToString::to_string).collect(),
                set: decision.set.0,
                reason,
                denied,
            },
            runs: ask.runs,
        }))?;
        self.last = number;
        self.refused += u64::from(!allowed && !observed);
        self.observed += u64::from(observed);
        self.live.push_back(Live {
            number,
            event,
            started: Instant::now(),
            tags: Vec::new(),
            rows: 0,
            bytes: 0,
            due: (0, 0),
            tables: ask.tables,
            digest: None,
            error: None,
            truncated: false,
            ended: false,
        });
        Ok(Asked { number, event, lifted })
    }

    /// How many requests were made.
    pub(super) const fn count(&self) -> u64 {
        self.last
    }

    /// Whether a request has not ended.
    pub(super) fn is_live(&mut self, number: u64) -> bool {
        self.find(number).is_some_and(|live| !live.ended)
    }

    /// A part of the answer to a request goes to the agent: gives the event that has it, 0 when it is not kept.
    pub(super) fn answer(
        &mut self,
        log: &mut SessionLog,
        number: u64,
        bytes: &[u8],
        rows: u64,
        limit: u64,
    ) -> Result<u64, StoreError> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.rows += rows;
        self.bytes += length;
        let Some(live) = find(&mut self.live, number) else {
            self.account.charge(Instant::now(), &[], rows, length);
            return log.append_answer(number, bytes);
        };
        live.rows += rows;
        live.bytes += length;
        live.due = (live.due.0 + rows, live.due.1 + length);
        if live.due.1 >= CHARGE_BYTES {
            live.charge(&self.account, Instant::now());
        }
        live.digest.get_or_insert_with(|| digest::Context::new(&digest::SHA256)).update(bytes);
        // Whole or not at all: what is cut in a message could not be shown.
        if live.truncated || live.bytes > limit {
            live.truncated = true;
            return Ok(0);
        }
        log.append_answer(number, bytes)
    }

    /// A statement of the request completed with this tag.
    pub(super) fn tag(&mut self, number: u64, tag: &str) -> usize {
        match self.find(number) {
            Some(live) => {
                live.tags.push(tag.to_owned());
                live.tags.len()
            }
            None => 0,
        }
    }

    /// The request failed.
    pub(super) fn fail(&mut self, number: u64, sqlstate: &str, message: &str) {
        if let Some(live) = self.find(number) {
            live.error = Some((sqlstate.to_owned(), message.to_owned()));
        }
    }

    /// The request ended: gives the event that says so, 0 when it had ended before.
    pub(super) fn end(&mut self, log: &mut SessionLog, number: u64) -> Result<u64, StoreError> {
        let (session, now) = (log.id(), Instant::now());
        let Some(live) = find(&mut self.live, number).filter(|live| !live.ended) else { return Ok(0) };
        live.ended = true;
        live.charge(&self.account, now);
        let digest = match live.digest.take() {
            Some(context) => context.finish(),
            None => digest::digest(&digest::SHA256, b""),
        };
        let outcome = Outcome {
            session,
            request: number,
            tags: std::mem::take(&mut live.tags),
            rows: live.rows,
            bytes: live.bytes,
            digest: digest.as_ref().try_into().unwrap_or_default(),
            truncated: live.truncated,
            error: live.error.take(),
            duration: now.duration_since(live.started),
        };
        self.drop_ended();
        log.append(&Event::Outcome(outcome))
    }

    fn drop_ended(&mut self) {
        while self.live.front().is_some_and(|live| live.ended) {
            self.live.pop_front();
        }
    }

    /// The request is over and says nothing more: a Parse that the server took.
    pub(super) fn settle(&mut self, number: u64) {
        if let Some(live) = find(&mut self.live, number) {
            live.ended = true;
            live.charge(&self.account, Instant::now());
        }
        self.drop_ended();
    }

    /// Ends every request up to `number` that has not ended.
    pub(super) fn end_up_to(&mut self, log: &mut SessionLog, number: u64) -> Result<(), StoreError> {
        while let Some(next) = self.live.iter().find(|live| !live.ended).map(|live| live.number)
            && next <= number
        {
            self.end(log, next)?;
        }
        Ok(())
    }

    /// Ends all that has not ended, with the same error: the session is over.
    pub(super) fn end_all(&mut self, log: &mut SessionLog, sqlstate: &str, message: &str) -> Result<(), StoreError> {
        while let Some(number) = self.live.iter().find(|live| !live.ended).map(|live| live.number) {
            self.fail(number, sqlstate, message);
            self.end(log, number)?;
        }
        Ok(())
    }

    fn find(&mut self, number: u64) -> Option<&mut Live> {
        find(&mut self.live, number)
    }
}

fn find(live: &mut VecDeque<Live>, number: u64) -> Option<&mut Live> {
    let first = live.front()?.number;
    let at = usize::try_from(number.checked_sub(first)?).ok()?;
    live.get_mut(at)
}

fn denied_access(denied: &DeniedAccess) -> record::DeniedAccess {
    let DeniedAccess { action, kind, id, columns, forbidden_by, unmet } = denied;
    let (columns, all_columns) = match columns {
        Columns::None => (Vec::new(), false),
        Columns::Some(names) => (names.iter().map(ToString::to_string).collect(), false),
        Columns::All => (Vec::new(), true),
    };
    record::DeniedAccess {
        action: action.name().to_owned(),
        kind: (*kind).to_owned(),
        id: id.clone(),
        columns,
        all_columns,
        forbidden_by: forbidden_by.iter().map(ToString::to_string).collect(),
        unmet: unmet.iter().map(ToString::to_string).collect(),
    }
}
