//! The record's time: microseconds of UTC, never backwards on one node.

use std::{
    fmt,
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

const MICROS_A_DAY: u64 = 24 * 60 * 60 * 1_000_000;

/// Microseconds since 1970-01-01T00:00:00Z. Shown, and in JSON, as RFC 3339 with six digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Time(pub u64);

impl Time {
    /// What the system's clock says.
    pub fn now() -> Self {
        Self::from(SystemTime::now())
    }

    /// Days since 1970-01-01.
    pub const fn day(self) -> u64 {
        self.0 / MICROS_A_DAY
    }

    fn timestamp(self) -> jiff::Timestamp {
        i64::try_from(self.0)
            .ok()
            .and_then(|t| jiff::Timestamp::from_microsecond(t).ok())
            .unwrap_or(jiff::Timestamp::MAX)
    }

    /// As part of a file's name: digits only, sorts by time.
    pub(super) fn file_name(self) -> String {
        self.timestamp().strftime("%Y%m%dT%H%M%S.%6fZ").to_string()
    }

    /// Undoes [`Time::file_name`].
    pub(super) fn from_file_name(name: &str) -> Option<Self> {
        name.parse().ok()
    }
}

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        // A clock before 1970 is as good as none: the store's own clock never falls behind what it has seen.
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.timestamp().strftime("%Y-%m-%dT%H:%M:%S.%6fZ"))
    }
}

impl FromStr for Time {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let timestamp: jiff::Timestamp = text.parse()?;
        Ok(Self(u64::try_from(timestamp.as_microsecond()).unwrap_or(0)))
    }
}

impl From<Time> for String {
    fn from(time: Time) -> Self {
        time.to_string()
    }
}

impl TryFrom<String> for Time {
    type Error = jiff::Error;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_reads_back_as_shown() {
        let time = Time(1_795_459_985_123_456);
        assert_eq!(time.to_string(), "2026-11-23T18:53:05.123456Z");
        assert_eq!(time.to_string().parse::<Time>().unwrap(), time);
        assert_eq!(Time::from_file_name(&time.file_name()), Some(time));
        assert_eq!(Time(u64::MAX).to_string().parse::<Time>().unwrap().day(), 2_932_895);
    }
}
