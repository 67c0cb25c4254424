//! The server's messages: each is tied to what it answers, put on the record and passed on byte for byte; only the error
//! of a stand-in is replaced, and in a notification of the session's own its process number.

use super::{
    AgentPhase, Fault, Judge, Machine, Stop, Taken, WHOLE_MESSAGE_BYTES,
    expect::{Changes, Expect},
    requests::Asked,
};
use crate::{
    protocol::postgres::{
        answer::ErrorAnswer,
        backend::{self, BackendError, ErrorFields},
        frame::{HEADER, Header, MessageLimit},
    },
    record::StoreError,
};

/// The request number under which the record keeps what belongs to none: notifications.
const NO_REQUEST: u64 = 0;

/// SQLSTATEs with which a stand-in fails: the name it describes does not exist, and the text cannot be scanned. Any other
/// error is the server's own and is passed on: a cancel, a shutdown, a failed transaction.
const STAND_IN_FAILS: [&str; 3] = ["26000", "42601", "25P02"];

/// What an agent is told in the place of the server's error, if that goes on.
#[derive(Clone, Copy)]
enum Instead<'a> {
    Nothing,
    /// Where it is the error that the stand-in causes.
    StandIn(&'a ErrorAnswer),
    /// Whatever the error is.
    Always(&'a ErrorAnswer),
}

impl<'a> Instead<'a> {
    fn of(stand_in: Option<&'a ErrorAnswer>) -> Self {
        stand_in.map_or(Self::Nothing, Self::StandIn)
    }
}

impl<J: Judge> Machine<J> {
    /// Takes bytes from the server.
    ///
    /// # Errors
    /// What ends the session.
    pub fn from_server(&mut self, input: &[u8]) -> Result<Taken, Fault> {
        let mut used = 0;
        loop {
            let rest = input.get(used..).unwrap_or_default();
            if self.server_body > 0 {
                let part = rest.get(..self.server_body.min(rest.len())).unwrap_or_default();
                self.row_bytes(part, 0)?;
                used += part.len();
                self.server_body -= part.len();
                if self.server_body > 0 {
                    return Ok(Taken { bytes: used, stop: Stop::More });
                }
                continue;
            }
            let run = self.rows(rest)?;
            if run > 0 {
                used += run;
                continue;
            }
            let Some(header) = self.server_header(rest)? else {
                return Ok(Taken { bytes: used, stop: Stop::More });
            };
            let Some(frame) = rest.get(..header.frame()) else {
                if header.body > WHOLE_MESSAGE_BYTES {
                    return Err(BackendError::Unexpected { tag: header.tag }.into());
                }
                return Ok(Taken { bytes: used, stop: Stop::More });
            };
            self.answer(header.tag, frame)?;
            used += frame.len();
        }
    }

    fn server_header(&self, rest: &[u8]) -> Result<Option<Header>, Fault> {
        let limit = MessageLimit { bytes: self.limits.server_message_bytes, name: "limits.server_message_bytes" };
        Header::decode(rest, limit).map_err(Fault::ServerFrame)
    }

    /// Passes rows and COPY data at the front of `rest`, as many as there are, in one piece; the last one may be cut.
    fn rows(&mut self, rest: &[u8]) -> Result<usize, Fault> {
        let (mut end, mut rows) = (0, 0);
        while let Some(header) = self.server_header(rest.get(end..).unwrap_or_default())? {
            match header.tag {
                b'D' => {}
                b'd' if self.expect.front().is_some_and(|expect| expect.copies().may_copy_out()) => {}
                _ => break,
            }
            rows += 1;
            end += header.frame();
        }
        if end == 0 {
            return Ok(0);
        }
        if !matches!(self.expect.front(), Some(Expect::Query { .. } | Expect::Execute { .. })) {
            return Err(BackendError::Unexpected { tag: b'D' }.into());
        }
        let here = end.min(rest.len());
        self.server_body = end - here;
        if let Some(asked) = self.expect.front().and_then(Expect::asked)
            && !self.rows_may_pass(asked)?
        {
            return Ok(here);
        }
        self.row_bytes(rest.get(..here).unwrap_or_default(), rows)?;
        Ok(here)
    }

    fn row_bytes(&mut self, bytes: &[u8], rows: u64) -> Result<(), Fault> {
        let asked = self.expect.front().and_then(Expect::asked);
        if asked.is_some() && !self.is_cut(asked) {
            self.pass(asked, bytes, rows)?;
        }
        Ok(())
    }

    /// Passes bytes of the answer to a request: they leave when the request is on the record.
    fn pass(&mut self, asked: Option<Asked>, bytes: &[u8], rows: u64) -> Result<(), StoreError> {
        match asked {
            Some(asked) => {
                self.requests.answer(&mut self.log, asked.number, bytes, rows, self.limits.answer_bytes)?;
                self.to_agent.push(bytes, asked.event);
            }
            None => self.to_agent.push(bytes, self.log.appended()),
        }
        Ok(())
    }

    /// The same, unless the rest of the answer is cut off.
    fn pass_uncut(&mut self, asked: Asked, frame: &[u8]) -> Result<(), Fault> {
        if !self.is_cut(Some(asked)) {
            self.pass(Some(asked), frame, 0)?;
        }
        Ok(())
    }

    /// One message that is no row.
    fn answer(&mut self, tag: u8, frame: &[u8]) -> Result<(), Fault> {
        let body = frame.get(HEADER..).unwrap_or_default();
        match tag {
            b'C' => self.complete(frame, body),
            b'Z' => self.ready(frame),
            b'E' => self.error(frame, body),
            b'1' => self.done(tag, frame, |expect| matches!(expect, Expect::Parse { .. })),
            b'2' => self.done(tag, frame, |expect| matches!(expect, Expect::Bind { .. })),
            b'3' => self.done(tag, frame, |expect| matches!(expect, Expect::Close { .. })),
            b'n' => self.described(tag, frame),
            b'T' => match self.expect.front() {
                Some(Expect::Query { asked, .. }) => {
                    let asked = *asked;
                    self.pass_uncut(asked, frame)
                }
                _ => self.described(tag, frame),
            },
            b't' => match self.expect.front() {
                Some(Expect::Describe { asked }) => Ok(self.pass(Some(*asked), frame, 0)?),
                _ => Err(BackendError::Unexpected { tag }.into()),
            },
            b'I' => self.empty(frame),
            b's' => match self.expect.front() {
                Some(Expect::Execute { asked, .. }) if self.is_cut(Some(*asked)) => {
                    let asked = *asked;
                    self.finish(frame, asked)
                }
                _ => self.done(tag, frame, |expect| matches!(expect, Expect::Execute { .. })),
            },
            b'G' => self.copy_in(frame),
            b'H' | b'c' if self.expect.front().is_some_and(|expect| expect.copies().may_copy_out()) => {
                self.expect.front().and_then(Expect::asked).map_or(Ok(()), |asked| self.pass_uncut(asked, frame))
            }
            b'N' => match self.expect.front().and_then(Expect::asked) {
                None => self.unasked(frame),
                asked => Ok(self.pass(asked, frame, 0)?),
            },
            b'A' => self.notification(frame),
            b'S' => {
                backend::parameter_status(body)?;
                let asked = self.expect.front().and_then(Expect::asked);
                Ok(self.pass(asked, frame, 0)?)
            }
            _ => Err(BackendError::Unexpected { tag }.into()),
        }
    }

    /// NotificationResponse: names the process that notified. An agent knows its own by the number that it was told, and may
    /// pass over what it said itself; other processes keep theirs.
    fn notification(&mut self, frame: &[u8]) -> Result<(), Fault> {
        let mut frame = frame.to_vec();
        if let (Some((server, agent)), Some(process)) = (self.processes, frame.get_mut(HEADER..HEADER + 4))
            && *process == server
        {
            process.copy_from_slice(&agent);
        }
        self.unasked(&frame)
    }

    /// What the server says unasked, and may carry data: a notification, a notice between statements.
    fn unasked(&mut self, frame: &[u8]) -> Result<(), Fault> {
        let needs = self.log.append_answer(NO_REQUEST, frame)?;
        self.to_agent.push(frame, needs);
        Ok(())
    }

    /// CommandComplete: a statement is done, and with the last one of the text the request.
    fn complete(&mut self, frame: &[u8], body: &[u8]) -> Result<(), Fault> {
        let tag = backend::command_tag(body)?;
        match self.expect.front_mut() {
            Some(Expect::Query { asked, changes, statements, .. }) => {
                let (asked, statements) = (*asked, *statements);
                if let Some(changes) = changes.pop_front() {
                    self.confirm(&changes);
                }
                self.judge.completed();
                let completed = self.requests.tag(asked.number, tag);
                if self.is_cut(Some(asked)) {
                    return Ok(());
                }
                self.requests.answer(&mut self.log, asked.number, frame, 0, self.limits.answer_bytes)?;
                let needs = if completed < statements { asked.event } else { self.end_request(asked)? };
                self.to_agent.push(frame, needs);
                Ok(())
            }
            Some(Expect::Execute { asked, .. }) => {
                let asked = *asked;
                self.requests.tag(asked.number, tag);
                self.finish(frame, asked)
            }
            _ => Err(BackendError::Unexpected { tag: b'C' }.into()),
        }
    }

    /// EmptyQueryResponse.
    fn empty(&mut self, frame: &[u8]) -> Result<(), Fault> {
        match self.expect.front_mut() {
            Some(Expect::Query { asked, changes, .. }) => {
                let asked = *asked;
                changes.clear();
                if self.is_cut(Some(asked)) {
                    return Ok(());
                }
                self.requests.answer(&mut self.log, asked.number, frame, 0, self.limits.answer_bytes)?;
                let needs = self.end_request(asked)?;
                self.to_agent.push(frame, needs);
                Ok(())
            }
            Some(Expect::Execute { asked, .. }) => {
                let asked = *asked;
                self.finish(frame, asked)
            }
            _ => Err(BackendError::Unexpected { tag: b'I' }.into()),
        }
    }

    /// The last message of an Execute: it leaves when the outcome is on the record.
    fn finish(&mut self, frame: &[u8], asked: Asked) -> Result<(), Fault> {
        let cut = self.is_cut(Some(asked));
        if !cut {
            self.requests.answer(&mut self.log, asked.number, frame, 0, self.limits.answer_bytes)?;
            let needs = self.end_request(asked)?;
            self.to_agent.push(frame, needs);
        }
        self.agent_resumes(Some(asked));
        self.judge.completed();
        if let Some(expect) = self.expect.pop_front() {
            self.confirm_all(&expect);
        }
        if cut { self.execute_was_cut() } else { Ok(()) }
    }

    fn end_request(&mut self, asked: Asked) -> Result<u64, StoreError> {
        let ended = self.requests.end(&mut self.log, asked.number)?;
        Ok(ended.max(asked.event))
    }

    /// A message that ends what stands at the front.
    fn done(&mut self, tag: u8, frame: &[u8], fits: impl Fn(&Expect) -> bool) -> Result<(), Fault> {
        let Some(expect) = self.expect.pop_front().filter(fits) else {
            return Err(BackendError::Unexpected { tag }.into());
        };
        match (&expect, expect.asked()) {
            // A portal was suspended: the next Execute is a request of its own.
            (Expect::Execute { .. }, Some(asked)) => {
                self.requests.answer(&mut self.log, asked.number, frame, 0, self.limits.answer_bytes)?;
                let needs = self.end_request(asked)?;
                self.to_agent.push(frame, needs);
            }
            (_, asked) => self.pass(asked, frame, 0)?,
        }
        if let Expect::Parse { asked, .. } = &expect {
            self.requests.settle(asked.number);
        }
        self.confirm_all(&expect);
        Ok(())
    }

    /// RowDescription or NoData: ends a Describe.
    fn described(&mut self, tag: u8, frame: &[u8]) -> Result<(), Fault> {
        self.done(tag, frame, |expect| matches!(expect, Expect::Describe { .. }))
    }

    fn confirm_all(&mut self, expect: &Expect) {
        let changes: Vec<Changes> = expect.changes().cloned().collect();
        for changes in &changes {
            self.confirm(changes);
        }
    }

    /// CopyInResponse: from here on the agent's messages are COPY data.
    fn copy_in(&mut self, frame: &[u8]) -> Result<(), Fault> {
        match self.expect.front() {
            Some(expect) if expect.copies().may_copy_in() => match (expect.asked(), self.agent_phase) {
                // The agent is told no more of a text that is cut off, and would send no data.
                (asked @ Some(_), _) if self.is_cut(asked) => self.cancel_failed(),
                (Some(asked), AgentPhase::AwaitingCopy(awaited)) if asked == awaited => {
                    self.agent_phase = AgentPhase::CopyIn(asked);
                    self.pass(Some(asked), frame, 0)?;
                    Ok(())
                }
                _ => Err(BackendError::Unexpected { tag: b'G' }.into()),
            },
            _ => Err(BackendError::Unexpected { tag: b'G' }.into()),
        }
    }

    /// A request is over: if it was the one that waited for COPY or took its data, other messages may come again.
    fn agent_resumes(&mut self, asked: Option<Asked>) {
        match self.agent_phase {
            AgentPhase::AwaitingCopy(awaited) | AgentPhase::CopyIn(awaited) if Some(awaited) == asked => {
                self.agent_phase = AgentPhase::Open;
            }
            AgentPhase::Open
            | AgentPhase::Skipping
            | AgentPhase::AwaitingCopy(_)
            | AgentPhase::CopyIn(_)
            | AgentPhase::Closed => {}
        }
    }

    /// ErrorResponse: a Query ends with its ReadyForQuery; in the extended protocol all up to Sync is skipped.
    fn error(&mut self, frame: &[u8], body: &[u8]) -> Result<(), Fault> {
        let fields = backend::error_fields(body)?;
        self.agent_resumes(self.expect.front().and_then(Expect::asked));
        match self.expect.front_mut() {
            Some(Expect::Query { asked, changes, refused, .. }) => {
                let (asked, refused) = (*asked, refused.take());
                changes.clear();
                match self.end_cut(Some(asked)) {
                    Some(used_up) => self.failed(frame, &fields, Some(asked), Instead::Always(&used_up))?,
                    None => self.failed(frame, &fields, Some(asked), Instead::of(refused.as_deref()))?,
                }
                self.restart_names();
                Ok(())
            }
            Some(Expect::StandIn { asked, answer }) => {
                let (asked, answer) = (*asked, answer.clone());
                self.failed(frame, &fields, asked, Instead::StandIn(&answer))?;
                self.skip_to_sync()
            }
            Some(expect) => {
                let asked = match expect {
                    Expect::Sync { last } => Some(Asked { number: *last, event: self.log.appended(), lifted: None }),
                    other => other.asked(),
                };
                match self.end_cut(asked) {
                    Some(used_up) => self.failed(frame, &fields, asked, Instead::Always(&used_up))?,
                    None => self.failed(frame, &fields, asked, Instead::Nothing)?,
                }
                self.skip_to_sync()
            }
            // The server ends an idle session: timeout, shutdown.
            None => {
                self.pass(None, frame, 0)?;
                Ok(())
            }
        }
    }

    /// Passes an error on, or what replaces it, behind the outcome of its request.
    fn failed(
        &mut self,
        frame: &[u8],
        fields: &ErrorFields,
        asked: Option<Asked>,
        instead: Instead<'_>,
    ) -> Result<(), Fault> {
        let own = match instead {
            Instead::Always(answer) => Some(answer),
            Instead::StandIn(answer) => Some(answer).filter(|_| STAND_IN_FAILS.contains(&fields.sqlstate.as_str())),
            Instead::Nothing => None,
        };
        let own = own.filter(|_| !fields.fatal);
        let replaced = own.map(ErrorAnswer::to_bytes);
        let bytes = replaced.as_deref().unwrap_or(frame);
        let (sqlstate, message) = match own {
            Some(answer) => (answer.sqlstate, answer.message.as_str()),
            None => (fields.sqlstate.as_str(), fields.message.as_str()),
        };
        let Some(asked) = asked else {
            self.pass(None, bytes, 0)?;
            return Ok(());
        };
        self.requests.fail(asked.number, sqlstate, message);
        self.requests.answer(&mut self.log, asked.number, bytes, 0, self.limits.answer_bytes)?;
        let needs = self.end_request(asked)?.max(self.log.appended());
        self.to_agent.push(bytes, needs);
        Ok(())
    }

    /// The server reads and drops all up to the next Sync: what was expected of it will not be answered.
    fn skip_to_sync(&mut self) -> Result<(), Fault> {
        while let Some(expect) = self.expect.front() {
            if let Expect::Sync { .. } = expect {
                break;
            }
            let asked = expect.asked();
            if let Some(asked) = asked {
                self.requests.fail(asked.number, "", "skipped: an earlier message of the pipeline failed");
                self.requests.end(&mut self.log, asked.number)?;
            }
            self.agent_resumes(asked);
            self.expect.pop_front();
        }
        if self.expect.is_empty() {
            // Sync is still to come from the agent; the server skips, so may we.
            self.agent_phase = match self.agent_phase {
                AgentPhase::Open | AgentPhase::Skipping | AgentPhase::AwaitingCopy(_) | AgentPhase::CopyIn(_) => {
                    AgentPhase::Skipping
                }
                AgentPhase::Closed => AgentPhase::Closed,
            };
        }
        self.restart_names();
        Ok(())
    }

    /// ReadyForQuery: leaves behind all that was recorded before it.
    fn ready(&mut self, frame: &[u8]) -> Result<(), Fault> {
        let ended = self.expect.pop_front();
        if let Some(Expect::Query { asked, .. }) = &ended {
            self.agent_resumes(Some(*asked));
        }
        let told = self.ready_after_cut(frame)?;
        match ended {
            _ if !told => return Ok(()),
            Some(Expect::Query { asked, .. }) => {
                self.end_request(asked)?;
            }
            Some(Expect::Sync { last }) => self.requests.end_up_to(&mut self.log, last)?,
            _ => return Err(BackendError::Unexpected { tag: b'Z' }.into()),
        }
        self.effects = false;
        if frame.last() == Some(&b'I') {
            self.judge.idle();
            // The server dropped them with the transaction; a cursor may have been declared to outlive it.
            self.portals.keep(|portal| portal.is_cursor);
        }
        self.to_agent.push(frame, self.log.appended());
        Ok(())
    }
}
