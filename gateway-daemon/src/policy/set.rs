//! A set of policies that loaded: immutable, shared, and named by its hash.

use std::{collections::HashMap, fmt, sync::Arc};

use aws_lc_rs::digest::{Context, SHA256};

use super::{PolicyId, PolicySetId, rule::Rule, slice::Slices};

/// The policies in force. Made by [`PolicySet::load`] alone, so that nothing unchecked decides.
pub struct PolicySet {
    id: PolicySetId,
    /// Sorted by id.
    rules: Vec<Rule>,
    by_id: HashMap<Arc<str>, usize>,
    slices: Slices,
}

impl PolicySet {
    pub(super) fn of(mut rules: Vec<Rule>) -> Self {
        rules.sort_unstable_by(|one, other| one.id.cmp(&other.id));
        let by_id = rules.iter().enumerate().map(|(index, rule)| (Arc::clone(&rule.id.0), index)).collect();
        let slices = Slices::of(&rules);
        Self { id: hash(&rules), rules, by_id, slices }
    }

    /// SHA-256 over the policies' ids and texts. Files, their names and order, and comments between policies don't count.
    pub const fn id(&self) -> PolicySetId {
        self.id
    }

    /// How many policies there are.
    pub const fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is none, so that everything is refused.
    pub const fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub(super) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    pub(super) fn rule(&self, id: &str) -> Option<&Rule> {
        self.by_id.get(id).and_then(|&index| self.rules.get(index))
    }

    pub(super) const fn slices(&self) -> &Slices {
        &self.slices
    }
}

/// Each text with its length before it, so that no two sets give the same bytes.
fn hash(rules: &[Rule]) -> PolicySetId {
    let mut context = Context::new(&SHA256);
    context.update(b"weir policy set 1\0");
    for PolicyText { id, text } in rules.iter().map(PolicyText::of) {
        for part in [id, text] {
            context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            context.update(part.as_bytes());
        }
    }
    let mut id = [0; 32];
    for (byte, digested) in id.iter_mut().zip(context.finish().as_ref()) {
        *byte = *digested;
    }
    PolicySetId(id)
}

struct PolicyText<'a> {
    id: &'a str,
    text: &'a str,
}

impl<'a> PolicyText<'a> {
    fn of(rule: &'a Rule) -> Self {
        let Rule { id: PolicyId(id), text, .. } = rule;
        Self { id, text }
    }
}

impl fmt::Debug for PolicySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicySet").field("id", &self.id.to_string()).field("policies", &self.len()).finish()
    }
}
