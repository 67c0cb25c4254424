//! A server as far as names, transactions and COPY go: what PostgreSQL does with the messages that it gets, and an oracle
//! that nothing runs which the policy in force refuses.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::{Script, message};
use crate::sql::{Discard, Reading, StatementKind, StatementReading, TransactionControl};

/// How deep EXECUTE of EXECUTE is followed.
const DEPTH: usize = 4;

/// Whether a statement may run now, and how a text is read.
pub(super) trait Oracle {
    fn read(&self, sql: &str) -> Option<Arc<Reading>>;
    fn allows(&self, statement: &StatementReading) -> bool;
}

/// The server's state of one session.
#[derive(Default)]
pub(super) struct Server {
    prepared: HashMap<String, StatementReading>,
    portals: HashMap<String, Portal>,
    transaction: Transaction,
    /// An error came: everything up to Sync is dropped.
    skipping: bool,
    copy: Option<Copy>,
    pub(super) out: Vec<u8>,
    pub(super) ended: bool,
}

#[derive(Default, PartialEq, Eq, Clone, Copy)]
enum Transaction {
    #[default]
    None,
    Open,
    Failed,
}

struct Portal {
    statement: StatementReading,
    /// Made by DECLARE.
    cursor: bool,
    /// Outlives its transaction where that commits.
    hold: bool,
    committed: bool,
}

/// COPY data is awaited; for a Query, with the statements behind it.
struct Copy {
    rest: Option<VecDeque<StatementReading>>,
}

enum Failed {
    With(&'static str),
    CopyIn,
}

impl Server {
    /// Takes one message.
    pub(super) fn take(&mut self, frame: &[u8], oracle: &impl Oracle, script: &mut Script<'_>) {
        let Some((&tag, rest)) = frame.split_first() else { return };
        let body = rest.get(4..).unwrap_or_default();
        if script.one_in(16) {
            self.say(b'N', b"SNOTICE\0C00000\0Mhello\0\0");
        }
        if self.copy.is_some() {
            return self.copying(tag, oracle, script);
        }
        match tag {
            b'S' => {
                self.skipping = false;
                self.end_implicit(true);
                self.ready();
            }
            b'X' => self.ended = true,
            b'd' | b'c' | b'f' | b'H' => {}
            _ if self.skipping => {}
            b'Q' => self.query(text(body), oracle, script),
            _ => {
                if let Err(sqlstate) = self.extended(tag, body, oracle, script) {
                    self.fail(sqlstate);
                    self.skipping = true;
                }
            }
        }
    }

    fn say(&mut self, tag: u8, body: &[u8]) {
        self.out.extend(message(tag, body));
    }

    fn ready(&mut self) {
        let status = match self.transaction {
            Transaction::None => b'I',
            Transaction::Open => b'T',
            Transaction::Failed => b'E',
        };
        self.say(b'Z', &[status]);
    }

    fn fail(&mut self, sqlstate: &str) {
        let body = format!("SERROR\0VERROR\0C{sqlstate}\0Mfrom the server\0\0");
        self.say(b'E', body.as_bytes());
        match self.transaction {
            Transaction::None => self.end_implicit(false),
            Transaction::Open | Transaction::Failed => self.transaction = Transaction::Failed,
        }
    }

    /// The end of what is a transaction without BEGIN.
    fn end_implicit(&mut self, committed: bool) {
        if self.transaction == Transaction::None {
            self.end_transaction(committed);
        }
    }

    fn end_transaction(&mut self, committed: bool) {
        self.transaction = Transaction::None;
        self.portals.retain(|_, portal| portal.hold && (committed || portal.committed));
        self.portals.values_mut().for_each(|portal| portal.committed = true);
    }

    fn query(&mut self, sql: &str, oracle: &impl Oracle, script: &mut Script<'_>) {
        self.prepared.remove("");
        self.portals.remove("");
        match oracle.read(sql) {
            None => {
                self.fail("42601");
                self.ready();
            }
            Some(reading) => self.statements(reading.statements.clone().into(), oracle, script),
        }
    }

    /// The statements of a Query, from wherever COPY interrupted them.
    fn statements(&mut self, mut rest: VecDeque<StatementReading>, oracle: &impl Oracle, script: &mut Script<'_>) {
        let many = rest.len() > 1;
        while let Some(statement) = rest.pop_front() {
            match self.run(&statement, many, oracle, script, 0) {
                Ok(()) => {}
                Err(Failed::CopyIn) => {
                    self.say(b'G', b"\0\0\0");
                    self.copy = Some(Copy { rest: Some(rest) });
                    return;
                }
                Err(Failed::With(sqlstate)) => {
                    self.fail(sqlstate);
                    break;
                }
            }
            if statement.kind == StatementKind::Empty {
                self.say(b'I', b"");
            } else {
                self.rows(&statement, script);
                self.say(b'C', b"SELECT 1\0");
            }
        }
        self.end_implicit(true);
        self.ready();
    }

    fn rows(&mut self, statement: &StatementReading, script: &mut Script<'_>) {
        match statement.kind {
            StatementKind::CopyOut => {
                self.say(b'H', b"\0\0\0");
                self.say(b'd', b"row\n");
                self.say(b'c', b"");
            }
            StatementKind::Query | StatementKind::Fetch { .. } | StatementKind::Execute { .. } => {
                for _ in 0..script.byte() % 3 {
                    self.say(b'D', b"\0\x01\0\0\0\x03abc");
                }
            }
            _ => {}
        }
    }

    fn copying(&mut self, tag: u8, oracle: &impl Oracle, script: &mut Script<'_>) {
        if matches!(tag, b'd' | b'H' | b'S') && !script.one_in(32) {
            return;
        }
        let Some(Copy { rest }) = self.copy.take() else { return };
        let failed = tag != b'c' || script.one_in(8);
        if failed {
            self.fail("22P02");
        } else {
            self.say(b'C', b"COPY 1\0");
        }
        match rest {
            Some(rest) if !failed => self.statements(rest, oracle, script),
            Some(_) => {
                self.end_implicit(false);
                self.ready();
            }
            None => self.skipping = failed,
        }
    }

    fn extended(
        &mut self,
        tag: u8,
        body: &[u8],
        oracle: &impl Oracle,
        script: &mut Script<'_>,
    ) -> Result<(), &'static str> {
        let (first, rest) = split_text(body);
        match tag {
            b'P' => {
                let reading = oracle.read(split_text(rest).0).ok_or("42601")?;
                let (statement, more) = reading.statements.split_first().ok_or("42601")?;
                if !more.is_empty() {
                    return Err("42601");
                }
                self.may_run(statement)?;
                if !first.is_empty() && self.prepared.contains_key(first) {
                    return Err("42P05");
                }
                if script.one_in(16) {
                    return Err("42P01");
                }
                self.prepared.insert(first.to_owned(), statement.clone());
                self.say(b'1', b"");
            }
            b'B' => {
                let statement = self.prepared.get(split_text(rest).0).ok_or("26000")?.clone();
                self.may_run(&statement)?;
                if !first.is_empty() && self.portals.contains_key(first) {
                    return Err("42P03");
                }
                if script.one_in(16) {
                    return Err("22P02");
                }
                self.portals
                    .insert(first.to_owned(), Portal { statement, cursor: false, hold: false, committed: false });
                self.say(b'2', b"");
            }
            b'D' | b'C' => self.describe_or_close(tag, body, script)?,
            b'E' => self.execute(first, oracle, script)?,
            _ => return Err("08P01"),
        }
        Ok(())
    }

    fn describe_or_close(&mut self, tag: u8, body: &[u8], script: &mut Script<'_>) -> Result<(), &'static str> {
        let (kind, name) = body.split_first().ok_or("08P01")?;
        let name = text(name);
        match (tag, kind) {
            (b'D', b'S') if !self.prepared.contains_key(name) => return Err("26000"),
            (b'D', b'P') if !self.portals.contains_key(name) => return Err("34000"),
            (b'D', _) if self.transaction == Transaction::Failed => return Err("25P02"),
            (b'D', kind) => {
                if *kind == b'S' {
                    self.say(b't', b"\0\0");
                }
                if script.one_in(2) {
                    self.say(b'T', b"\0\0");
                } else {
                    self.say(b'n', b"");
                }
            }
            (_, b'S') => {
                self.prepared.remove(name);
                self.say(b'3', b"");
            }
            (..) => {
                self.portals.remove(name);
                self.say(b'3', b"");
            }
        }
        Ok(())
    }

    fn execute(&mut self, name: &str, oracle: &impl Oracle, script: &mut Script<'_>) -> Result<(), &'static str> {
        let portal = self.portals.get(name).ok_or("34000")?;
        let statement = portal.statement.clone();
        if portal.cursor {
            assert!(oracle.allows(&statement), "a cursor gives rows that are refused");
            self.say(b'C', b"SELECT 0\0");
            return Ok(());
        }
        match self.run(&statement, false, oracle, script, 0) {
            Ok(()) => {}
            Err(Failed::With(sqlstate)) => return Err(sqlstate),
            Err(Failed::CopyIn) => {
                self.say(b'G', b"\0\0\0");
                self.copy = Some(Copy { rest: None });
                return Ok(());
            }
        }
        if statement.kind == StatementKind::Empty {
            self.say(b'I', b"");
            return Ok(());
        }
        self.rows(&statement, script);
        if statement.kind == StatementKind::Query && script.one_in(4) {
            self.say(b's', b"");
        } else {
            self.say(b'C', b"SELECT 1\0");
        }
        Ok(())
    }

    /// In a failed transaction nothing runs but its end.
    fn may_run(&self, statement: &StatementReading) -> Result<(), &'static str> {
        let ends = matches!(
            statement.kind,
            StatementKind::Transaction(
                TransactionControl::Commit { .. }
                    | TransactionControl::Rollback { .. }
                    | TransactionControl::RollbackTo { .. }
            ) | StatementKind::Empty
        );
        if self.transaction == Transaction::Failed && !ends { Err("25P02") } else { Ok(()) }
    }

    fn run(
        &mut self,
        statement: &StatementReading,
        many: bool,
        oracle: &impl Oracle,
        script: &mut Script<'_>,
        depth: usize,
    ) -> Result<(), Failed> {
        self.may_run(statement).map_err(Failed::With)?;
        assert!(oracle.allows(statement), "what is refused runs: {:?}", statement.accesses);
        if script.one_in(12) {
            return Err(Failed::With("22012"));
        }
        if let Some(name) = &statement.executes {
            let Some(prepared) = self.prepared.get(&**name).cloned() else { return Err(Failed::With("26000")) };
            if depth < DEPTH {
                self.run(&prepared, many, oracle, script, depth + 1)?;
            }
        }
        let block = many || self.transaction != Transaction::None;
        match &statement.kind {
            StatementKind::Transaction(control) => self.control(control),
            StatementKind::Prepare { name, statement } => {
                if self.prepared.contains_key(&**name) {
                    return Err(Failed::With("42P05"));
                }
                self.prepared.insert(name.to_string(), StatementReading::clone(statement));
            }
            StatementKind::Deallocate { name: Some(name) } => {
                self.prepared.remove(&**name).ok_or(Failed::With("26000"))?;
            }
            StatementKind::Deallocate { name: None } => self.prepared.clear(),
            StatementKind::DeclareCursor { name } => {
                let hold = script.one_in(3);
                if !hold && !block {
                    return Err(Failed::With("25P01"));
                }
                if self.portals.contains_key(&**name) {
                    return Err(Failed::With("42P03"));
                }
                let portal = Portal { statement: statement.clone(), cursor: true, hold, committed: false };
                self.portals.insert(name.to_string(), portal);
            }
            StatementKind::Fetch { name } => {
                let portal = self.portals.get(&**name).ok_or(Failed::With("34000"))?;
                let accesses = &portal.statement.accesses;
                assert!(oracle.allows(&portal.statement), "a fetch gives rows that are refused: {accesses:?}");
            }
            StatementKind::Close { name: Some(name) } => {
                self.portals.remove(&**name).ok_or(Failed::With("34000"))?;
            }
            StatementKind::Close { name: None } => self.portals.clear(),
            StatementKind::Discard(Discard::All) => {
                if block {
                    return Err(Failed::With("25001"));
                }
                self.portals.clear();
                self.prepared.clear();
            }
            StatementKind::CopyIn => return Err(Failed::CopyIn),
            _ => {}
        }
        Ok(())
    }

    fn control(&mut self, control: &TransactionControl) {
        match control {
            TransactionControl::Begin => self.transaction = Transaction::Open,
            TransactionControl::Commit { chain } | TransactionControl::Rollback { chain } => {
                let committed =
                    matches!(control, TransactionControl::Commit { .. }) && self.transaction != Transaction::Failed;
                let was = self.transaction;
                self.end_transaction(committed);
                if *chain && was != Transaction::None {
                    self.transaction = Transaction::Open;
                }
            }
            TransactionControl::RollbackTo { .. } if self.transaction == Transaction::Failed => {
                self.transaction = Transaction::Open;
            }
            _ => {}
        }
    }
}

fn text(body: &[u8]) -> &str {
    split_text(body).0
}

fn split_text(body: &[u8]) -> (&str, &[u8]) {
    let end = body.iter().position(|&byte| byte == 0).unwrap_or(body.len());
    let (text, rest) = body.split_at_checked(end).unwrap_or_default();
    (std::str::from_utf8(text).unwrap_or_default(), rest.get(1..).unwrap_or_default())
}
