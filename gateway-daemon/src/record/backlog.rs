//! What the writer has taken and not yet written, in one lane for each agent: a batch is filled from all lanes alike, so
//! that one agent's flood does not stand before what others wait for. Within a session the order stays.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::queue::Piece;

/// Bytes after which a batch takes no further piece: beyond, a commit gets longer and not cheaper.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// The same while several agents wait: each batch is what the others wait for.
const SHARED_BATCH_BYTES: usize = 512 * 1024;

/// Pieces by agent.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// By the account's address, which its pieces hold; 0 for those without. None is empty.
    lanes: BTreeMap<usize, Lane>,
}

#[derive(Debug, Default)]
struct Lane {
    pieces: VecDeque<Piece>,
    /// Bytes that the batch in the making has of it.
    taken: usize,
}

impl Backlog {
    /// Takes over what the sessions handed over.
    pub(super) fn append(&mut self, pieces: &mut VecDeque<Piece>) {
        for piece in pieces.drain(..) {
            self.lane(&piece).push_back(piece);
        }
    }

    /// Puts a piece before all that belongs to the same agent.
    pub(super) fn push_front(&mut self, piece: Piece) {
        self.lane(&piece).push_front(piece);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// How many pieces there are.
    pub(super) fn len(&self) -> usize {
        self.lanes.values().map(|lane| lane.pieces.len()).sum()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Piece> {
        self.lanes.values().flat_map(|lane| &lane.pieces)
    }

    /// Gives `add` the pieces of the next batch: at each step the first of the lane that the batch has the least of.
    pub(super) fn next_batch(&mut self, mut add: impl FnMut(Piece)) {
        let limit = if self.lanes.len() > 1 { SHARED_BATCH_BYTES } else { BATCH_BYTES };
        self.lanes.values_mut().for_each(|lane| lane.taken = 0);
        let mut bytes = 0usize;
        while bytes < limit
            && let Some(lane) =
                self.lanes.values_mut().filter(|lane| !lane.pieces.is_empty()).min_by_key(|lane| lane.taken)
            && let Some(piece) = lane.pieces.pop_front()
        {
            lane.taken = lane.taken.saturating_add(piece.data.len());
            bytes = bytes.saturating_add(piece.data.len());
            add(piece);
        }
        self.lanes.retain(|_, lane| !lane.pieces.is_empty());
    }

    fn lane(&mut self, piece: &Piece) -> &mut VecDeque<Piece> {
        let of = piece.progress.account.as_ref().map_or(0, |account| Arc::as_ptr(account).addr());
        &mut self.lanes.entry(of).or_default().pieces
    }
}
