//! What is understood of a text: one reading a statement.

use std::{ops::Range, sync::Arc};

use super::{
    access::{Access, Action, Columns, Name, Object},
    names::NameEffect,
};

/// A whole text, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The statements in order; at least one, since a text without any is the empty statement.
    pub statements: Vec<StatementReading>,
    /// How long the reading holds for other texts.
    pub(super) reuse: Reuse,
    /// Where the secrets stand in the text.
    pub(super) secrets: Vec<Range<usize>>,
}

/// For which texts a reading holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reuse {
    /// For every text of the same tokens, whatever their literals.
    Shape,
    /// For the same text.
    Text,
    /// For this once: it holds secrets, or changes what names mean.
    Never,
}

/// One statement, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementReading {
    /// What the session must know of it.
    pub kind: StatementKind,
    /// What it does; never empty. Of one that executes a prepared statement, what it does besides: see
    /// [`Self::accesses_with`].
    pub accesses: Vec<Access>,
    /// The functions that it names, those on the list of the free ones included.
    pub functions: Vec<FunctionUse>,
    /// Why an access is unknown, for people; names of the statement alone, never a value.
    pub reasons: Vec<String>,
    /// A name was not in the catalogue snapshot: a newer one may read the statement otherwise.
    pub unresolved: bool,
    /// What it may change about names; to be applied to the session's before it is forwarded.
    pub effects: Vec<NameEffect>,
    /// It executes the prepared statement of this name (EXECUTE, also inside EXPLAIN and CREATE TABLE AS).
    pub executes: Option<Name>,
}

/// A function that a statement names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionUse {
    /// The schema it was resolved to.
    pub schema: Name,
    /// Its name.
    pub name: Name,
    /// It is on the list of those without effects.
    pub free: bool,
}

/// What a session must know of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatementKind {
    /// No statement at all: answered by EmptyQueryResponse.
    Empty,
    /// Returns rows: SELECT, VALUES, TABLE, EXPLAIN.
    Query,
    /// INSERT, UPDATE, DELETE, MERGE.
    Dml,
    /// Whatever has no kind of its own.
    Utility,
    /// Begins, ends or divides a transaction.
    Transaction(TransactionControl),
    /// PREPARE.
    Prepare {
        /// In the one namespace of SQL and protocol.
        name: Name,
        /// What EXECUTE will do.
        statement: Box<StatementReading>,
    },
    /// EXECUTE.
    Execute {
        /// The prepared statement.
        name: Name,
    },
    /// DEALLOCATE; without a name, all of them.
    Deallocate {
        /// The prepared statement.
        name: Option<Name>,
    },
    /// DECLARE CURSOR.
    DeclareCursor {
        /// In the one namespace of cursors and portals.
        name: Name,
    },
    /// FETCH or MOVE.
    Fetch {
        /// The cursor or portal.
        name: Name,
    },
    /// CLOSE; without a name, all of them.
    Close {
        /// The cursor or portal.
        name: Option<Name>,
    },
    /// COPY … FROM STDIN.
    CopyIn,
    /// COPY … TO STDOUT.
    CopyOut,
    /// SET.
    Set {
        /// In lower case.
        name: Name,
    },
    /// RESET, or SET … TO DEFAULT; without a name, all of them.
    Reset {
        /// In lower case.
        name: Option<Name>,
    },
    /// SHOW.
    Show {
        /// In lower case.
        name: Name,
    },
    /// DISCARD.
    Discard(Discard),
    /// LISTEN.
    Listen {
        /// The channel.
        channel: Name,
    },
    /// UNLISTEN; without a channel, all of them.
    Unlisten {
        /// The channel.
        channel: Option<Name>,
    },
    /// NOTIFY.
    Notify {
        /// The channel.
        channel: Name,
    },
}

/// What a statement does to the transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransactionControl {
    /// BEGIN, START TRANSACTION.
    Begin,
    /// COMMIT, END.
    Commit {
        /// AND CHAIN: the next one begins at once.
        chain: bool,
    },
    /// ROLLBACK, ABORT.
    Rollback {
        /// AND CHAIN: the next one begins at once.
        chain: bool,
    },
    /// SAVEPOINT.
    Savepoint {
        /// Its name.
        name: Name,
    },
    /// RELEASE SAVEPOINT.
    Release {
        /// Its name.
        name: Name,
    },
    /// ROLLBACK TO SAVEPOINT.
    RollbackTo {
        /// Its name.
        name: Name,
    },
    /// PREPARE TRANSACTION: the transaction outlives the session.
    Prepare,
    /// COMMIT PREPARED.
    CommitPrepared,
    /// ROLLBACK PREPARED.
    RollbackPrepared,
}

/// What DISCARD discards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// Everything: prepared statements, cursors, settings, LISTEN.
    All,
    /// Cached plans.
    Plans,
    /// What `currval` remembers.
    Sequences,
    /// Temporary relations.
    Temporary,
}

impl From<StatementReading> for Reading {
    /// The reading of one statement by itself, to be judged where it is executed or fetched from by name.
    fn from(statement: StatementReading) -> Self {
        Self { statements: vec![statement], reuse: Reuse::Never, secrets: Vec::new() }
    }
}

impl Reading {
    /// All effects on names, in order: to be given to [`super::SessionNames::apply`] before the text is forwarded.
    pub fn effects(&self) -> impl Iterator<Item = &NameEffect> {
        self.statements.iter().flat_map(|statement| &statement.effects)
    }

    /// The accesses of every statement, with EXECUTE followed: first to a PREPARE earlier in this text, then to `lookup`,
    /// which gives what the session keeps under a name.
    pub fn accesses_with(&self, lookup: impl Fn(&str) -> Option<Arc<StatementReading>>) -> Vec<Vec<Access>> {
        let mut here: Vec<(&Name, &StatementReading)> = Vec::new();
        let mut all = Vec::with_capacity(self.statements.len());
        for statement in &self.statements {
            all.push(statement.accesses_with(|name| {
                let earlier = here.iter().rev().find(|(n, _)| &***n == name).map(|(_, s)| s.accesses.clone());
                earlier.or_else(|| lookup(name).map(|s| s.accesses.clone()))
            }));
            if let StatementKind::Prepare { name, statement } = &statement.kind {
                here.push((name, statement));
            }
        }
        all
    }
}

impl Reading {
    /// About how many bytes it takes, for the cache's books.
    pub(super) fn weight(&self) -> usize {
        self.statements.iter().map(StatementReading::weight).sum()
    }
}

impl StatementReading {
    fn weight(&self) -> usize {
        let columns = |access: &Access| match &access.columns {
            Columns::None | Columns::All => 0,
            Columns::Some(names) => names.len(),
        };
        let nested = match &self.kind {
            StatementKind::Prepare { statement, .. } => statement.weight(),
            _ => 0,
        };
        400 + nested
            + self.accesses.iter().map(|access| 160 + 64 * columns(access)).sum::<usize>()
            + 96 * (self.functions.len() + self.reasons.len())
    }

    /// The accesses, with what the prepared statement does where one is executed. `lookup` gives the accesses that the
    /// session keeps for a name; a name that it does not know makes the statement unknown.
    pub fn accesses_with(&self, lookup: impl FnOnce(&str) -> Option<Vec<Access>>) -> Vec<Access> {
        let mut accesses = self.accesses.clone();
        if let Some(name) = &self.executes {
            let unknown = || {
                vec![Access {
                    action: Action::Unknown,
                    object: Object::Other { kind: "prepared statement", name: Arc::clone(name) },
                    columns: Columns::None,
                }]
            };
            for access in lookup(name).unwrap_or_else(unknown) {
                if !accesses.contains(&access) {
                    accesses.push(access);
                }
            }
        }
        accesses
    }
}
