//! What one agent may use up: counted for all its runs and sessions together, so that whoever is over a limit is refused
//! alone.
//!
//! A rate holds back: over it, an agent's next message is read later. An amount refuses: over it, an agent is told which
//! limit it is, its value, and when it is free again. Counting takes no lock and no memory on the way of a row.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

mod hour;
mod pace;
mod tables;

pub use tables::{TableId, TableVolume, Volume};

use hour::Hour;
use pace::Pace;
use tables::Tables;

/// The limits of one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentLimits {
    /// Sessions at once.
    pub connections: u64,
    /// Connections that begin in a second.
    pub connects_per_second: u64,
    /// Statements in a second: all that stand on the record as requests.
    pub statements_per_second: u64,
    /// Rows of answers in an hour.
    pub rows_per_hour: u64,
    /// Bytes of answers in an hour.
    pub bytes_per_hour: u64,
    /// Bytes on the record in an hour, as they are stored.
    pub record_bytes_per_hour: u64,
    /// Hundredths of what the record takes and could take on its disk.
    pub store_share: u64,
}

impl Default for AgentLimits {
    fn default() -> Self {
        Self {
            connections: 64,
            connects_per_second: 50,
            statements_per_second: 2_000,
            rows_per_hour: 10_000_000,
            bytes_per_hour: 8 << 30,
            record_bytes_per_hour: 4 << 30,
            store_share: 50,
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl AgentLimits {
    /// As good as none.
    pub const NONE: Self = Self {
        connections: u64::MAX,
        connects_per_second: u64::MAX,
        statements_per_second: u64::MAX,
        rows_per_hour: u64::MAX,
        bytes_per_hour: u64::MAX,
        record_bytes_per_hour: u64::MAX,
        store_share: 100,
    };
}

/// An amount that is used up, in words for the agent: which limit, its value, and when it is free again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Over {
    /// Of an hour.
    #[error("the agent has had {used} {what} within the hour; its limit `{limit}` is {value}, free again at {}", at(*.free))]
    Hour {
        /// What is counted.
        what: &'static str,
        /// How much.
        used: u64,
        /// The key of the limit in the configuration.
        limit: &'static str,
        /// Its value.
        value: u64,
        /// When the agent is below it, if it uses up no more.
        free: SystemTime,
    },
    /// Of the record's disk.
    #[error(
        "the agent has {stored} bytes on the record; its limit `store_share` is {share} % of the {capacity} bytes that the \
         record's disk has for it, free again when old windows of the record are removed"
    )]
    Store {
        /// Bytes of the agent.
        stored: u64,
        /// The limit.
        share: u64,
        /// All that is and could be stored.
        capacity: u64,
    },
}

fn at(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map(|at| format!("{at:.0}")).unwrap_or_default()
}

/// The accounts of all agents that are configured.
#[derive(Debug, Default)]
pub struct Accounts(HashMap<Arc<str>, Arc<Account>>);

impl Accounts {
    /// Of these agents; nothing is used up yet.
    pub fn new<'a>(agents: impl IntoIterator<Item = (&'a str, AgentLimits)>) -> Self {
        let capacity = Arc::new(AtomicU64::new(u64::MAX));
        let account = |(name, limits): (&str, AgentLimits)| {
            let name: Arc<str> = name.into();
            (name.clone(), Arc::new(Account::new(name, limits, capacity.clone())))
        };
        Self(agents.into_iter().map(account).collect())
    }

    /// The account of the agent with that name.
    pub fn of(&self, agent: &str) -> Option<&Arc<Account>> {
        self.0.get(agent)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Account>> {
        self.0.values()
    }

    /// What the record's disk holds of each agent, and could hold of all.
    pub fn note_stored(&self, capacity: u64, of: impl Fn(&str) -> u64) {
        for account in self.all() {
            account.capacity.store(capacity, Ordering::Relaxed);
            account.stored.store(of(&account.agent), Ordering::Relaxed);
        }
    }
}

/// What one agent has used up.
pub struct Account {
    /// Whose it is.
    pub agent: Arc<str>,
    /// What it may use up.
    pub limits: AgentLimits,
    epoch: Instant,
    statements: Pace,
    connects: Pace,
    rows: Hour,
    bytes: Hour,
    recorded: Hour,
    /// Bytes in the windows of the record that are there.
    stored: AtomicU64,
    /// What the record takes and could take: one number for all agents.
    capacity: Arc<AtomicU64>,
    /// Bytes that wait for the record's disk.
    waiting: AtomicU64,
    /// Sessions that may have bytes waiting.
    logs: AtomicUsize,
    tables: Tables,
    refusals: Mutex<Option<Refusals>>,
}

/// Connections that were refused since the first one went on the record.
#[derive(Debug)]
struct Refusals {
    since: Instant,
    /// The last one, with how many there were.
    last: Refused,
}

impl Account {
    fn new(agent: Arc<str>, limits: AgentLimits, capacity: Arc<AtomicU64>) -> Self {
        Self {
            agent,
            limits,
            epoch: Instant::now(),
            statements: Pace::new(limits.statements_per_second),
            connects: Pace::new(limits.connects_per_second),
            rows: Hour::default(),
            bytes: Hour::default(),
            recorded: Hour::default(),
            stored: AtomicU64::new(0),
            capacity,
            waiting: AtomicU64::new(0),
            logs: AtomicUsize::new(0),
            tables: Tables::default(),
            refusals: Mutex::default(),
        }
    }

    /// One with these limits that no other has part in.
    pub fn alone(agent: &str, limits: AgentLimits) -> Arc<Self> {
        Arc::new(Self::new(agent.into(), limits, Arc::new(AtomicU64::new(u64::MAX))))
    }

    /// Takes the next statement's turn: it may go on at that time, or at once.
    pub fn statement(&self) -> Option<Instant> {
        self.turn(&self.statements)
    }

    /// Takes the turn of a connection that begins: it may go on at that time, or at once.
    pub fn connect(&self) -> Option<Instant> {
        self.turn(&self.connects)
    }

    fn turn(&self, pace: &Pace) -> Option<Instant> {
        let now = Instant::now();
        let wait = pace.take(now.duration_since(self.epoch));
        (!wait.is_zero()).then(|| now + wait)
    }

    /// Counts a part of an answer that came at `now`, for the agent and for each table that the statement reads.
    pub fn charge(&self, now: Instant, tables: &[Arc<TableVolume>], rows: u64, bytes: u64) {
        let minute = now.duration_since(self.epoch).as_secs() / 60;
        self.rows.add(minute, rows);
        self.bytes.add(minute, bytes);
        for table in tables {
            table.add(minute, rows, bytes);
        }
    }

    /// Counts bytes that are on their way to the record.
    pub fn charge_record(&self, bytes: u64) {
        self.recorded.add(self.minute(), bytes);
        self.stored.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The amount of answers that is used up, if one is: then no statement that returns anything may begin or go on.
    pub fn over_answers(&self) -> Option<Over> {
        let AgentLimits { rows_per_hour, bytes_per_hour, .. } = self.limits;
        self.over_hour(&self.rows, "rows", "rows_per_hour", rows_per_hour)
            .or_else(|| self.over_hour(&self.bytes, "bytes of answers", "bytes_per_hour", bytes_per_hour))
    }

    /// The amount of record that is used up, if one is: then the agent may not have a session.
    pub fn over_record(&self) -> Option<Over> {
        let AgentLimits { record_bytes_per_hour, store_share, .. } = self.limits;
        let hour = self.over_hour(&self.recorded, "bytes of record", "record_bytes_per_hour", record_bytes_per_hour);
        hour.or_else(|| {
            let (stored, capacity) = (self.stored.load(Ordering::Relaxed), self.capacity.load(Ordering::Relaxed));
            let share = (capacity / 100).saturating_mul(store_share);
            (stored > share).then_some(Over::Store { stored, share: store_share, capacity })
        })
    }

    fn over_hour(&self, hour: &Hour, what: &'static str, limit: &'static str, value: u64) -> Option<Over> {
        // The sum is never below what the hour has, so most calls end here without a look at the clock.
        if hour.last_sum() < value {
            return None;
        }
        let since = Instant::now().duration_since(self.epoch);
        let minute = since.as_secs() / 60;
        let used = hour.sum(minute);
        (used >= value).then(|| {
            let wait = Duration::from_secs(hour.minutes_until_below(minute, value).saturating_mul(60));
            let into_minute = Duration::from_secs(since.as_secs() % 60);
            let free = SystemTime::now() + wait.saturating_sub(into_minute);
            Over::Hour { what, used, limit, value, free }
        })
    }

    /// What the agent has had of a table. The same table is the same value for as long as it is held, or was read from
    /// within the hour.
    pub fn table(&self, id: TableId) -> Arc<TableVolume> {
        self.tables.get(id, self.minute())
    }

    /// What the agent has had of a table within the hour; does not remember that it was asked for.
    pub fn volume(&self, id: &TableId) -> Volume {
        self.tables.volume(id, self.minute())
    }

    /// The present volume of a table that is held.
    pub fn volume_of(&self, table: &TableVolume) -> Volume {
        table.volume(self.minute())
    }

    /// Counts bytes that wait for the record's disk; gives how many do now.
    pub fn wait(&self, bytes: u64) -> u64 {
        self.waiting.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes)
    }

    /// Bytes wait no longer.
    pub fn wait_no_longer(&self, bytes: u64) {
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A session may have bytes waiting from here on.
    pub fn log_begins(&self) {
        self.logs.fetch_add(1, Ordering::Relaxed);
    }

    /// A session has none any more.
    pub fn log_ends(&self) {
        self.logs.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many sessions may have bytes waiting.
    pub fn logs(&self) -> usize {
        self.logs.load(Ordering::Relaxed)
    }

    /// A connection was refused. The first goes on the record at once; of what follows soon, the number does.
    pub fn note_refusal(&self, refused: Refused) -> Option<Refused> {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        match refusals.as_mut() {
            Some(refusals) => {
                let count = refusals.last.count.saturating_add(refused.count);
                refusals.last = Refused { count, ..refused };
                None
            }
            None => {
                *refusals = Some(Refusals { since: Instant::now(), last: Refused { count: 0, ..refused.clone() } });
                Some(refused)
            }
        }
    }

    /// Refusals that were gathered for `age`.
    pub fn gathered_refusals(&self, age: Duration) -> Option<Refused> {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let Refusals { last, .. } = refusals.take_if(|refusals| refusals.since.elapsed() >= age)?;
        (last.count > 0).then_some(last)
    }

    fn minute(&self) -> u64 {
        self.epoch.elapsed().as_secs() / 60
    }
}

/// Connections that were refused, for the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why the last one was.
    pub why: String,
    /// Where it wanted to go.
    pub destination: SocketAddr,
    /// The enrolled cgroup that it came from.
    pub cgroup: u64,
    /// The process that connected.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// How many were.
    pub count: u64,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("agent", &self.agent).field("limits", &self.limits).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_that_is_used_up_is_named_with_its_value_and_its_end() {
        let account = Account::alone("claude", AgentLimits { rows_per_hour: 10, ..AgentLimits::default() });
        account.charge(Instant::now(), &[], 9, 100);
        assert_eq!(account.over_answers(), None);
        account.charge(Instant::now(), &[], 3, 100);
        let over = account.over_answers().unwrap();
        let Over::Hour { used: 12, value: 10, free, .. } = over else { panic!("{over}") };
        let wait = free.duration_since(SystemTime::now()).unwrap();
        assert!((3_600..=3_660).contains(&(wait.as_secs() + 1)), "{wait:?}");
        let text = over.to_string();
        assert!(text.starts_with("the agent has had 12 rows within the hour; its limit `rows_per_hour` is 10, free"));
        assert!(text.ends_with('Z'), "{text}");
        assert_eq!(account.over_record(), None);
    }

    #[test]
    fn a_share_of_the_disk_is_used_up_by_one_agent_alone() {
        let limits = AgentLimits { store_share: 10, ..AgentLimits::default() };
        let accounts = Accounts::new([("greedy", limits), ("modest", limits)]);
        let (greedy, modest) = (accounts.of("greedy").unwrap(), accounts.of("modest").unwrap());
        accounts.note_stored(1_000, |agent| if agent == "greedy" { 90 } else { 0 });
        assert_eq!(greedy.over_record(), None);
        greedy.charge_record(11);
        assert_eq!(greedy.over_record(), Some(Over::Store { stored: 101, share: 10, capacity: 1_000 }));
        assert_eq!(modest.over_record(), None);
        accounts.note_stored(1_000, |_| 0);
        assert_eq!(greedy.over_record(), None, "old windows were removed");
    }

    #[test]
    fn refused_connections_are_told_once_and_then_as_a_number() {
        let account = Account::alone("claude", AgentLimits::default());
        let refused = |why: &str, count| Refused {
            why: why.to_owned(),
            destination: ([127, 0, 0, 1], 5432).into(),
            cgroup: 1,
            pid: 2,
            uid: 3,
            count,
        };
        assert_eq!(account.note_refusal(refused("full", 1)), Some(refused("full", 1)));
        for _ in 0..500 {
            assert_eq!(account.note_refusal(refused("still full", 1)), None);
        }
        assert_eq!(account.gathered_refusals(Duration::from_secs(60)), None, "gathered on");
        assert_eq!(account.gathered_refusals(Duration::ZERO), Some(refused("still full", 500)));
        assert!(account.note_refusal(refused("again", 1)).is_some());
    }
}
