//! One policy that loaded, with what is worth knowing of it before any question.

use std::sync::Arc;

use cedar_policy::{ActionConstraint, EntityUid, Policy, PrincipalConstraint, ResourceConstraint};
use serde::Serialize;
use serde_json::Value;

use super::{
    PolicyId,
    schema::{Actions, Kind},
};

/// What a policy says when it is satisfied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Refuses, whatever others permit.
    Forbid,
    /// Permits, unless another forbids.
    Permit,
}

/// One policy.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) id: PolicyId,
    pub(super) description: Arc<str>,
    pub(super) effect: Effect,
    /// The file's name inside the folder, and the line on which the policy begins.
    pub(super) file: Arc<str>,
    pub(super) line: usize,
    /// From its first annotation to its semicolon, as written.
    pub(super) text: Arc<str>,
    pub(super) policy: Policy,
    pub(super) scope: Scope,
    pub(super) reads: Reads,
}

/// Which questions a policy can be satisfied by, as far as its scope tells.
#[derive(Debug)]
pub(super) struct Scope {
    pub(super) principal: PrincipalScope,
    pub(super) actions: Actions,
    pub(super) resource: ResourceScope,
}

/// Whom the scope names.
#[derive(Debug)]
pub(super) enum PrincipalScope {
    /// Every agent.
    Anyone,
    /// This agent, or the members of this group.
    Named(EntityUid),
    /// No agent: another type.
    Nobody,
}

/// What the scope names.
#[derive(Debug)]
pub(super) enum ResourceScope {
    /// Everything, or everything of a kind.
    Anything(Option<Kind>),
    /// The entity and, when `below`, what lies below it; of a kind, when there is one.
    Named { uid: EntityUid, below: bool, kind: Option<Kind> },
    /// Nothing: a type that is no resource.
    Nothing,
}

/// What of the context a policy reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Reads {
    pub(super) columns: bool,
    pub(super) all_columns: bool,
    pub(super) now: bool,
    pub(super) protocol: bool,
    pub(super) volume: bool,
}

impl Scope {
    pub(super) fn of(policy: &Policy) -> Self {
        Self {
            principal: PrincipalScope::of(policy.principal_constraint()),
            actions: match policy.action_constraint() {
                ActionConstraint::Any => Actions::all(),
                ActionConstraint::In(uids) => uids.iter().map(Actions::at_or_below).fold(Actions::NONE, Actions::union),
                ActionConstraint::Eq(uid) => Actions::exactly(&uid),
            },
            resource: ResourceScope::of(policy.resource_constraint()),
        }
    }
}

impl PrincipalScope {
    fn of(constraint: PrincipalConstraint) -> Self {
        match constraint {
            PrincipalConstraint::Any => Self::Anyone,
            PrincipalConstraint::Is(kind) if Kind::of(&kind) == Some(Kind::Agent) => Self::Anyone,
            PrincipalConstraint::Is(_) => Self::Nobody,
            PrincipalConstraint::IsIn(kind, uid) if Kind::of(&kind) == Some(Kind::Agent) => Self::Named(uid),
            PrincipalConstraint::IsIn(_, _) => Self::Nobody,
            PrincipalConstraint::In(uid) | PrincipalConstraint::Eq(uid) => Self::Named(uid),
        }
    }
}

impl ResourceScope {
    fn of(constraint: ResourceConstraint) -> Self {
        match constraint {
            ResourceConstraint::Any => Self::Anything(None),
            ResourceConstraint::Eq(uid) => Self::Named { uid, below: false, kind: None },
            ResourceConstraint::In(uid) => Self::Named { uid, below: true, kind: None },
            ResourceConstraint::Is(kind) => Kind::of(&kind).map_or(Self::Nothing, |kind| Self::Anything(Some(kind))),
            ResourceConstraint::IsIn(kind, uid) => {
                Kind::of(&kind).map_or(Self::Nothing, |kind| Self::Named { uid, below: true, kind: Some(kind) })
            }
        }
    }
}

impl Reads {
    /// Finds the context's attributes in Cedar's JSON of a policy. A use of `context` other than for one attribute
    /// counts as reading everything.
    pub(super) fn of(policy: &Policy) -> Self {
        let mut reads = Self::default();
        match policy.to_json() {
            Ok(json) => reads.walk(&json),
            Err(_) => reads = Self::everything(),
        }
        reads
    }

    /// Whether the answer can depend on more than agent, action and object.
    pub(super) fn anything(self) -> bool {
        self != Self::default()
    }

    /// Whether the same question may be answered otherwise a moment later.
    pub(super) const fn what_changes(self) -> bool {
        self.now || self.volume
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self {
            columns: self.columns || other.columns,
            all_columns: self.all_columns || other.all_columns,
            now: self.now || other.now,
            protocol: self.protocol || other.protocol,
            volume: self.volume || other.volume,
        }
    }

    /// The whole context.
    pub(super) const fn everything() -> Self {
        Self { columns: true, all_columns: true, now: true, protocol: true, volume: true }
    }

    fn walk(&mut self, json: &Value) {
        match json {
            Value::Object(members) => {
                for (key, value) in members {
                    match value.get("attr").and_then(Value::as_str) {
                        Some(attribute) if matches!(key.as_str(), "." | "has") && is_context(value.get("left")) => {
                            self.attribute(attribute);
                        }
                        _ if key == "Var" && value == "context" => *self = Self::everything(),
                        _ => self.walk(value),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.walk(item)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn attribute(&mut self, name: &str) {
        match name {
            "columns" => self.columns = true,
            "allColumns" => self.all_columns = true,
            "now" => self.now = true,
            "protocol" => self.protocol = true,
            "rowsThisHour" | "bytesThisHour" => self.volume = true,
            _ => *self = Self::everything(),
        }
    }
}

/// Whether the conditions of a policy look at the action. When the JSON cannot be had, they may.
pub(super) fn conditions_read_action(policy: &Policy) -> bool {
    fn reads(json: &Value) -> bool {
        match json {
            Value::Object(members) => {
                members.iter().any(|(key, value)| (key == "Var" && value == "action") || reads(value))
            }
            Value::Array(items) => items.iter().any(reads),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        }
    }
    policy.to_json().ok().and_then(|json| json.get("conditions").map(reads)).unwrap_or(true)
}

fn is_context(expression: Option<&Value>) -> bool {
    expression.and_then(|left| left.get("Var")).is_some_and(|variable| variable == "context")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(condition: &str) -> Reads {
        Reads::of(&Policy::parse(None, format!("permit(principal, action, resource) when {{ {condition} }};")).unwrap())
    }

    #[test]
    fn what_a_policy_reads_of_the_context_is_found_wherever_it_stands() {
        let nothing = Reads::default();
        assert_eq!(reads("resource.name == \"context.now\""), nothing);
        assert_eq!(reads("principal.name == \"x\" && context.allColumns"), Reads { all_columns: true, ..nothing });
        assert_eq!(
            reads("if true then [context.columns].contains([\"x\"]) else false"),
            Reads { columns: true, ..nothing }
        );
        assert_eq!(reads("context has protocol"), Reads { protocol: true, ..nothing });
        assert_eq!(reads("context.rowsThisHour < 5"), Reads { volume: true, ..nothing });
        assert_eq!(reads("context.bytesThisHour < 5"), Reads { volume: true, ..nothing });
        assert_eq!(reads("context[\"now\"] == context.now"), Reads { now: true, ..nothing });
        assert_eq!(reads("{a: context}.a.now == context.now"), Reads::everything());
        assert_eq!(reads("context == context"), Reads::everything());
    }
}
