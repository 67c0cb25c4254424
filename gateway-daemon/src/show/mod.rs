//! What people are shown: the one place where text from agents and servers becomes text for a terminal.
//!
//! In come rows of the record, out go lines. Whatever came from outside passes [`line`] or [`lines`] on its way: nothing
//! in it moves the cursor, hides, reorders or pretends to be Weir's own words, which stand in `⟦…⟧` where they are mixed
//! with others' ([`escape`](mod@escape) has the rules). [`json`] is exact: what would do harm is escaped in JSON's own way.

mod described;
mod escape;
mod log;
mod postgres;
mod session;
mod sessions;
mod table;
mod value;

pub use escape::{json, line, lines};
pub use log::LogTable;
pub use session::SessionPage;
pub use sessions::sessions;
pub use table::{Align, Table};

/// How much of a result is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowLimit {
    /// So many rows of each result; the others are counted.
    First(u64),
    /// All.
    All,
}

impl RowLimit {
    const fn shows(self, rows_before: u64) -> bool {
        match self {
            Self::First(limit) => rows_before < limit,
            Self::All => true,
        }
    }
}
