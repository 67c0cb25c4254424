//! Who may do what, on what, by which policy, and why: the policies as a table.

use std::fmt;

use cedar_policy::{ActionConstraint, EntityUid};
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use super::{
    Effect, PolicySet,
    examine::unconfigured,
    load::Known,
    rule::{PrincipalScope, ResourceScope, Rule},
    schema::{Actions, Kind, group},
    source::{conditions, printable},
};
use crate::sql::Action;

/// How entities are named, below the table.
const NAMES: &str = "Names are parts joined by `/`: CONNECTION/DATABASE/SCHEMA/TABLE. Inside a part `%` is written \
                     `%25` and `/` is written `%2F`.\nA group is ISSUER/GROUP. What no line permits is refused, and \
                     `forbid` beats `permit`.";

/// The policies of a set as a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Document {
    /// The set's id, in hex.
    pub set: String,
    /// One for each policy, by whom it is for.
    pub rows: Vec<Row>,
    /// Actions and groups of actions that no policy permits to anybody.
    pub nobody: Vec<String>,
}

/// One policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Row {
    /// For whom: `group corp/readers`, `agent claude`, `every agent`.
    pub who: String,
    /// Permit or forbid.
    pub effect: Effect,
    /// Actions and groups of actions, as the policy names them.
    pub actions: String,
    /// On what: `database orders/shop and below`, `everything`.
    pub on: String,
    /// Its `when` and `unless`; empty when it has none.
    pub conditions: String,
    /// Its id.
    pub policy: String,
    /// Why: its description.
    pub why: String,
    /// Where it stands.
    pub file: String,
    /// See `file`.
    pub line: usize,
    /// What it names and the configuration doesn't know: `connection oders`.
    pub unconfigured: Vec<String>,
}

/// Describes a set; with `known`, says what of it the configuration doesn't know.
pub fn doc(set: &PolicySet, known: Option<&Known>) -> Document {
    let mut rows: Vec<_> = set.rules().iter().map(|rule| Row::of(rule, known)).collect();
    rows.sort_unstable();
    Document { set: set.id().to_string(), rows, nobody: nobody(set) }
}

impl Row {
    fn of(rule: &Rule, known: Option<&Known>) -> Self {
        let unknown = known.map(|known| unconfigured(&rule.policy, known)).unwrap_or_default();
        Self {
            who: who(&rule.scope.principal),
            effect: rule.effect,
            actions: actions(&rule.policy.action_constraint()),
            on: on(&rule.scope.resource),
            conditions: conditions(&rule.text),
            policy: rule.id.to_string(),
            why: rule.description.to_string(),
            file: rule.file.to_string(),
            line: rule.line,
            unconfigured: unknown.into_iter().map(|found| format!("{} {}", found.what, found.name)).collect(),
        }
    }
}

/// Whom a scope names, in words.
pub(super) fn who(scope: &PrincipalScope) -> String {
    match scope {
        PrincipalScope::Anyone => "every agent".to_owned(),
        PrincipalScope::Named(uid) => entity(uid),
        PrincipalScope::Nobody => "nobody".to_owned(),
    }
}

fn actions(constraint: &ActionConstraint) -> String {
    match constraint {
        ActionConstraint::Any => "every action, unknown too".to_owned(),
        ActionConstraint::Eq(uid) => uid.id().unescaped().to_owned(),
        ActionConstraint::In(uids) => uids.iter().map(|uid| uid.id().unescaped()).collect::<Vec<_>>().join(", "),
    }
}

fn on(scope: &ResourceScope) -> String {
    match scope {
        ResourceScope::Anything(None) => "everything".to_owned(),
        ResourceScope::Anything(Some(kind)) => format!("every {}", word(*kind)),
        ResourceScope::Nothing => "nothing".to_owned(),
        ResourceScope::Named { uid, below: false, .. } => entity(uid),
        ResourceScope::Named { uid, below: true, kind: None } => format!("{} and below", entity(uid)),
        ResourceScope::Named { uid, below: true, kind: Some(kind) } => {
            format!("every {} in {}", word(*kind), entity(uid))
        }
    }
}

fn entity(uid: &EntityUid) -> String {
    let kind = Kind::of(uid.type_name()).map_or("entity", word);
    format!("{kind} {}", uid.id().unescaped())
}

const fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Agent => "agent",
        Kind::Group => "group",
        Kind::Connection => "connection",
        Kind::Database => "database",
        Kind::Schema => "schema",
        Kind::Table => "table",
        Kind::Function => "function",
        Kind::Setting => "setting",
        Kind::Other => "other",
    }
}

/// What no policy permits: a group's name where none of its members is.
fn nobody(set: &PolicySet) -> Vec<String> {
    let permits = set.rules().iter().filter(|rule| rule.effect == Effect::Permit);
    let permitted = permits.fold(Actions::NONE, |all, rule| all.union(rule.scope.actions));
    let whole = |name: &str| !permitted.iter().any(|action| group(action) == Some(name));
    let mut nobody: Vec<&str> = Vec::new();
    for &action in Action::ALL.iter().filter(|action| !permitted.contains(**action)) {
        let name = group(action).filter(|name| whole(name)).unwrap_or(action.name());
        if nobody.last() != Some(&name) {
            nobody.push(name);
        }
    }
    nobody.into_iter().map(str::to_owned).collect()
}

impl fmt::Display for Document {
    /// A table with a line for each policy, its conditions below it, and what nobody may do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cells = |row: &Row| -> [String; 6] {
            let effect = match row.effect {
                Effect::Permit => "permit",
                Effect::Forbid => "forbid",
            };
            [&row.who, effect, &row.actions, &row.on, &row.policy, &row.why].map(printable)
        };
        let head = ["WHO", "EFFECT", "ACTIONS", "ON", "POLICY", "WHY"].map(str::to_owned);
        let table: Vec<_> = self.rows.iter().map(|row| (cells(row), Some(row))).collect();
        let mut widths = head.each_ref().map(|cell| cell.width());
        for (cells, _) in &table {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.width());
            }
        }
        for (cells, row) in std::iter::once((head, None)).chain(table) {
            let padded = cells
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell}{}", " ".repeat(width.saturating_sub(cell.width()))));
            writeln!(f, "{}", padded.collect::<Vec<_>>().join("  ").trim_end())?;
            let Some(row) = row else { continue };
            if !row.conditions.is_empty() {
                writeln!(f, "    {}", printable(&row.conditions))?;
            }
            for unknown in &row.unconfigured {
                writeln!(f, "    not configured: {}", printable(unknown))?;
            }
        }
        if !self.nobody.is_empty() {
            writeln!(f, "\nNobody may: {}", self.nobody.join(", "))?;
        }
        writeln!(f, "\n{NAMES}\nPolicy set {}", self.set)
    }
}
