//! Which blocks hold a session's events. Kept in memory and written as one row for thousands of events, so that a commit
//! touches one tree and not one page for each session; what is not yet written is found by reading the last blocks.

use std::collections::BTreeMap;

use minicbor::{Decoder, Encoder, decode};

/// Pairs of session and block in one row. Each takes at most 21 bytes, so a row fits a value of the store.
const PAIRS: usize = 3000;

/// Sessions with the blocks that hold events of theirs.
#[derive(Debug, Default)]
pub(super) struct Postings {
    blocks: BTreeMap<u64, Vec<u64>>,
    pairs: usize,
}

impl Postings {
    pub(super) fn add(&mut self, session: u64, block: u64) {
        let blocks = self.blocks.entry(session).or_default();
        if blocks.last() != Some(&block) {
            blocks.push(block);
            self.pairs = self.pairs.saturating_add(1);
        }
    }

    /// Whether they should become a row. A block adds at most a few hundred pairs, so a row is never far over.
    pub(super) const fn full(&self) -> bool {
        self.pairs >= PAIRS
    }

    /// The row; they are empty then.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.pairs = 0;
        let mut row = Vec::new();
        let mut to = Encoder::new(&mut row);
        let mut before = 0;
        for (session, blocks) in std::mem::take(&mut self.blocks) {
            // Writing to a `Vec` cannot fail: its error is `Infallible`.
            let _ = to.u64(session.wrapping_sub(before)).and_then(|to| to.u64(count(blocks.len())));
            before = session;
            let mut block_before = 0;
            for block in blocks {
                let _ = to.u64(block.wrapping_sub(block_before));
                block_before = block;
            }
        }
        row
    }
}

/// The blocks that a row names for a session.
pub(super) fn find(row: &[u8], session: u64) -> Result<Vec<u64>, decode::Error> {
    let mut from = Decoder::new(row);
    let (mut at, mut found) = (0u64, Vec::new());
    while from.position() < row.len() {
        at = at.wrapping_add(from.u64()?);
        let blocks = from.u64()?;
        let mut block = 0u64;
        for _ in 0..blocks {
            block = block.wrapping_add(from.u64()?);
            if at == session {
                found.push(block);
            }
        }
        if at >= session {
            break;
        }
    }
    Ok(found)
}

fn count(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_names_each_session_s_blocks_and_no_other() {
        let mut postings = Postings::default();
        for (session, block) in [(7, 1), (9, 1), (7, 1), (7, 40), (u64::MAX, 40), (9, 41)] {
            postings.add(session, block);
        }
        let row = postings.take();
        assert_eq!(postings.take(), Vec::<u8>::new());
        for (session, blocks) in [(7, vec![1, 40]), (9, vec![1, 41]), (u64::MAX, vec![40]), (8, vec![])] {
            assert_eq!(find(&row, session).unwrap(), blocks, "session {session}");
        }
        assert!(find(&row[..row.len() - 1], 7).is_ok(), "behind the session nothing is read");
        assert!(find(&row[..row.len() - 1], u64::MAX).is_err());
    }
}
