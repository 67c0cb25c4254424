//! Slices: for each question the few policies whose scope can match it. Cedar evaluates every policy that it is given,
//! so a set of ten thousand would cost a thousand times what ten cost.
//!
//! A slice leaves out only what cannot be satisfied: whose principal is neither the agent nor one of its groups, whose
//! actions hold not the one asked for, or whose resource is neither the object nor above it. A property test holds
//! slice and whole set to the same answer.
//!
//! ```text
//! Slices ── agent, subject, groups ──▶ Principal: policies for it, by the resource they name
//!                                        └── action, object ──▶ Slice: the answer, or what to ask Cedar
//! ```
//!
//! Both caches live and die with their set and are bounded; an agent that makes up object names empties its own only.

use std::{
    hash::Hash,
    sync::{Arc, PoisonError, RwLock},
};

use cedar_policy::{Entities, EntityUid, PolicySet};
use hashbrown::{Equivalent, HashMap};

use super::{
    PolicyId,
    ask::{Circumstances, Outcome, ask, context},
    decide::Query,
    names::{self, Resource},
    rule::{Effect, PrincipalScope, Reads, ResourceScope, Rule},
    schema::{Kind, action_uid},
};
use crate::{
    identity::{Group, Identity, Subject},
    sql::{Access, Action, Columns, Object},
};

/// Agents, each with a set of groups, whose slices are kept; beyond it all are made anew.
const MAX_PRINCIPALS: usize = 1024;
/// Actions on objects that are kept for one of them.
const MAX_OBJECTS: usize = 2048;

/// Policies by the principal that their scope names, by index into the set's rules.
#[derive(Default)]
pub(super) struct Slices {
    anyone: Vec<usize>,
    named: HashMap<EntityUid, Vec<usize>>,
    principals: RwLock<HashMap<PrincipalKey, Arc<Principal>>>,
}

/// The policies whose principal scope matches one agent, by the resource that they name.
pub(super) struct Principal {
    anything: Vec<usize>,
    named: HashMap<EntityUid, Vec<usize>>,
    slices: RwLock<HashMap<ObjectKey, Arc<Slice>>>,
}

/// The answer to one question, with the policies that determine it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) outcome: Outcome,
    pub(super) policies: Vec<PolicyId>,
    /// What of the context it depends on.
    pub(super) reads: Reads,
}

/// What is known of one action on one object by one agent.
enum Slice {
    /// No policy of the slice reads the context: the answer stands.
    Answered(Answer),
    /// The answer depends on columns, time, protocol or volume.
    Open(Box<Question>),
}

struct Question {
    policies: PolicySet,
    reads: Reads,
    entities: Entities,
    uids: [EntityUid; 3],
}

impl Slices {
    pub(super) fn of(rules: &[Rule]) -> Self {
        let mut slices = Self::default();
        for (index, rule) in rules.iter().enumerate() {
            match &rule.scope.principal {
                PrincipalScope::Anyone => slices.anyone.push(index),
                PrincipalScope::Named(uid) => slices.named.entry(uid.clone()).or_default().push(index),
                PrincipalScope::Nobody => {}
            }
        }
        slices
    }

    /// The slice of one agent.
    pub(super) fn principal(&self, rules: &[Rule], identity: &Identity) -> Arc<Principal> {
        let key = PrincipalRef { agent: &identity.agent, subject: &identity.subject, groups: &identity.groups };
        if let Some(known) = self.principals.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(known);
        }
        let made = Arc::new(Principal::of(rules, self.candidates(identity)));
        let mut principals = self.principals.write().unwrap_or_else(PoisonError::into_inner);
        if principals.len() >= MAX_PRINCIPALS {
            principals.clear();
        }
        principals.insert(key.to_owned(), Arc::clone(&made));
        made
    }

    /// The policies for anyone, for the agent and for its groups; each stands in one list.
    fn candidates(&self, identity: &Identity) -> impl Iterator<Item = usize> {
        let groups = identity.groups.iter().map(|group| Kind::Group.uid(&group.0));
        let named = groups.chain([names::agent_uid(identity)]).filter_map(|uid| self.named.get(&uid));
        self.anyone.iter().chain(named.flatten()).copied()
    }
}

impl Principal {
    fn of(rules: &[Rule], candidates: impl Iterator<Item = usize>) -> Self {
        let mut anything = Vec::new();
        let mut named: HashMap<EntityUid, Vec<usize>> = HashMap::new();
        for index in candidates {
            match rules.get(index).map(|rule| &rule.scope.resource) {
                Some(ResourceScope::Anything(_)) => anything.push(index),
                Some(ResourceScope::Named { uid, .. }) => named.entry(uid.clone()).or_default().push(index),
                Some(ResourceScope::Nothing) | None => {}
            }
        }
        Self { anything, named, slices: RwLock::default() }
    }

    /// The answer to whether the agent may do this.
    pub(super) fn answer(&self, rules: &[Rule], query: &Query<'_>, access: &Access) -> Answer {
        let key = ObjectRef {
            action: access.action,
            connection: query.connection,
            database: query.database,
            object: &access.object,
        };
        let known = self.slices.read().unwrap_or_else(PoisonError::into_inner).get(&key).map(Arc::clone);
        let slice = known.unwrap_or_else(|| {
            let made = Arc::new(self.slice(rules, query, access));
            let mut slices = self.slices.write().unwrap_or_else(PoisonError::into_inner);
            if slices.len() >= MAX_OBJECTS {
                slices.clear();
            }
            slices.insert(key.to_owned(), Arc::clone(&made));
            made
        });
        match &*slice {
            Slice::Answered(answer) => answer.clone(),
            Slice::Open(question) => {
                question.put(&access.columns, &query.circumstances(question.reads, &access.object))
            }
        }
    }

    fn slice(&self, rules: &[Rule], query: &Query<'_>, access: &Access) -> Slice {
        let resource = Resource::new(query.connection, query.database, &access.object);
        let chosen = self.matching(rules, access.action, &resource);
        match Question::new(&chosen, query.identity, access.action, &resource) {
            Err(message) => {
                let (outcome, policies) = (Outcome::Failed { message }, Vec::new());
                Slice::Answered(Answer { outcome, policies, reads: Reads::default() })
            }
            Ok(question) if question.reads.anything() => Slice::Open(Box::new(question)),
            // Whatever the columns and the time are, the answer is the same.
            Ok(question) => {
                Slice::Answered(question.put(&Columns::None, &query.circumstances(question.reads, &access.object)))
            }
        }
    }

    /// Permits of this action on this object whose scope names someone else.
    pub(super) fn others<'r>(
        &self,
        rules: &'r [Rule],
        query: &Query<'_>,
        access: &Access,
    ) -> impl Iterator<Item = &'r Rule> {
        let resource = Resource::new(query.connection, query.database, &access.object);
        let own: Vec<_> = self.matching(rules, access.action, &resource).into_iter().map(|rule| &rule.id).collect();
        let action = access.action;
        rules.iter().filter(move |rule| {
            rule.effect == Effect::Permit
                && rule.scope.actions.contains(action)
                && can_be(&rule.scope.resource, &resource)
                && is_at_or_above(&rule.scope.resource, &resource)
                && !own.contains(&&rule.id)
        })
    }

    /// Permits whose scope the access is in: where it is not permitted all the same, their conditions do not hold.
    pub(super) fn permits_in_scope(
        &self,
        rules: &[Rule],
        query: &Query<'_>,
        access: &Access,
    ) -> impl Iterator<Item = PolicyId> {
        let resource = Resource::new(query.connection, query.database, &access.object);
        let permits = self.matching(rules, access.action, &resource).into_iter();
        permits.filter(|rule| rule.effect == Effect::Permit).map(|rule| rule.id.clone())
    }

    /// The policies whose scope can match, in the order of the set.
    fn matching<'r>(&self, rules: &'r [Rule], action: Action, resource: &Resource) -> Vec<&'r Rule> {
        let above = resource.chain.iter().filter_map(|entity| self.named.get(&entity.uid())).flatten();
        let mut indices: Vec<_> = self.anything.iter().chain(above).copied().collect();
        indices.sort_unstable();
        indices.dedup();
        let can_match = |rule: &&Rule| rule.scope.actions.contains(action) && can_be(&rule.scope.resource, resource);
        indices.into_iter().filter_map(|index| rules.get(index)).filter(can_match).collect()
    }
}

/// Whether the resource is of the scope's kind, and not only below what must be it itself.
fn can_be(scope: &ResourceScope, resource: &Resource) -> bool {
    let is = |kind: &Option<Kind>| kind.is_none_or(|kind| kind == resource.kind);
    match scope {
        ResourceScope::Nothing => false,
        ResourceScope::Anything(kind) => is(kind),
        ResourceScope::Named { uid, below, kind } => {
            is(kind) && (*below || resource.chain.first().is_some_and(|entity| entity.uid() == *uid))
        }
    }
}

fn is_at_or_above(scope: &ResourceScope, resource: &Resource) -> bool {
    match scope {
        ResourceScope::Named { uid, .. } => resource.chain.iter().any(|entity| entity.uid() == *uid),
        ResourceScope::Anything(_) => true,
        ResourceScope::Nothing => false,
    }
}

impl Question {
    fn new(rules: &[&Rule], identity: &Identity, action: Action, resource: &Resource) -> Result<Self, String> {
        let asked = resource.chain.first().ok_or("a resource without an entity")?.uid();
        Ok(Self {
            policies: PolicySet::from_policies(rules.iter().map(|rule| rule.policy.clone()))
                .map_err(|error| error.to_string())?,
            reads: rules.iter().fold(Reads::default(), |reads, rule| reads.union(rule.reads)),
            entities: names::entities(identity, action, resource)?,
            uids: [names::agent_uid(identity), action_uid(action.name()), asked],
        })
    }

    fn put(&self, columns: &Columns, circumstances: &Circumstances<'_>) -> Answer {
        match context(columns, circumstances, self.reads) {
            Err(message) => Answer { outcome: Outcome::Failed { message }, policies: Vec::new(), reads: self.reads },
            Ok(context) => {
                let (outcome, policies) = ask(&self.policies, &self.entities, self.uids.clone(), context);
                let id = |id: cedar_policy::PolicyId| PolicyId(AsRef::<str>::as_ref(&id).into());
                Answer { outcome, policies: policies.into_iter().map(id).collect(), reads: self.reads }
            }
        }
    }
}

/// The answer of the whole set, without slices: what they are tested against.
#[cfg(test)]
pub(super) fn answer_of_all(rules: &[Rule], query: &Query<'_>, access: &Access) -> Answer {
    let resource = Resource::new(query.connection, query.database, &access.object);
    let question = Question::new(&rules.iter().collect::<Vec<_>>(), query.identity, access.action, &resource).unwrap();
    question.put(&access.columns, &query.circumstances(question.reads, &access.object))
}

#[derive(PartialEq, Eq, Hash)]
struct PrincipalKey {
    agent: Arc<str>,
    subject: Subject,
    groups: Vec<Group>,
}

/// [`PrincipalKey`], borrowed: hashes alike.
#[derive(Hash)]
struct PrincipalRef<'a> {
    agent: &'a Arc<str>,
    subject: &'a Subject,
    groups: &'a Vec<Group>,
}

impl PrincipalRef<'_> {
    fn to_owned(&self) -> PrincipalKey {
        let &Self { agent, subject, groups } = self;
        PrincipalKey { agent: Arc::clone(agent), subject: subject.clone(), groups: groups.clone() }
    }
}

impl Equivalent<PrincipalKey> for PrincipalRef<'_> {
    fn equivalent(&self, key: &PrincipalKey) -> bool {
        let &Self { agent, subject, groups } = self;
        *agent == key.agent && *subject == key.subject && *groups == key.groups
    }
}

#[derive(PartialEq, Eq, Hash)]
struct ObjectKey {
    action: Action,
    connection: Box<str>,
    database: Box<str>,
    object: Object,
}

/// [`ObjectKey`], borrowed: hashes alike.
#[derive(Hash)]
struct ObjectRef<'a> {
    action: Action,
    connection: &'a str,
    database: &'a str,
    object: &'a Object,
}

impl ObjectRef<'_> {
    fn to_owned(&self) -> ObjectKey {
        let &Self { action, connection, database, object } = self;
        ObjectKey { action, connection: connection.into(), database: database.into(), object: object.clone() }
    }
}

impl Equivalent<ObjectKey> for ObjectRef<'_> {
    fn equivalent(&self, key: &ObjectKey) -> bool {
        let &Self { action, connection, database, object } = self;
        action == key.action && *connection == *key.connection && *database == *key.database && *object == key.object
    }
}

#[cfg(test)]
mod tests;
