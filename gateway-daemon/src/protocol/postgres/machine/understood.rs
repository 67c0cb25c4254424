//! What a statement's text comes to before it is forwarded: read, decided with what it runs by name, held against the
//! limits, and ready for the record.

use std::sync::Arc;

use super::{
    Fault, Judge, Judgement, KEPT_TEXT_BYTES, Machine, Stop, Unread,
    errors::{no_cursor, no_statement, not_plain, over, used_up},
    expect::{Changes, Copies, Portal, Prepared, PreparedBy},
    names::{Change, Meaning},
    requests::{Ask, Asked},
};
use crate::{
    limits::Over,
    policy::{Clearance, Decision, Denier, NotCleared, PolicySetId, Refusal, Verdict},
    protocol::postgres::answer::{ErrorAnswer, REFUSED, Severity},
    record::RequestKind,
    sql::{Discard, Reading, StatementKind, StatementReading, place_of},
};

/// A text, judged together with what it executes or fetches from by name.
pub(super) struct Judged {
    pub(super) judgement: Arc<Judgement>,
    pub(super) named: Vec<Arc<Reading>>,
    /// Why it is refused whatever the policies say.
    impossible: Option<ErrorAnswer>,
    /// The amount that the agent has used up.
    used_up: Option<Over>,
}

impl Judged {
    /// The judgement, where its denial is lifted.
    pub(super) fn lifted(&self) -> Option<Arc<Judgement>> {
        match self.judgement.decision.verdict {
            Verdict::Lifted { .. } => Some(self.judgement.clone()),
            Verdict::Allow | Verdict::Deny { .. } => None,
        }
    }
}

/// What became of a text.
pub(super) enum Text {
    Read(Arc<Reading>),
    /// Refused unread; it is on the record.
    Refused(ErrorAnswer, Asked),
    /// The catalogue must be fetched first.
    NotYet,
}

impl<J: Judge> Machine<J> {
    /// Decides a reading together with what it executes or fetches from by name; or says what must happen first. A name that
    /// does not exist gets the server's own error: nothing is forwarded that was not read.
    pub(super) fn judge_named(&mut self, reading: &Arc<Reading>) -> Result<Judged, Stop> {
        let mut named = Vec::new();
        let mut impossible = None;
        for (at, statement) in reading.statements.iter().enumerate() {
            let mut earlier = reading.statements.iter().take(at).map(|earlier| &earlier.kind);
            if let Some(name) = &statement.executes {
                // What the same text prepares is judged there.
                if earlier.any(|earlier| matches!(earlier, StatementKind::Prepare { name: n, .. } if n == name)) {
                    continue;
                }
                match self.statements.get(name) {
                    Meaning::Nothing => impossible = Some(no_statement(name)),
                    Meaning::Unsettled => return Err(Stop::Busy),
                    Meaning::Known(prepared) => match self.reread(&prepared) {
                        Ok(reading) => named.push(reading),
                        Err(Unread::NotYet) => return Err(Stop::Catalog),
                        Err(Unread::Never { answer, .. }) => impossible = Some(*answer),
                    },
                }
            } else if let StatementKind::Fetch { name } = &statement.kind {
                if earlier.any(|earlier| matches!(earlier, StatementKind::DeclareCursor { name: n } if n == name)) {
                    continue;
                }
                match self.portals.get(name) {
                    Meaning::Nothing => impossible = Some(no_cursor(name)),
                    Meaning::Unsettled => return Err(Stop::Busy),
                    Meaning::Known(portal) => named.push(portal.reading.clone()),
                }
            } else if let StatementKind::Prepare { statement, .. } = &statement.kind {
                named.push(Arc::new(Reading::from(StatementReading::clone(statement))));
            }
        }
        if !named.iter().all(|reading| is_plain(reading)) {
            impossible = Some(not_plain());
        }
        let mut judgement = self.judge.decide(reading, &named);
        if judgement.reads_volume && self.waits_for_count() {
            return Err(Stop::Busy);
        }
        let used_up = self.account.over_answers().filter(|_| !returns_nothing(reading));
        if let Some(over) = &used_up {
            let reason = over.to_string();
            let verdict = Verdict::Deny { what: "the statement".to_owned(), reason, access: None, by: Denier::Weir };
            let Judgement { decision, accesses, tables, reads_volume } = &*judgement;
            let decision = Decision { verdict, policies: Vec::new(), ..decision.clone() };
            let (accesses, tables, reads_volume) = (accesses.clone(), tables.clone(), *reads_volume);
            judgement = Arc::new(Judgement { decision, accesses, tables, reads_volume });
        }
        Ok(Judged { judgement, named, impossible, used_up })
    }

    /// What a statement does to names once the server completed it.
    pub(super) fn changes_of(&self, at: usize, statement: &StatementReading, text: &Arc<str>, asked: Asked) -> Changes {
        let none = Changes::default();
        match &statement.kind {
            StatementKind::Prepare { name, .. } => {
                let weight = self.keep_text(text.len());
                let by = PreparedBy::Sql(at);
                let prepared = Prepared { sql: text.clone(), by, asked, types: Vec::new(), _weight: weight };
                Changes { statement: Some(Change::Define(name.clone(), Arc::new(prepared))), ..none }
            }
            StatementKind::Deallocate { name: Some(name) } => {
                Changes { statement: Some(Change::Forget(name.clone())), ..none }
            }
            StatementKind::Deallocate { name: None } => Changes { statement: Some(Change::ForgetAll), ..none },
            StatementKind::DeclareCursor { name } => {
                let reading = Arc::new(Reading::from(statement.clone()));
                let weight = self.keep_text(text.len());
                let portal = Portal::cursor(text.clone(), reading, asked, weight);
                Changes { portal: Some(Change::Define(name.clone(), Arc::new(portal))), ..none }
            }
            StatementKind::Close { name: Some(name) } => Changes { portal: Some(Change::Forget(name.clone())), ..none },
            StatementKind::Close { name: None } => Changes { portal: Some(Change::ForgetAll), ..none },
            StatementKind::Discard(Discard::All) => {
                Changes { statement: Some(Change::ForgetAll), portal: Some(Change::ForgetAll) }
            }
            StatementKind::Discard(Discard::Plans | Discard::Sequences | Discard::Temporary)
            | StatementKind::Empty
            | StatementKind::Query
            | StatementKind::Dml
            | StatementKind::Utility
            | StatementKind::Transaction(_)
            | StatementKind::Execute { .. }
            | StatementKind::Fetch { .. }
            | StatementKind::CopyIn
            | StatementKind::CopyOut
            | StatementKind::Set { .. }
            | StatementKind::Reset { .. }
            | StatementKind::Show { .. }
            | StatementKind::Listen { .. }
            | StatementKind::Unlisten { .. }
            | StatementKind::Notify { .. } => none,
        }
    }

    pub(super) fn over_limit<'a>(
        &mut self,
        reading: &Reading,
        named: &[Arc<Reading>],
        changes: impl IntoIterator<Item = &'a Changes>,
    ) -> Option<ErrorAnswer> {
        let limit = self.limits.names;
        let (mut defines, mut full) = (false, false);
        for Changes { statement, portal } in changes {
            defines |= matches!(statement, Some(Change::Define(..))) || matches!(portal, Some(Change::Define(..)));
            full |=
                self.statements.overflow(statement.as_ref(), limit) || self.portals.overflow(portal.as_ref(), limit);
        }
        if full {
            return Some(over(format!(
                "the session has {limit} prepared statements or portals, the limit of limits.prepared_statements"
            )));
        }
        if defines && self.kept_text.load(std::sync::atomic::Ordering::Relaxed) > KEPT_TEXT_BYTES {
            return Some(over(format!("the session's prepared statements hold over {KEPT_TEXT_BYTES} bytes of text")));
        }
        let mut readings = std::iter::once(reading).chain(named.iter().map(AsRef::as_ref));
        readings.find_map(|reading| self.judge.forwarding(reading).err()).map(over)
    }

    pub(super) fn read(&mut self, kind: RequestKind, sql: &str) -> Result<Text, Fault> {
        let (length, limit) = (sql.len(), self.limits.statement_bytes);
        let (answer, kept) = if length > limit {
            let answer =
                over(format!("the statement has {length} bytes, over the limit of {limit} (limits.statement_bytes)"));
            (answer, format!("/* not read: {length} bytes */"))
        } else {
            match self.judge.read(sql) {
                Ok(reading) => return Ok(Text::Read(reading)),
                Err(Unread::NotYet) => return Ok(Text::NotYet),
                Err(Unread::Never { answer, kept }) => (*answer, kept),
            }
        };
        let asked = self.refused_unread(kind, &answer, kept)?;
        Ok(Text::Refused(answer, asked))
    }

    /// Puts on the record what is refused without having been read, and why.
    pub(super) fn refused_unread(
        &mut self,
        kind: RequestKind,
        answer: &ErrorAnswer,
        kept: String,
    ) -> Result<Asked, Fault> {
        let decision = Decision {
            verdict: Verdict::Deny {
                what: "unknown".into(),
                reason: answer.message.clone(),
                access: None,
                by: Denier::Weir,
            },
            policies: Vec::new(),
            set: PolicySetId([0; 32]),
            durable_first: true,
        };
        Ok(self.requests.ask(&mut self.log, Ask::new(kind, kept.into(), &[], Arc::default()), &decision)?)
    }

    /// The request as the record keeps it: secrets in the text are replaced.
    pub(super) fn ask_for<'a>(
        &self,
        kind: RequestKind,
        sql: &'a str,
        reading: &Reading,
        judgement: &'a Judgement,
    ) -> Ask<'a> {
        let sql = match self.judge.redact(sql, reading) {
            Some(redacted) => std::borrow::Cow::Owned(redacted),
            None => std::borrow::Cow::Borrowed(sql),
        };
        Ask::new(kind, sql, &judgement.accesses, judgement.tables.clone())
    }

    fn refusal(&self, refusal: &Refusal) -> ErrorAnswer {
        let policies: Vec<&str> = refusal.policies.iter().map(|id| &*id.0).collect();
        let detail = match policies.as_slice() {
            [] => refusal.reason.clone(),
            policies => format!("{} (policy {})", refusal.reason, policies.join(", ")),
        };
        ErrorAnswer {
            severity: Severity::Error,
            sqlstate: REFUSED,
            message: format!("Weir refused this statement: {}", refusal.what),
            detail,
            hint: self.judge.hint().to_owned(),
            position: None,
        }
    }

    /// The clearance for a request that is on the record, or what the agent is told instead: with the place, where the message itself brought the text.
    pub(super) fn clear(&self, judged: &Judged, asked: Asked, text: Option<&str>) -> Result<Clearance, ErrorAnswer> {
        if let Some(over) = &judged.used_up {
            return Err(used_up(over));
        }
        let cleared = match judged.judgement.decision.clear() {
            Ok(clearance) => Ok(clearance),
            Err(NotCleared::Lifted(lifted)) => lifted.recorded(asked.lifted),
            Err(NotCleared::Refused(refusal)) => Err(refusal),
        };
        match (cleared, &judged.impossible) {
            (Err(refusal), _) => {
                let place = text.zip(refusal.access.as_deref()).and_then(|(text, access)| place_of(text, access));
                Err(self.refusal(&refusal).at(place))
            }
            (Ok(_), Some(answer)) => Err(answer.clone()),
            (Ok(clearance), None) => Ok(clearance),
        }
    }

    /// What a prepared statement means now.
    pub(super) fn reread(&mut self, prepared: &Prepared) -> Result<Arc<Reading>, Unread> {
        let reading = self.judge.read(&prepared.sql)?;
        let PreparedBy::Sql(at) = prepared.by else { return Ok(reading) };
        match reading.statements.get(at).map(|statement| &statement.kind) {
            Some(StatementKind::Prepare { statement, .. }) => {
                Ok(Arc::new(Reading::from(StatementReading::clone(statement))))
            }
            // The same text has the same statements, whatever names mean.
            Some(_) | None => {
                let kept = format!("/* not read: {} bytes */", prepared.sql.len());
                Err(Unread::Never { answer: Box::new(no_statement("")), kept })
            }
        }
    }
}

/// Whether an agent may send it that has used up an amount: what it began it must be able to end.
fn returns_nothing(reading: &Reading) -> bool {
    reading.statements.iter().all(|statement| matches!(statement.kind, StatementKind::Transaction(_)))
}

/// Whether a statement may be run by another's name for it. The server would run anything that was prepared, also what
/// changes names or runs yet another: only what returns or changes rows is followed.
fn is_plain(reading: &Reading) -> bool {
    reading.statements.iter().all(|statement| {
        let rows =
            matches!(statement.kind, StatementKind::Query | StatementKind::Dml | StatementKind::DeclareCursor { .. });
        rows && statement.executes.is_none()
    })
}

pub(super) fn copies_of(reading: &Reading) -> Copies {
    let has = |kind: &StatementKind| reading.statements.iter().any(|statement| statement.kind == *kind);
    match (has(&StatementKind::CopyIn), has(&StatementKind::CopyOut)) {
        (false, false) => Copies::No,
        (true, false) => Copies::In,
        (false, true) => Copies::Out,
        (true, true) => Copies::Both,
    }
}
