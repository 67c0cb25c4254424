//! The proof that something is on the record.

/// Everything that a session appended up to and including `upto` is durable. Only the store makes one (and
/// `--unsafe-no-record`, which says so); releasing an answer and forwarding what has effects take it by value.
#[derive(Debug)]
pub struct Receipt {
    /// The session's own count of appended events, from 1.
    upto: u64,
}

impl Receipt {
    /// For the store alone.
    pub(in crate::record) const fn new(upto: u64) -> Self {
        Self { upto }
    }

    /// For tests of those who take receipts.
    #[cfg(test)]
    pub(crate) const fn for_test(upto: u64) -> Self {
        Self { upto }
    }

    /// The last of the session's events that this receipt covers.
    pub const fn upto(&self) -> u64 {
        self.upto
    }
}
