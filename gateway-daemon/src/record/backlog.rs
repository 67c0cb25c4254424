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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        limits::{Account, AgentLimits},
        record::queue::Progress,
    };

    fn agent(name: &str) -> Arc<Progress> {
        Arc::new(Progress::of(Some(Account::alone(name, AgentLimits::NONE))))
    }

    fn piece(of: &Arc<Progress>, upto: u64, bytes: usize) -> Piece {
        Piece { progress: of.clone(), upto, bytes_upto: 0, data: vec![0; bytes], items: Vec::new() }
    }

    fn batch(backlog: &mut Backlog) -> Vec<Piece> {
        let mut taken = Vec::new();
        backlog.next_batch(|piece| taken.push(piece));
        taken
    }

    #[test]
    fn what_came_behind_a_flood_is_in_the_next_batch_and_each_agent_s_order_stays() {
        let (greedy, modest) = (agent("greedy"), agent("modest"));
        let mut pieces: VecDeque<_> = (0..100).map(|upto| piece(&greedy, upto, 100_000)).collect();
        pieces.extend((0..50).map(|upto| piece(&modest, upto, 300)));
        let mut backlog = Backlog::default();
        backlog.append(&mut pieces);
        let first = batch(&mut backlog);
        let of = |who: &Arc<Progress>, taken: &[Piece]| -> Vec<u64> {
            taken.iter().filter(|piece| Arc::ptr_eq(&piece.progress, who)).map(|piece| piece.upto).collect()
        };
        assert_eq!(of(&modest, &first), (0..50).collect::<Vec<_>>());
        let bytes: usize = first.iter().map(|piece| piece.data.len()).sum();
        assert!((SHARED_BATCH_BYTES..2 * SHARED_BATCH_BYTES).contains(&bytes), "{bytes}");
        let mut flood = of(&greedy, &first);
        while !backlog.is_empty() {
            flood.extend(of(&greedy, &batch(&mut backlog)));
        }
        assert_eq!(flood, (0..100).collect::<Vec<_>>());
        assert_eq!((backlog.len(), backlog.iter().count()), (0, 0));
    }
}
