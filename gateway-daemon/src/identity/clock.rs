//! What time it is: the wall clock, which tokens speak of, and a clock that nobody can set.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// One moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// UTC. May step in both directions.
    pub wall: SystemTime,
    /// Since boot, time asleep included. Never steps.
    pub boot: Duration,
}

/// Where moments come from.
pub trait Clock: Send + Sync + 'static {
    /// This moment.
    fn now(&self) -> Moment;
}

/// The kernel's clocks.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        let boot = clock_gettime(ClockId::Boottime);
        // The kernel counts up from zero, with nanoseconds below a second.
        let boot = Duration::new(
            u64::try_from(boot.tv_sec).unwrap_or_default(),
            u32::try_from(boot.tv_nsec).unwrap_or_default(),
        );
        Moment { wall: SystemTime::now(), boot }
    }
}
