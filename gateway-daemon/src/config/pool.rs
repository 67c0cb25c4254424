//! Ranges of uids, as they are written: `2000000000-2000000999`.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use super::{
    Allowed, Config, RunsAs,
    check::{Checker, Place},
};

/// The uids of an agent's runs: each run has one of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UidPool(RangeInclusive<u32>);

/// The first uid that is no system user's on the usual systems.
const FIRST: u32 = 1_000;
/// The last but one means "no uid" to the kernel in some calls, and so the last in others.
const LAST: u32 = u32::MAX - 2;
/// 16-bit "nobody" and "no uid".
const SPECIAL: RangeInclusive<u32> = 65_534..=65_535;
/// Each uid is looked up in the user database when the daemon starts.
const MOST: u32 = 10_000;

impl UidPool {
    /// The uids.
    #[must_use]
    pub fn range(&self) -> RangeInclusive<u32> {
        self.0.clone()
    }

    /// How many there are.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.0.end().saturating_sub(*self.0.start()).saturating_add(1)
    }

    /// Whether a uid is in both.
    #[must_use]
    pub fn overlaps(&self, other: &RangeInclusive<u32>) -> bool {
        self.0.start() <= other.end() && other.start() <= self.0.end()
    }
}

impl FromStr for UidPool {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shown = text.escape_debug();
        let ends = text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        let Some((first, last)) = ends else {
            return Err(format!("`{shown}` is no range of uids; write it as `2000000000-2000000999`"));
        };
        let pool = Self(first..=last);
        if first > last {
            return Err(format!("`{shown}` ends before it begins"));
        }
        if first < FIRST || last > LAST || pool.overlaps(&SPECIAL) {
            return Err(format!(
                "`{shown}` has uids with a meaning of their own (below {FIRST}, 65534, 65535, the last two); use others"
            ));
        }
        if pool.size() > MOST {
            return Err(format!(
                "`{shown}` has {} uids, more than {MOST}; an agent has no more runs at once",
                pool.size()
            ));
        }
        Ok(pool)
    }
}

impl fmt::Display for UidPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.start(), self.0.end())
    }
}

impl Checker<'_> {
    pub(super) fn runs_as(&mut self, place: &Place, user: Option<String>, pool: Option<&str>) -> Option<RunsAs> {
        match (user, pool) {
            (Some(user), None) => {
                if user == "root" || user == "0" {
                    self.fault(place, "user", "an agent must not run as root; make a user of its own (useradd -r)");
                }
                self.not_empty(place, "user", &user, "name the Unix user that it runs as");
                Some(RunsAs::User(user))
            }
            (None, Some(pool)) => match pool.parse() {
                Ok(pool) => Some(RunsAs::Pool(pool)),
                Err(fault) => {
                    self.fault(place, "uid_pool", fault);
                    None
                }
            },
            (Some(_), Some(_)) => {
                self.fault(place, "uid_pool", "stands beside `user`; name one: a user for all runs, or a uid for each");
                None
            }
            (None, None) => {
                self.fault(place, "user", "is missing; name a user of the agent's own, or a `uid_pool`");
                None
            }
        }
    }

    /// A uid of a pool is one agent's, and nobody who is let through.
    pub(super) fn pools(&mut self, config: &Config) {
        let pools: Vec<(&str, &UidPool)> = config
            .agents
            .iter()
            .filter_map(|agent| match &agent.runs_as {
                RunsAs::Pool(pool) => Some((agent.name.as_str(), pool)),
                RunsAs::User(_) => None,
            })
            .collect();
        for (index, (name, pool)) in pools.iter().enumerate() {
            let place = Place::section(&format!("agent \"{}\"", name.escape_debug()));
            if let Some((other, _)) = pools.iter().take(index).find(|(_, other)| pool.overlaps(&other.range())) {
                let message =
                    format!("has uids that agent \"{}\" has as well; give each its own", other.escape_debug());
                self.fault(&place, "uid_pool", message);
            }
            for allow in &config.allow {
                if let Allowed::Uid(uid) = allow.who
                    && pool.range().contains(&uid)
                {
                    self.fault(&place, "uid_pool", format!("has uid {uid}, which [[allow]] lets through; take others"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_read_as_it_is_written() {
        for text in ["2000000000-2000000999", "1000-1000", "60000-65533"] {
            assert_eq!(text.parse::<UidPool>().unwrap().to_string(), text);
        }
        assert_eq!("5000-5009".parse::<UidPool>().unwrap().size(), 10);
    }

    #[test]
    fn what_is_no_pool_is_refused_with_the_mend() {
        let told = |text: &str| text.parse::<UidPool>().unwrap_err();
        for text in ["", "5", "a-b", "-1-5", "1000 - 2000", "1000-99999999999"] {
            assert!(told(text).contains("write it as"), "{text}");
        }
        assert!(told("2000-1000").contains("before it begins"));
        for text in ["0-5", "999-2000", "65000-66000", "65535-65540", "4294967290-4294967295"] {
            assert!(told(text).contains("a meaning of their own"), "{text}");
        }
        assert!(told("100000-200000").contains("more than 10000"));
    }
}
