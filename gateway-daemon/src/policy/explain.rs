//! Why a statement would be allowed or refused, access by access. Nothing is forwarded.

use std::fmt;

use serde::Serialize;

use super::{
    Decision, Effect, Mode, PolicyId, PolicySet, Query, Verdict,
    decide::{MAX_ACCESSES, what},
    doc::who,
    rule::Rule,
    source::printable,
};
use crate::sql::{Access, Columns};

/// Policies for others that are named for one access.
const MAX_OTHERS: usize = 8;

/// A decision with all that led to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Who asked.
    pub agent: String,
    /// Its groups.
    pub groups: Vec<String>,
    /// Where.
    pub connection: String,
    /// See `connection`.
    pub database: String,
    /// Whether the policies allow the statement.
    pub allowed: bool,
    /// Whether it would be forwarded although they deny it: the connection observes.
    pub observed: bool,
    /// Why they do not allow it; empty when they do.
    pub reason: String,
    /// Whether its request would be durable before it is forwarded.
    pub durable_first: bool,
    /// The policy set, in hex.
    pub set: String,
    /// Each different access, in the statement's order.
    pub accesses: Vec<ExplainedAccess>,
}

/// One access of an explained statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedAccess {
    /// In words: "`select` on public.customers".
    pub what: String,
    /// The columns it names; `*` when it may be every one.
    pub columns: Vec<String>,
    /// Rows that the agent has had of it within the hour.
    pub rows_this_hour: u64,
    /// Bytes of the same answers.
    pub bytes_this_hour: u64,
    /// Whether it is permitted.
    pub allowed: bool,
    /// Why not; empty when it is.
    pub reason: String,
    /// The policies that say so.
    pub policies: Vec<PolicyNote>,
    /// When nothing permits it: policies that permit the action there to others.
    pub others: Vec<PolicyNote>,
}

/// A policy, as far as an explanation speaks of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyNote {
    /// Its id.
    pub id: String,
    /// Permit or forbid.
    pub effect: Effect,
    /// Whom its scope names.
    pub who: String,
    /// Its description.
    pub description: String,
    /// Where it stands.
    pub file: String,
    /// See `file`.
    pub line: usize,
}

/// Explains what [`PolicySet::decide`] says of the same query, and what the connection's mode makes of it.
pub fn explain(set: &PolicySet, query: &Query<'_>, mode: Mode) -> Explanation {
    let Decision { verdict, durable_first, set: id, .. } = set.decide(query).under(mode);
    let principal = set.slices().principal(set.rules(), query.identity);
    let mut seen = hashbrown::HashSet::new();
    let distinct = query.accesses.iter().filter(|access| seen.insert(*access)).take(MAX_ACCESSES);
    let explained = |access: &Access| {
        let (answer, volume) = (principal.answer(set.rules(), query, access), query.volume(&access.object));
        let refusal = set.refusal(query, access, &answer.outcome, &answer.policies);
        let others = match (&refusal, &*answer.policies) {
            (Some(_), []) => {
                principal.others(set.rules(), query, access).take(MAX_OTHERS).map(PolicyNote::of).collect()
            }
            (Some(_) | None, _) => Vec::new(),
        };
        ExplainedAccess {
            what: what(query, access),
            columns: columns(&access.columns),
            rows_this_hour: volume.rows,
            bytes_this_hour: volume.bytes,
            allowed: refusal.is_none(),
            reason: refusal.unwrap_or_default(),
            policies: answer.policies.iter().filter_map(|PolicyId(id)| set.rule(id)).map(PolicyNote::of).collect(),
            others,
        }
    };
    Explanation {
        agent: query.identity.agent.to_string(),
        groups: query.identity.groups.iter().map(|group| group.0.to_string()).collect(),
        connection: query.connection.to_owned(),
        database: query.database.to_owned(),
        allowed: verdict == Verdict::Allow,
        observed: matches!(verdict, Verdict::Lifted { .. }),
        accesses: distinct.map(explained).collect(),
        reason: match verdict {
            Verdict::Allow => String::new(),
            Verdict::Deny { reason, .. } | Verdict::Lifted { reason, .. } => reason,
        },
        durable_first,
        set: id.to_string(),
    }
}

impl PolicyNote {
    fn of(rule: &Rule) -> Self {
        Self {
            id: rule.id.to_string(),
            effect: rule.effect,
            who: who(&rule.scope.principal),
            description: rule.description.to_string(),
            file: rule.file.to_string(),
            line: rule.line,
        }
    }
}

fn columns(columns: &Columns) -> Vec<String> {
    match columns {
        Columns::None => Vec::new(),
        Columns::Some(names) => names.iter().map(ToString::to_string).collect(),
        Columns::All => vec!["*".to_owned()],
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = if self.groups.is_empty() { "none".to_owned() } else { self.groups.join(", ") };
        writeln!(f, "agent {} (groups: {})", printable(&self.agent), printable(&groups))?;
        writeln!(f, "on {}/{}", printable(&self.connection), printable(&self.database))?;
        for access in &self.accesses {
            write!(f, "\n{access}")?;
        }
        match (self.allowed, self.observed) {
            (true, _) => writeln!(f, "\nallowed")?,
            (false, false) => writeln!(f, "\nrefused: {}", printable(&self.reason))?,
            (false, true) => {
                writeln!(f, "\nwould be refused: {}", printable(&self.reason))?;
                writeln!(f, "IS LET PASS: connection {} only observes", printable(&self.connection))?;
            }
        }
        writeln!(f, "policy set {}", self.set)
    }
}

impl fmt::Display for ExplainedAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.allowed { "permitted" } else { "refused" };
        let columns = if self.columns.is_empty() { String::new() } else { format!(" ({})", self.columns.join(", ")) };
        writeln!(f, "{verdict:<9} {}{}", printable(&self.what), printable(&columns))?;
        if (self.rows_this_hour, self.bytes_this_hour) != (0, 0) {
            writeln!(f, "    this hour so far: {} rows, {} bytes", self.rows_this_hour, self.bytes_this_hour)?;
        }
        for note in &self.policies {
            writeln!(f, "    {note}")?;
        }
        if !self.allowed && self.policies.is_empty() {
            writeln!(f, "    {}", printable(&self.reason))?;
        }
        for note in &self.others {
            writeln!(f, "    others may: {}: {note}", printable(&note.who))?;
        }
        Ok(())
    }
}

impl fmt::Display for PolicyNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, effect, description, file, line, .. } = self;
        let effect = match effect {
            Effect::Permit => "permit",
            Effect::Forbid => "forbid",
        };
        write!(f, "{effect} `{id}` ({}:{line}): {}", printable(file), printable(description))
    }
}
