//! What an agent has had of each table within the hour.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::hour::Hour;

/// Tables of one agent that are counted apart; what more there are share one count, and so read as more than they are.
const MAX_TABLES: usize = 2_000;

/// A table, told apart across connections and databases.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableId {
    /// The declared connection.
    pub connection: Arc<str>,
    /// The database on it.
    pub database: Arc<str>,
    /// The table's schema.
    pub schema: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// What came of one table within an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Volume {
    /// Rows of answers.
    pub rows: u64,
    /// Bytes of answers.
    pub bytes: u64,
}

/// The count of one table.
#[derive(Debug, Default)]
pub struct TableVolume {
    rows: Hour,
    bytes: Hour,
}

impl TableVolume {
    pub(super) fn add(&self, minute: u64, rows: u64, bytes: u64) {
        self.rows.add(minute, rows);
        self.bytes.add(minute, bytes);
    }

    pub(super) fn volume(&self, minute: u64) -> Volume {
        Volume { rows: self.rows.sum(minute), bytes: self.bytes.sum(minute) }
    }
}

/// The counts of all tables of one agent.
#[derive(Debug, Default)]
pub(super) struct Tables {
    known: Mutex<HashMap<TableId, Arc<TableVolume>>>,
    others: Arc<TableVolume>,
}

impl Tables {
    pub(super) fn get(&self, id: TableId, minute: u64) -> Arc<TableVolume> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = known.get(&id) {
            return table.clone();
        }
        if known.len() >= MAX_TABLES {
            // Nobody can make up names to be forgotten by: what came within the hour stays.
            known.retain(|_, table| Arc::strong_count(table) > 1 || table.volume(minute) != Volume::default());
        }
        if known.len() >= MAX_TABLES {
            return self.others.clone();
        }
        known.entry(id).or_default().clone()
    }

    pub(super) fn volume(&self, id: &TableId, minute: u64) -> Volume {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(id) {
            Some(table) => table.volume(minute),
            None if known.len() >= MAX_TABLES => self.others.volume(minute),
            None => Volume::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> TableId {
        let text = Arc::<str>::from;
        TableId { connection: text("c"), database: text("d"), schema: text("public"), name: text(name) }
    }

    #[test]
    fn made_up_names_make_nobody_forget_what_was_had() {
        let tables = Tables::default();
        tables.get(id("customers"), 0).add(0, 10_000, 1);
        for number in 0..3 * MAX_TABLES {
            tables.get(id(&number.to_string()), 0);
        }
        assert_eq!(tables.volume(&id("customers"), 0).rows, 10_000);
        assert!(tables.known.lock().unwrap().len() <= MAX_TABLES);
    }

    #[test]
    fn tables_beyond_the_bound_read_as_more_than_they_are_and_never_as_less() {
        let tables = Tables::default();
        let held: Vec<_> = (0..MAX_TABLES).map(|number| tables.get(id(&number.to_string()), 0)).collect();
        tables.get(id("one more"), 0).add(0, 7, 7);
        assert_eq!(tables.volume(&id("yet another"), 0), Volume { rows: 7, bytes: 7 });
        assert_eq!(tables.volume(&id("0"), 0), Volume::default());
        drop(held);
    }
}
