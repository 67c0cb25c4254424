//! What is told of a denial: how often, when, by whom, in which sessions.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::record::{SessionId, SessionInfo, Time};

/// Sessions and people that are named; the others are counted or passed over.
const NAMED: usize = 3;
/// Columns of one table that are kept, and bytes of a name.
pub(super) const MOST_COLUMNS: usize = 100;
const LONGEST_COLUMN: usize = 256;

/// How many statements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Statements {
    /// Denied and let pass.
    pub let_pass: u64,
    /// Denied and refused.
    pub refused: u64,
    /// Prepared, denied and let pass: each run of them is among the others.
    pub prepared: u64,
}

impl Statements {
    /// One statement.
    pub(super) fn of(observed: bool, prepares: bool) -> Self {
        let none = Self::default();
        match (observed, prepares) {
            (true, true) => Self { prepared: 1, ..none },
            (true, false) => Self { let_pass: 1, ..none },
            // A refused one is never run.
            (false, _) => Self { refused: 1, ..none },
        }
    }

    pub(super) fn add(&mut self, more: Self) {
        let Self { let_pass, refused, prepared } = more;
        self.let_pass = self.let_pass.saturating_add(let_pass);
        self.refused = self.refused.saturating_add(refused);
        self.prepared = self.prepared.saturating_add(prepared);
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) statements: Statements,
    pub(super) first: Time,
    pub(super) last: Time,
    /// Agent and subject.
    pub(super) people: Few<(String, String)>,
    pub(super) sessions: Few<SessionId>,
    pub(super) columns: BTreeSet<String>,
    /// Every column.
    pub(super) all_columns: bool,
    /// More columns than are kept.
    pub(super) more_columns: bool,
}

/// The first few of many, in their own order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Few<T> {
    pub(super) named: BTreeSet<T>,
    /// Whether there were others.
    pub(super) more: bool,
}

impl<T: Ord> Few<T> {
    fn one(item: T) -> Self {
        Self { named: BTreeSet::from([item]), more: false }
    }

    fn merge(&mut self, others: Self) {
        self.named.extend(others.named);
        self.more |= others.more;
        while self.named.len() > NAMED {
            self.named.pop_last();
            self.more = true;
        }
    }
}

impl Seen {
    pub(super) fn new(statements: Statements, time: Time, session: &SessionInfo) -> Self {
        Self {
            statements,
            first: time,
            last: time,
            people: Few::one((session.agent.clone(), session.subject.clone())),
            sessions: Few::one(session.id),
            columns: BTreeSet::new(),
            all_columns: false,
            more_columns: false,
        }
    }

    pub(super) fn columns(&mut self, columns: &[String], all: bool) {
        self.all_columns |= all;
        for column in columns {
            if self.columns.contains(column) {
                continue;
            }
            if self.columns.len() >= MOST_COLUMNS || column.len() > LONGEST_COLUMN {
                self.more_columns = true;
                return;
            }
            self.columns.insert(column.clone());
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        let Self { statements, first, last, people, sessions, columns, all_columns, more_columns } = other;
        self.statements.add(statements);
        self.first = self.first.min(first);
        self.last = self.last.max(last);
        self.people.merge(people);
        self.sessions.merge(sessions);
        self.more_columns |= more_columns;
        self.columns(&columns.into_iter().collect::<Vec<_>>(), all_columns);
    }
}
