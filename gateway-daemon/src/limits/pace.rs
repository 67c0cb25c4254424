//! So many in a second, one second's worth at once: whoever comes too early is given the time of its own turn, in the
//! order of coming.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How much may be taken at once after a rest.
const BURST: Duration = Duration::from_secs(1);

/// A rate, as the time at which everything that was taken is paid for (the generic cell rate algorithm).
#[derive(Debug)]
pub(super) struct Pace {
    /// Nanoseconds for each.
    interval: u64,
    paid: AtomicU64,
}

impl Pace {
    pub(super) fn new(per_second: u64) -> Self {
        Self { interval: 1_000_000_000 / per_second.max(1), paid: AtomicU64::new(0) }
    }

    /// Takes one at `now`, on any clock that only goes on; gives how long until its turn.
    pub(super) fn take(&self, now: Duration) -> Duration {
        let now = nanoseconds(now);
        let after = |paid: u64| paid.max(now).saturating_add(self.interval);
        let before = self.paid.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid| Some(after(paid)));
        let paid = after(before.unwrap_or_else(|paid| paid));
        Duration::from_nanos(paid.saturating_sub(now).saturating_sub(nanoseconds(BURST)))
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_worth_at_once_and_then_one_at_a_time() {
        let (pace, now) = (Pace::new(10), Duration::from_secs(100));
        for taken in 0..10 {
            assert_eq!(pace.take(now), Duration::ZERO, "{taken}");
        }
        for late in 1..=5 {
            assert_eq!(pace.take(now), Duration::from_millis(100 * late));
        }
        // Five are owed; a second later they and five more are paid for.
        assert_eq!(pace.take(now + Duration::from_secs(1)), Duration::ZERO);
        assert_eq!(pace.take(now + Duration::from_secs(60)), Duration::ZERO);
    }
}
