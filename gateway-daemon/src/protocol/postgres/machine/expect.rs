//! What the server still has to answer, in order, and what each answer confirms.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::{Judgement, names::Change, requests::Asked};
use crate::{protocol::postgres::answer::ErrorAnswer, sql::Reading};

/// Text that counts against the session's limit for as long as it is kept.
#[derive(Debug)]
pub(super) struct Weight {
    total: Arc<AtomicUsize>,
    bytes: usize,
}

impl Weight {
    /// `bytes` were added to `total` already.
    pub(super) const fn new(total: Arc<AtomicUsize>, bytes: usize) -> Self {
        Self { total, bytes }
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A prepared statement as the session knows it. Only its text is kept: the server plans it anew when names have changed
/// their meaning, so it is read anew at each use, mostly from the cache.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) sql: Arc<str>,
    pub(super) by: PreparedBy,
    /// The request that prepared it.
    pub(super) asked: Asked,
    /// The parameter types that the agent gave.
    pub(super) types: Vec<u32>,
    pub(super) _weight: Weight,
}

/// How a statement was prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PreparedBy {
    /// By Parse: the text is the statement.
    Parse,
    /// By the PREPARE that is this statement of the text.
    Sql(usize),
}

/// What a portal's text counts by.
#[derive(Debug)]
enum Kept {
    Prepared { _prepared: Arc<Prepared> },
    Own { _weight: Weight },
}

/// A portal, or a cursor: one namespace on the server.
#[derive(Debug)]
pub(super) struct Portal {
    pub(super) sql: Arc<str>,
    pub(super) reading: Arc<Reading>,
    /// The request that bound it.
    pub(super) asked: Asked,
    /// What that request's event says, where it says that a denial is lifted.
    pub(super) lifted: Option<Arc<Judgement>>,
    /// What keeps the text counted.
    _kept: Kept,
    /// Made by DECLARE, not by Bind.
    pub(super) is_cursor: bool,
    /// Whether an Execute used that request already; the next one is a request of its own.
    used: AtomicBool,
}

impl Portal {
    /// What a Bind makes.
    pub(super) fn bound(
        prepared: Arc<Prepared>,
        reading: Arc<Reading>,
        asked: Asked,
        lifted: Option<Arc<Judgement>>,
    ) -> Self {
        let sql = prepared.sql.clone();
        let _kept = Kept::Prepared { _prepared: prepared };
        Self { sql, reading, asked, lifted, _kept, is_cursor: false, used: AtomicBool::new(false) }
    }

    /// What a DECLARE makes.
    pub(super) fn cursor(sql: Arc<str>, reading: Arc<Reading>, asked: Asked, weight: Weight) -> Self {
        let _kept = Kept::Own { _weight: weight };
        Self { sql, reading, asked, lifted: None, _kept, is_cursor: true, used: AtomicBool::new(true) }
    }

    /// Whether this is the first use.
    pub(super) fn first_use(&self) -> bool {
        !self.used.swap(true, Ordering::Relaxed)
    }
}

/// What one confirmed step does to the names.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes {
    pub(super) statement: Option<Change<Arc<Prepared>>>,
    pub(super) portal: Option<Change<Arc<Portal>>>,
}

/// Which way COPY data may go while a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copies {
    No,
    In,
    Out,
    /// A text with both.
    Both,
}

impl Copies {
    pub(super) const fn may_copy_in(self) -> bool {
        match self {
            Self::In | Self::Both => true,
            Self::No | Self::Out => false,
        }
    }

    pub(super) const fn may_copy_out(self) -> bool {
        match self {
            Self::Out | Self::Both => true,
            Self::No | Self::In => false,
        }
    }
}

/// One thing that the server has yet to answer.
#[derive(Debug)]
pub(super) enum Expect {
    /// A Query: its statements complete one by one, ReadyForQuery ends it.
    Query {
        asked: Asked,
        /// Changes of the statements that have not completed, in order.
        changes: std::collections::VecDeque<Changes>,
        statements: usize,
        copies: Copies,
        /// The stand-in of a refused one: its error is replaced by this.
        refused: Option<Box<ErrorAnswer>>,
    },
    Parse {
        asked: Asked,
        changes: Changes,
    },
    Bind {
        asked: Asked,
        changes: Changes,
    },
    Describe {
        asked: Asked,
    },
    Execute {
        asked: Asked,
        changes: Changes,
        copies: Copies,
    },
    Close {
        changes: Changes,
    },
    /// The stand-in of a refused message of the extended protocol: its error is replaced by `answer`.
    StandIn {
        asked: Option<Asked>,
        answer: Box<ErrorAnswer>,
    },
    Sync {
        /// The last request made before it.
        last: u64,
    },
}

impl Expect {
    /// The request that it belongs to.
    pub(super) const fn asked(&self) -> Option<Asked> {
        match self {
            Self::Query { asked, .. }
            | Self::Parse { asked, .. }
            | Self::Bind { asked, .. }
            | Self::Describe { asked }
            | Self::Execute { asked, .. } => Some(*asked),
            Self::StandIn { asked, .. } => *asked,
            Self::Close { .. } | Self::Sync { .. } => None,
        }
    }

    /// Which way COPY data may go.
    pub(super) const fn copies(&self) -> Copies {
        match self {
            Self::Query { copies, .. } | Self::Execute { copies, .. } => *copies,
            Self::Parse { .. }
            | Self::Bind { .. }
            | Self::Describe { .. }
            | Self::Close { .. }
            | Self::StandIn { .. }
            | Self::Sync { .. } => Copies::No,
        }
    }

    /// Name changes that are not confirmed yet.
    pub(super) fn changes(&self) -> impl Iterator<Item = &Changes> {
        let (one, many) = match self {
            Self::Query { changes, .. } => (None, Some(changes)),
            Self::Parse { changes, .. }
            | Self::Bind { changes, .. }
            | Self::Execute { changes, .. }
            | Self::Close { changes } => (Some(changes), None),
            Self::Describe { .. } | Self::StandIn { .. } | Self::Sync { .. } => (None, None),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}
