//! Bytes on the way to one peer, in order, some of them behind a mark: those leave only with the receipt that covers it.
//!
//! ```text
//!   sent │ open: may be written now │ behind marks: wait for their receipts
//! ────────┼──────────────────────────┼───────────────────────┼───────────────►
//!         0 (buffer's start)         first mark's start      end
//! ```

use std::collections::VecDeque;

use bytes::{Buf, BytesMut};

use crate::{policy::Clearance, record::Receipt};

/// A buffer whose bytes leave in order, each as soon as what it needs is on the record.
#[derive(Debug, Default)]
pub struct Gate {
    buffer: BytesMut,
    /// Bytes at the front that may be written.
    open: usize,
    /// What the rest waits for: each mark covers the bytes up to `end`, needs rise from mark to mark.
    marks: VecDeque<Mark>,
    /// Everything up to here is known to be durable.
    durable: u64,
}

#[derive(Debug)]
struct Mark {
    /// End of the marked bytes, counted from the buffer's start.
    end: usize,
    /// The session's event that must be durable.
    needs: u64,
}

/// Buffers above this are given back when they run empty, so that an idle session holds nothing.
const KEEP_BYTES: usize = 4 * 1024;

impl Gate {
    /// Queues bytes that leave once the event `needs` is durable (0: at once, in their turn).
    pub fn push(&mut self, bytes: &[u8], needs: u64) {
        if bytes.is_empty() {
            return;
        }
        self.buffer.extend_from_slice(bytes);
        let end = self.buffer.len();
        if self.marks.is_empty() && needs <= self.durable {
            self.open = end;
            return;
        }
        // Bytes leave in order, so what comes behind a mark waits for it as well.
        match self.marks.back_mut() {
            Some(last) if needs <= last.needs => last.end = end,
            _ => self.marks.push_back(Mark { end, needs }),
        }
    }

    /// Queues a statement: at once for a read, behind its request's event for what has effects.
    pub fn forward(&mut self, bytes: &[u8], clearance: Clearance, request: u64) {
        match clearance {
            Clearance::Read(_) => self.push(bytes, 0),
            Clearance::Effect(_) => self.push(bytes, request),
        }
    }

    /// Opens what the receipt covers.
    pub fn release(&mut self, receipt: &Receipt) {
        self.durable = self.durable.max(receipt.upto());
        while let Some(mark) = self.marks.front()
            && mark.needs <= self.durable
        {
            self.open = mark.end;
            self.marks.pop_front();
        }
    }

    /// Drops what waits for a receipt that will not come, and says how many bytes that was.
    pub fn abandon(&mut self) -> usize {
        let dropped = self.buffer.len() - self.open;
        self.buffer.truncate(self.open);
        self.marks.clear();
        dropped
    }

    /// What may be written now.
    pub fn ready(&self) -> &[u8] {
        self.buffer.get(..self.open).unwrap_or_default()
    }

    /// Takes off what was written.
    pub fn advance(&mut self, written: usize) {
        let written = written.min(self.open);
        self.buffer.advance(written);
        self.open -= written;
        for mark in &mut self.marks {
            mark.end -= written;
        }
        if self.buffer.is_empty() && self.buffer.capacity() > KEEP_BYTES {
            self.buffer = BytesMut::new();
        }
    }

    /// The event that the first waiting bytes need.
    pub fn waits_for(&self) -> Option<u64> {
        self.marks.front().map(|mark| mark.needs)
    }

    /// All bytes held, open or not.
    pub fn held(&self) -> usize {
        self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_abandoned_never_leaves_and_what_comes_after_it_does() {
        let mut gate = Gate::default();
        gate.push(b"open", 0);
        gate.push(b"unrecorded", 1);
        assert_eq!(gate.abandon(), b"unrecorded".len());
        gate.push(b" error", 0);
        assert_eq!((gate.ready(), gate.waits_for()), (&b"open error"[..], None));
    }

    #[test]
    fn bytes_behind_a_mark_leave_with_its_receipt_and_in_order() {
        let mut gate = Gate::default();
        gate.push(b"a", 0);
        gate.push(b"b", 2);
        gate.push(b"c", 0);
        gate.push(b"d", 3);
        assert_eq!(gate.ready(), b"a");
        assert_eq!(gate.waits_for(), Some(2));
        gate.release(&Receipt::for_test(1));
        assert_eq!(gate.ready(), b"a");
        gate.release(&Receipt::for_test(2));
        assert_eq!(gate.ready(), b"abc");
        gate.advance(2);
        assert_eq!(gate.ready(), b"c");
        gate.release(&Receipt::for_test(9));
        assert_eq!(gate.ready(), b"cd");
        gate.push(b"e", 9);
        assert_eq!(gate.ready(), b"cde");
    }
}
