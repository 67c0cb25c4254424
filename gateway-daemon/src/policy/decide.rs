//! The decision on one statement: every access of it must be permitted, and none forbidden.

use std::{collections::BTreeSet, time::SystemTime};

use hashbrown::HashSet;

use super::{
    Decision, DeniedAccess, Denier, PolicyId, PolicySet, Verdict,
    ask::{Circumstances, Outcome},
    names::entity_name,
    rule::Reads,
    slice::Answer,
};
use crate::{
    identity::Identity,
    limits::{Account, TableId, Volume},
    sql::{Access, Object},
};

/// Different accesses of one statement; a statement with more is refused.
pub const MAX_ACCESSES: usize = 10_000;
/// Permits of one access that are kept whose conditions did not hold.
const MAX_UNMET: usize = 16;
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
    /// What the agent has had within the hour.
    pub had: Had<'a>,
    /// What the statement does. A statement without accesses is refused: it was not understood.
    pub accesses: &'a [Access],
}

impl<'a> Query<'a> {
    /// As far as policies read them of an access to this object.
    pub(super) fn circumstances(&self, reads: Reads, object: &Object) -> Circumstances<'a> {
        let volume = if reads.volume { self.volume(object) } else { Volume::default() };
        Circumstances { protocol: self.protocol, now: self.now, volume }
    }

    /// What the agent has had of an object; nothing of what is no table.
    pub(super) fn volume(&self, object: &Object) -> Volume {
        match (self.had, object) {
            (Had::Counted(account), Object::Relation { schema, name }) => {
                let (connection, database) = (self.connection.into(), self.database.into());
                account.volume(&TableId { connection, database, schema: schema.clone(), name: name.clone() })
            }
            (Had::Assumed(volumes), object) => {
                volumes.iter().find(|(of, _)| of == object).map(|(_, volume)| *volume).unwrap_or_default()
            }
            (Had::Counted(_), _) => Volume::default(),
        }
    }
}

/// Whence it is known what an agent has had within the hour.
#[derive(Debug, Clone, Copy)]
pub enum Had<'a> {
    /// From its account.
    Counted(&'a Account),
    /// For a test: so much of these objects, and nothing of others.
    Assumed(&'a [(Object, Volume)]),
}

/// A decision, and what it is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// The decision.
    pub decision: Decision,
    /// Whether the same question has this answer for as long as the policies and the identity are the same.
    pub lasts: bool,
    /// Whether it depends on what the agent has had.
    pub reads_volume: bool,
}

impl PolicySet {
    /// Decides on one statement. Does not block, but for short locks.
    pub fn decide(&self, query: &Query<'_>) -> Decision {
        self.decide_for(query).decision
    }

    /// The same, with how long the decision holds.
    pub fn decide_for(&self, query: &Query<'_>) -> Decided {
        let durable_first = query.accesses.is_empty()
            || query.accesses.iter().any(|access| access.action.class().durable_before_forward());
        let mut reads = Reads::default();
        let (verdict, policies) = self.verdict(query, &mut reads);
        let decision = Decision { verdict, policies, set: self.id(), durable_first };
        Decided { decision, lasts: !reads.what_changes(), reads_volume: reads.volume }
    }

    /// `all_read` gets what of the context the answers depend on.
    fn verdict(&self, query: &Query<'_>, all_read: &mut Reads) -> (Verdict, Vec<PolicyId>) {
        if query.accesses.is_empty() {
            return deny_by_weir("it was not understood: nothing is known of what it does".to_owned());
        }
        let principal = self.slices().principal(self.rules(), query.identity);
        let mut asked = HashSet::new();
        let mut permits = BTreeSet::new();
        let mut first = None;
        let mut denied = Vec::new();
        for access in query.accesses {
            if !asked.insert(access) {
                continue;
            }
            if asked.len() > MAX_ACCESSES {
                return deny_by_weir(format!(
                    "it does more than {MAX_ACCESSES} different things, the limit of one statement"
                ));
            }
            let Answer { outcome, policies, reads } = principal.answer(self.rules(), query, access);
            *all_read = all_read.union(reads);
            let Some(reason) = self.refusal(query, access, &outcome, &policies) else {
                permits.extend(policies);
                continue;
            };
            let told = || (what(query, access), reason, Some(Box::new(access.clone())));
            let forbidden_by = match outcome {
                Outcome::Permitted | Outcome::Unpermitted => Vec::new(),
                Outcome::Forbidden => policies.clone(),
                // Nobody knows what the policies say: that is not theirs, and stands above what they deny.
                Outcome::Failed { .. } => {
                    let (what, reason, access) = told();
                    return (Verdict::Deny { what, reason, access, by: Denier::Weir }, policies);
                }
            };
            let unmet = match outcome {
                Outcome::Unpermitted => {
                    principal.permits_in_scope(self.rules(), query, access).take(MAX_UNMET).collect()
                }
                Outcome::Permitted | Outcome::Forbidden | Outcome::Failed { .. } => Vec::new(),
            };
            denied.push(denied_access(query, access, forbidden_by, unmet));
            first.get_or_insert_with(|| (told(), policies));
        }
        match first {
            None => (Verdict::Allow, permits.into_iter().collect()),
            Some(((what, reason, access), policies)) => {
                (Verdict::Deny { what, reason, access, by: Denier::Policies(denied) }, policies)
            }
        }
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

fn deny_by_weir(reason: String) -> (Verdict, Vec<PolicyId>) {
    (Verdict::Deny { what: "the statement".to_owned(), reason, access: None, by: Denier::Weir }, Vec::new())
}

fn denied_access(
    query: &Query<'_>,
    access: &Access,
    forbidden_by: Vec<PolicyId>,
    unmet: Vec<PolicyId>,
) -> DeniedAccess {
    let (kind, id) = entity_name(query.connection, query.database, &access.object);
    let columns = access.columns.clone();
    DeniedAccess { action: access.action, kind: kind.name(), id, columns, forbidden_by, unmet }
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
