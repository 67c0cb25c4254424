//! The decision on one statement: every access of it must be permitted, and none forbidden.

use std::{collections::BTreeSet, time::SystemTime};

use hashbrown::HashSet;

use super::{
    Decision, PolicyId, PolicySet, Verdict,
    ask::{Circumstances, Outcome},
    slice::Answer,
};
use crate::{
    identity::Identity,
    sql::{Access, Object},
};

/// Different accesses of one statement; a statement with more is refused.
pub const MAX_ACCESSES: usize = 10_000;
/// Groups that a reason names; the others are counted.
const MAX_GROUPS_NAMED: usize = 8;

/// What is asked: one statement, by whom and where.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// Who asks.
    pub identity: &'a Identity,
    /// The declared connection's name.
    pub connection: &'a str,
    /// The database on it.
    pub database: &'a str,
    /// The connection's protocol: `postgres`.
    pub protocol: &'a str,
    /// The time of the decision.
    pub now: SystemTime,
    /// What the statement does. A statement without accesses is refused: it was not understood.
    pub accesses: &'a [Access],
}

impl<'a> Query<'a> {
    pub(super) const fn circumstances(&self) -> Circumstances<'a> {
        Circumstances { protocol: self.protocol, now: self.now }
    }
}

impl PolicySet {
    /// Decides on one statement. Does not block, but for short locks.
    pub fn decide(&self, query: &Query<'_>) -> Decision {
        let durable_first = query.accesses.is_empty()
            || query.accesses.iter().any(|access| access.action.class().durable_before_forward());
        let (verdict, policies) = self.verdict(query);
        Decision { verdict, policies, set: self.id(), durable_first }
    }

    fn verdict(&self, query: &Query<'_>) -> (Verdict, Vec<PolicyId>) {
        if query.accesses.is_empty() {
            let reason = "it was not understood: nothing is known of what it does".to_owned();
            return (Verdict::Deny { what: "the statement".to_owned(), reason, access: None }, Vec::new());
        }
        let principal = self.slices().principal(self.rules(), query.identity);
        let mut asked = HashSet::new();
        let mut permits = BTreeSet::new();
        for access in query.accesses {
            if !asked.insert(access) {
                continue;
            }
            if asked.len() > MAX_ACCESSES {
                let reason = format!("it does more than {MAX_ACCESSES} different things, the limit of one statement");
                return (Verdict::Deny { what: "the statement".to_owned(), reason, access: None }, Vec::new());
            }
            let Answer { outcome, policies } = principal.answer(self.rules(), query, access);
            match self.refusal(query, access, &outcome, &policies) {
                None => permits.extend(policies),
                Some(reason) => {
                    let what = what(query, access);
                    let access = Some(Box::new(access.clone()));
                    return (Verdict::Deny { what, reason, access }, policies);
                }
            }
        }
        (Verdict::Allow, permits.into_iter().collect())
    }

    /// Why an outcome refuses; `None` when it permits.
    pub(super) fn refusal(
        &self,
        query: &Query<'_>,
        access: &Access,
        outcome: &Outcome,
        policies: &[PolicyId],
    ) -> Option<String> {
        match outcome {
            Outcome::Permitted => None,
            Outcome::Forbidden => Some(self.descriptions(policies)),
            Outcome::Unpermitted => {
                Some(format!("no policy permits {} for {}", what(query, access), who(query.identity)))
            }
            Outcome::Failed { message } => Some(format!("the policies could not be evaluated: {message}")),
        }
    }

    fn descriptions(&self, policies: &[PolicyId]) -> String {
        let described = policies.iter().filter_map(|id| self.rule(&id.0)).map(|rule| &*rule.description);
        described.collect::<Vec<_>>().join("; ")
    }
}

/// An access in words: "`update` on public.customers".
pub(super) fn what(query: &Query<'_>, access: &Access) -> String {
    let action = access.action.name();
    match &access.object {
        Object::Database => format!("`{action}` on database {}", query.database),
        Object::Schema { schema } => format!("`{action}` on schema {schema}"),
        Object::Relation { .. } => format!("`{action}` on {}", access.object),
        Object::Function { .. } => format!("`{action}` on function {}", access.object),
        Object::Setting { name } => format!("`{action}` on setting {name}"),
        Object::Other { .. } => format!("`{action}` on {}", access.object),
    }
}

/// An agent with its groups, in words.
fn who(identity: &Identity) -> String {
    let mut named: Vec<_> = identity.groups.iter().take(MAX_GROUPS_NAMED).map(|group| group.0.to_string()).collect();
    match identity.groups.len().saturating_sub(named.len()) {
        0 => {}
        more => named.push(format!("and {more} more")),
    }
    match &*named {
        [] => format!("agent {} (in no group)", identity.agent),
        [one] => format!("agent {} (group {one})", identity.agent),
        many => format!("agent {} (groups {})", identity.agent, many.join(", ")),
    }
}
