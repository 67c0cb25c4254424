//! The policies in force, exchanged as a whole.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use arc_swap::ArcSwap;

use super::{
    PolicyId, PolicySet, PolicySetId,
    fault::{Fault, LoadErrors},
    load::{Known, Loaded},
};

/// Holds the set in force. Whoever decides takes [`Policies::current`] once for a statement, so that no statement is
/// decided by two sets.
#[derive(Debug)]
pub struct Policies {
    current: ArcSwap<PolicySet>,
}

/// What a reload changed.
#[derive(Debug)]
pub struct Reload {
    /// The set that was in force before.
    pub before: PolicySetId,
    /// The set in force now.
    pub now: PolicySetId,
    /// Policies that were not there before, sorted, as the next two.
    pub added: Vec<PolicyId>,
    /// Policies that are there no longer.
    pub removed: Vec<PolicyId>,
    /// Policies with another text.
    pub changed: Vec<PolicyId>,
    /// What should be looked at.
    pub warnings: Vec<Fault>,
}

impl Policies {
    /// Puts a first set in force.
    pub fn new(set: PolicySet) -> Self {
        Self { current: ArcSwap::from_pointee(set) }
    }

    /// The set in force.
    pub fn current(&self) -> Arc<PolicySet> {
        self.current.load_full()
    }

    /// Loads the folder anew and puts it in force when all of it is right. The daemon asks
    /// [`super::check_guarded`] first.
    ///
    /// # Errors
    /// Every fault; the set that was in force stays.
    pub fn reload(&self, dir: &Path, known: Option<&Known>) -> Result<Reload, LoadErrors> {
        let Loaded { set, warnings } = PolicySet::load(dir, known)?;
        let set = Arc::new(set);
        let before = self.current.swap(Arc::clone(&set));
        Ok(Reload::between(&before, &set, warnings))
    }
}

impl Reload {
    fn between(before: &PolicySet, now: &PolicySet, warnings: Vec<Fault>) -> Self {
        let texts = |set: &PolicySet| -> BTreeMap<PolicyId, Arc<str>> {
            set.rules().iter().map(|rule| (rule.id.clone(), Arc::clone(&rule.text))).collect()
        };
        let (old, new) = (texts(before), texts(now));
        let only = |one: &BTreeMap<PolicyId, _>, other: &BTreeMap<PolicyId, _>| {
            one.keys().filter(|id| !other.contains_key(id)).cloned().collect::<Vec<_>>()
        };
        let differs = |id: &&PolicyId| old.get(id).is_some_and(|text| new.get(id) != Some(text));
        Self {
            before: before.id(),
            now: now.id(),
            added: only(&new, &old),
            removed: only(&old, &new),
            changed: new.keys().filter(differs).cloned().collect(),
            warnings,
        }
    }
}
