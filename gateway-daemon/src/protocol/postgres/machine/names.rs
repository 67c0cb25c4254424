//! Which prepared statement or portal a name means, when the messages that made it are still on their way.
//!
//! A pipelining agent names what it has not seen confirmed. Under the hypothesis that all before it succeeds, the newest
//! definition counts; when the server reports an error instead, it skips to the next Sync and what it skipped never was.
//! So definitions are pending until their message is answered, confirmed in that order, and forgotten by an error.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// Names of one kind and what they mean.
#[derive(Debug)]
pub(super) struct Names<T> {
    confirmed: HashMap<Arc<str>, T>,
    /// In the order of the messages; `index` has the same by name, with the number of each.
    pending: VecDeque<Change<T>>,
    index: HashMap<Arc<str>, VecDeque<(u64, Option<T>)>>,
    /// Numbers of the pending changes that forget all names.
    wipes: VecDeque<u64>,
    next: u64,
    /// Changes below this number lie before a Sync or behind a Query: what comes after them runs even if they fail.
    fence: u64,
}

/// What one message does to the names of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change<T> {
    /// Defines a name.
    Define(Arc<str>, T),
    /// Forgets a name.
    Forget(Arc<str>),
    /// Forgets all names.
    ForgetAll,
}

/// What a name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning<T> {
    /// This.
    Known(T),
    /// Nothing.
    Nothing,
    /// It depends on whether an earlier message succeeds, which the server has yet to say.
    Unsettled,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self {
            confirmed: HashMap::new(),
            pending: VecDeque::new(),
            index: HashMap::new(),
            wipes: VecDeque::new(),
            next: 0,
            fence: 0,
        }
    }
}

impl<T: Clone> Names<T> {
    /// What the name will mean when the server comes to a message sent now.
    pub(super) fn get(&self, name: &str) -> Meaning<T> {
        let newest = self.index.get(name).and_then(VecDeque::back);
        let wiped = self.wipes.back();
        match (newest, wiped) {
            (None, None) => match self.confirmed.get(name) {
                Some(value) => Meaning::Known(value.clone()),
                None => Meaning::Nothing,
            },
            (Some((number, value)), wiped) if wiped.is_none_or(|wiped| wiped < number) => match value {
                _ if *number < self.fence => Meaning::Unsettled,
                Some(value) => Meaning::Known(value.clone()),
                None => Meaning::Nothing,
            },
            (_, Some(wiped)) if *wiped < self.fence => Meaning::Unsettled,
            (_, _) => Meaning::Nothing,
        }
    }

    /// Whether the change would bring a name beyond `limit`. One that is known is only defined anew: a pipeline may do so
    /// with the unnamed one as often as it likes.
    pub(super) fn overflow(&self, change: Option<&Change<T>>, limit: usize) -> bool {
        match change {
            Some(Change::Define(name, _)) => self.len() >= limit && !self.is_known(name),
            Some(Change::Forget(_) | Change::ForgetAll) | None => false,
        }
    }

    fn is_known(&self, name: &str) -> bool {
        self.confirmed.contains_key(name) || self.index.contains_key(name)
    }

    /// Names known or on their way: what the limit counts.
    fn len(&self) -> usize {
        self.confirmed.len() + self.index.len()
    }

    /// A message with this change was forwarded.
    pub(super) fn expect(&mut self, change: Change<T>) {
        let number = self.next;
        self.next += 1;
        match &change {
            Change::Define(name, value) => {
                self.index.entry(name.clone()).or_default().push_back((number, Some(value.clone())));
            }
            Change::Forget(name) => self.index.entry(name.clone()).or_default().push_back((number, None)),
            Change::ForgetAll => self.wipes.push_back(number),
        }
        self.pending.push_back(change);
    }

    /// A Sync or a Query was forwarded: what comes now runs whether what came before succeeds or not.
    pub(super) const fn fence(&mut self) {
        self.fence = self.next;
    }

    /// The server confirmed the oldest change that is on its way.
    pub(super) fn confirm(&mut self) {
        let Some(change) = self.pending.pop_front() else { return };
        match change {
            Change::Define(name, value) => {
                self.unindex(&name);
                self.confirmed.insert(name, value);
            }
            Change::Forget(name) => {
                self.unindex(&name);
                self.confirmed.remove(&name);
            }
            Change::ForgetAll => {
                self.wipes.pop_front();
                self.confirmed.clear();
            }
        }
    }

    /// Forgets confirmed names that the server has dropped by itself.
    pub(super) fn keep(&mut self, keep: impl Fn(&T) -> bool) {
        self.confirmed.retain(|_, value| keep(value));
    }

    fn unindex(&mut self, name: &str) {
        if let Some(changes) = self.index.get_mut(name) {
            changes.pop_front();
            if changes.is_empty() {
                self.index.remove(name);
            }
        }
    }

    /// An error: nothing that is on its way will happen. What the server has yet to come to is to be expected anew.
    pub(super) fn restart(&mut self) {
        self.pending.clear();
        self.index.clear();
        self.wipes.clear();
        self.fence = self.next;
    }
}

#[cfg(test)]
mod tests {
    use super::{Meaning::*, *};

    fn define(name: &str, value: u32) -> Change<u32> {
        Change::Define(name.into(), value)
    }

    #[test]
    fn the_newest_definition_counts_before_it_is_confirmed() {
        let mut names = Names::default();
        names.expect(define("a", 1));
        names.expect(define("a", 2));
        assert_eq!(names.get("a"), Known(2));
        names.confirm();
        assert_eq!(names.get("a"), Known(2));
        names.restart();
        assert_eq!(names.get("a"), Known(1), "the confirmed one stands when the second fails");
    }

    #[test]
    fn the_limit_counts_names_and_not_how_often_they_are_defined() {
        let mut names = Names::default();
        for value in 0..5 {
            assert!(!names.overflow(Some(&define("", value)), 2));
            names.expect(define("", value));
        }
        names.expect(define("a", 1));
        assert!(names.overflow(Some(&define("b", 1)), 2));
        assert!(!names.overflow(Some(&define("a", 2)), 2));
    }

    #[test]
    fn what_comes_behind_the_next_sync_survives_an_error() {
        let mut names = Names::default();
        names.expect(define("a", 1));
        names.expect(define("b", 2));
        names.restart();
        names.expect(define("b", 2));
        assert_eq!((names.get("a"), names.get("b")), (Nothing, Known(2)));
        names.confirm();
        assert_eq!(names.get("b"), Known(2));
    }

    #[test]
    fn forgetting_all_hides_what_came_before_and_not_what_comes_after() {
        let mut names = Names::default();
        names.expect(define("a", 1));
        names.confirm();
        names.expect(define("b", 2));
        names.expect(Change::ForgetAll);
        names.expect(define("c", 3));
        assert_eq!((names.get("a"), names.get("b"), names.get("c")), (Nothing, Nothing, Known(3)));
        names.restart();
        assert_eq!((names.get("a"), names.get("b"), names.get("c")), (Known(1), Nothing, Nothing));
    }

    #[test]
    fn behind_a_sync_a_name_is_unsettled_until_the_server_has_said() {
        let mut names = Names::default();
        names.expect(define("a", 1));
        names.confirm();
        names.expect(define("a", 2));
        names.fence();
        assert_eq!(names.get("a"), Unsettled, "1 if the definition fails, 2 if not");
        names.expect(define("a", 3));
        assert_eq!(names.get("a"), Known(3), "or the message that names it is skipped");
        names.confirm();
        names.confirm();
        names.fence();
        assert_eq!(names.get("a"), Known(3));
        names.expect(Change::ForgetAll);
        names.fence();
        assert_eq!((names.get("a"), names.get("b")), (Unsettled, Unsettled));
    }

    proptest::proptest! {
        /// The machine's hypothesis against a plain replay of what the server would do.
        #[test]
        fn names_mean_what_a_replay_says(ops in proptest::collection::vec((0u8..4, 0u8..3, 0u32..100), 0..60)) {
            let mut names = Names::default();
            let mut confirmed: Vec<Change<u32>> = Vec::new();
            let mut pending: Vec<Change<u32>> = Vec::new();
            for (op, name, value) in ops {
                let name: Arc<str> = name.to_string().into();
                match op {
                    0 | 1 => {
                        let change = match value % 5 {
                            0 => Change::Forget(name.clone()),
                            1 => Change::ForgetAll,
                            _ => Change::Define(name.clone(), value),
                        };
                        names.expect(change.clone());
                        pending.push(change);
                    }
                    2 if !pending.is_empty() => {
                        names.confirm();
                        confirmed.push(pending.remove(0));
                    }
                    2 => {}
                    _ => {
                        let rest = pending.split_off(pending.len() / 2);
                        names.restart();
                        rest.iter().cloned().for_each(|change| names.expect(change));
                        pending = rest;
                    }
                }
                let mut replay = HashMap::new();
                for change in confirmed.iter().chain(&pending) {
                    match change {
                        Change::Define(name, value) => drop(replay.insert(name.clone(), *value)),
                        Change::Forget(name) => drop(replay.remove(name)),
                        Change::ForgetAll => replay.clear(),
                    }
                }
                for name in ["0", "1", "2"] {
                    let meant = replay.get(name).map_or(Nothing, |value| Known(*value));
                    proptest::prop_assert_eq!(names.get(name), meant);
                }
            }
        }
    }
}
