//! How much came within the last hour, by minutes: an amount leaves the sum when its minute is an hour old, so there is no
//! border to wait for.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// The minute that runs and the sixty before it: never less than an hour.
const MINUTES: u64 = 61;

/// A sum over the last hour. Adding takes no lock, but once a minute.
#[derive(Debug)]
pub(super) struct Hour {
    /// The minute that runs, as last seen.
    minute: AtomicU64,
    buckets: [AtomicU64; 61],
    /// Never below the buckets' sum.
    sum: AtomicU64,
    /// Held while minutes pass.
    turning: Mutex<()>,
}

impl Default for Hour {
    fn default() -> Self {
        Self {
            minute: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; 61],
            sum: AtomicU64::new(0),
            turning: Mutex::default(),
        }
    }
}

impl Hour {
    /// Adds to the minute that runs.
    pub(super) fn add(&self, minute: u64, amount: u64) {
        if amount == 0 {
            return;
        }
        let minute = self.turn(minute);
        // The sum first: what is taken off when a minute goes was always added before.
        self.sum.fetch_add(amount, Ordering::Relaxed);
        if let Some(bucket) = self.bucket(minute) {
            bucket.fetch_add(amount, Ordering::Relaxed);
        }
    }

    /// What came within the hour up to this minute.
    pub(super) fn sum(&self, minute: u64) -> u64 {
        self.turn(minute);
        self.last_sum()
    }

    /// What came within the hour up to the last look: never less than [`Hour::sum`].
    pub(super) fn last_sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }

    /// How many minutes, the one that runs included, until the sum is below `limit` if nothing is added.
    pub(super) fn minutes_until_below(&self, minute: u64, limit: u64) -> u64 {
        let minute = self.turn(minute);
        let mut rest = self.last_sum();
        for age in (0..MINUTES).rev() {
            let Some(bucket) = minute.checked_sub(age).and_then(|minute| self.bucket(minute)) else { continue };
            rest = rest.saturating_sub(bucket.load(Ordering::Relaxed));
            if rest < limit {
                return MINUTES - age;
            }
        }
        MINUTES
    }

    fn bucket(&self, minute: u64) -> Option<&AtomicU64> {
        usize::try_from(minute % MINUTES).ok().and_then(|at| self.buckets.get(at))
    }

    /// Lets minutes pass; gives the one that runs.
    fn turn(&self, minute: u64) -> u64 {
        let seen = self.minute.load(Ordering::Acquire);
        if minute <= seen {
            return seen;
        }
        let _turning = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = self.minute.load(Ordering::Acquire);
        // After more than an hour each bucket is emptied once.
        for passed in (seen.saturating_add(1)..=minute).take(self.buckets.len()) {
            if let Some(bucket) = self.bucket(passed) {
                self.sum.fetch_sub(bucket.swap(0, Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        self.minute.store(minute.max(seen), Ordering::Release);
        minute.max(seen)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waiting_for_the_border_of_an_hour_brings_nothing() {
        let hour = Hour::default();
        hour.add(59, 10);
        assert_eq!(hour.sum(60), 10, "the next hour of the clock");
        assert_eq!(hour.sum(119), 10);
        assert_eq!(hour.sum(120), 0);
    }

    #[test]
    fn the_wait_ends_when_enough_is_an_hour_old() {
        let hour = Hour::default();
        hour.add(0, 5);
        hour.add(10, 5);
        assert_eq!(hour.minutes_until_below(20, 10), 41, "minute 61: the first five are gone");
        assert_eq!(hour.minutes_until_below(20, 5), 51);
        assert_eq!((hour.sum(60), hour.sum(61), hour.sum(70), hour.sum(71)), (10, 5, 5, 0));
    }

    proptest! {
        /// Beside a list of all that was ever added.
        #[test]
        fn the_sum_is_that_of_the_last_hour(steps in prop::collection::vec((0u64..90, 0u64..1000), 1..200)) {
            let (hour, mut all, mut minute) = (Hour::default(), Vec::new(), 0u64);
            for (passed, amount) in steps {
                minute += passed;
                hour.add(minute, amount);
                all.push((minute, amount));
                let recent = all.iter().filter(|(at, _)| minute - at < MINUTES).map(|(_, amount)| amount);
                prop_assert_eq!(hour.sum(minute), recent.sum::<u64>());
                let wait = hour.minutes_until_below(minute, 500);
                let left = |at: u64| all.iter().filter(|(then, _)| at - then < MINUTES).map(|(_, n)| n).sum::<u64>();
                if hour.sum(minute) >= 500 {
                    prop_assert!(left(minute + wait) < 500 && left(minute + wait - 1) >= 500);
                }
            }
        }
    }
}
