//! A trial of one policy before it loads: asked what its scope names, it must not fail. What fails there fails whenever
//! it is asked, and would refuse everything in its scope with an error that nobody meant.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use cedar_policy::{Policy, PolicySet};

use super::{
    ask::{Circumstances, Outcome, ask, context},
    names::{self, Resource},
    rule::{PrincipalScope, Reads, ResourceScope, Scope},
    schema::{Kind, action_uid},
};
use crate::{
    identity::{Group, Identity, Subject},
    limits::Volume,
    sql::{Columns, Name, Object},
};

/// The name of everything that a scope leaves open.
const ANY: &str = "trial";

/// Why the policy fails, when it does.
pub(super) fn failure(policy: &Policy, scope: &Scope) -> Option<String> {
    if !policy.has_non_scope_constraint() {
        return None; // a scope cannot fail
    }
    let identity = identity(&scope.principal)?;
    let action = scope.actions.iter().next()?;
    let (connection, database, object) = object(&scope.resource)?;
    let resource = Resource::new(&connection, &database, &object);
    let uids = [names::agent_uid(&identity), action_uid(action.name()), resource.chain.first()?.uid()];
    let entities = names::entities(&identity, action, &resource).ok()?;
    let set = PolicySet::from_policies([policy.clone()]).ok()?;
    let circumstances = Circumstances { protocol: "postgres", now: SystemTime::now(), volume: Volume::default() };
    let some: BTreeSet<Name> = [ANY.into()].into();
    [Columns::None, Columns::Some(some), Columns::All].iter().find_map(|columns| {
        let context = context(columns, &circumstances, Reads::everything()).ok()?;
        match ask(&set, &entities, uids.clone(), context).0 {
            Outcome::Failed { message } => Some(message),
            Outcome::Permitted | Outcome::Forbidden | Outcome::Unpermitted => None,
        }
    })
}

/// Someone whom the scope can match.
fn identity(scope: &PrincipalScope) -> Option<Identity> {
    let (agent, groups) = match scope {
        PrincipalScope::Anyone => (ANY.into(), Vec::new()),
        PrincipalScope::Nobody => return None,
        PrincipalScope::Named(uid) => {
            let name: Arc<str> = uid.id().unescaped().into();
            match Kind::of(uid.type_name())? {
                Kind::Agent => (name, Vec::new()),
                Kind::Group => (ANY.into(), vec![Group(name)]),
                _ => return None,
            }
        }
    };
    let subject = Subject { issuer: ANY.into(), subject: ANY.into() };
    let token_sha256 = [0; 32];
    Some(Identity {
        agent,
        subject,
        groups,
        token_id: None,
        actor: None,
        token_sha256,
        expires: SystemTime::UNIX_EPOCH,
    })
}

/// Something that the scope can match.
fn object(scope: &ResourceScope) -> Option<(String, String, Object)> {
    match scope {
        ResourceScope::Nothing => None,
        ResourceScope::Anything(kind) => Some((ANY.into(), ANY.into(), object_of(kind.unwrap_or(Kind::Table), &[])?)),
        ResourceScope::Named { uid, below, kind } => {
            let at = Kind::of(uid.type_name())?;
            let parts = names::parts(at, uid.id().unescaped()).ok()?;
            let part = |index: usize| parts.get(index).map_or(ANY, String::as_str).to_owned();
            let kind = kind.unwrap_or(if *below && at == Kind::Connection { Kind::Table } else { at });
            Some((part(0), part(1), object_of(kind, parts.get(2..).unwrap_or_default())?))
        }
    }
}

/// An object of a kind, of these parts and of [`ANY`] where there are none.
fn object_of(kind: Kind, parts: &[String]) -> Option<Object> {
    let part = |index: usize| -> Name { parts.get(index).map_or(ANY, String::as_str).into() };
    match kind {
        Kind::Database => Some(Object::Database),
        Kind::Schema => Some(Object::Schema { schema: part(0) }),
        Kind::Table => Some(Object::Relation { schema: part(0), name: part(1) }),
        Kind::Function => Some(Object::Function { schema: part(0), name: part(1) }),
        Kind::Setting => Some(Object::Setting { name: part(0) }),
        // The kinds of `Other` are fixed words of the parser; a trial of any of them is as good as another.
        Kind::Other => Some(Object::Other { kind: "role", name: part(1) }),
        Kind::Agent | Kind::Group | Kind::Connection => None,
    }
}
