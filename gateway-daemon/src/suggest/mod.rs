//! `weir policy suggest`: from denials on the record to the permits that they would need.
//!
//! In come rows of the record, out goes a file of policies that loads. What always holds: a permit is no wider than the
//! grain that was asked for ([`Grain`]); nothing is proposed for `admin` and `unknown`, nor where a policy forbids or permits
//! under a condition; the same rows give the same text; and names that an agent made up neither leave their string nor
//! pretend to be Weir's words.

mod seen;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    policy::{Entity, Grantee},
    record::{DeniedAccess, Event, Request, RequestKind, Row, RowContent, SessionInfo, Time},
    show::line,
    sql::{Action, Class},
};

use seen::Seen;
pub use seen::Statements;
pub use write::{Left, Proposal, Suggestions};

/// Different things denied that are kept; what comes beyond is counted.
const MOST_SEEN: usize = 10_000;
/// Groups that a permit names at most; an agent in more is named itself.
const MOST_GROUPS: usize = 16;
/// Bytes of an entity's name that is proposed.
const LONGEST_ID: usize = 2048;
/// Characters of a name that is only read.
const SHOWN: usize = 200;

/// How narrow permits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grain {
    /// The columns that were named, of each table.
    Column,
    /// Each table, function, setting.
    Table,
    /// Each schema: everything of a type in it, for each action.
    Schema,
}

/// Whom permits name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// The agent.
    Agent,
    /// All groups that its token had.
    Groups,
}

/// Gathers denials.
#[derive(Debug)]
pub struct Suggester {
    grain: Grain,
    whom: Whom,
    seen: BTreeMap<(Grantee, Thing), Seen>,
    statements: Statements,
    /// Refused by Weir itself: the record has no particulars of the policies.
    not_by_policies: u64,
    /// Rows that say nothing: damaged, or of a later version.
    unreadable: u64,
    /// Accesses beyond [`MOST_SEEN`].
    beyond: u64,
}

/// One thing that was denied.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    /// What a policy could permit.
    Permittable(Entity, Action),
    /// What is not proposed.
    Left(Why, String, Action),
}

/// Why something is not proposed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    /// Policies forbid it.
    Forbidden(Vec<String>),
    /// Policies permit it under conditions, which a permit of its own would lift.
    Conditions(Vec<String>),
    Admin,
    Unknown,
    /// No policy can name the object.
    Unnamable,
    /// It names more columns than a policy should.
    Columns,
}

impl Suggester {
    /// One that has seen nothing.
    pub fn new(grain: Grain, whom: Whom) -> Self {
        Self {
            grain,
            whom,
            seen: BTreeMap::new(),
            statements: Statements::default(),
            not_by_policies: 0,
            unreadable: 0,
            beyond: 0,
        }
    }

    /// Takes one row; what is no denied request is passed over.
    pub fn row(&mut self, row: &Row) {
        let event = match &row.content {
            RowContent::Event(event) => &**event,
            RowContent::Unreadable(_) => return self.unreadable = self.unreadable.saturating_add(1),
        };
        match (event, row.session.as_deref()) {
            (Event::Request(request), Some(session)) if !request.decision.allowed => {
                self.request(row.time, request, session);
            }
            (Event::Request(request), None) if !request.decision.allowed => {
                self.unreadable = self.unreadable.saturating_add(1);
            }
            (
                Event::Request(_)
                | Event::SessionStart(_)
                | Event::Answer(_)
                | Event::CopyIn(_)
                | Event::Outcome(_)
                | Event::SessionEnd(_)
                | Event::Refused(_)
                | Event::Admin(_),
                _,
            ) => {}
        }
    }

    fn request(&mut self, time: Time, request: &Request, session: &SessionInfo) {
        let Some(denied) = &request.decision.denied else {
            self.not_by_policies = self.not_by_policies.saturating_add(1);
            return;
        };
        let statement = Statements::of(denied.observed, request.kind == RequestKind::Prepare);
        self.statements.add(statement);
        let grantee = self.grantee(session);
        // Columns may part what is one thing; the statement counts once for it.
        let mut things: BTreeMap<Thing, Seen> = BTreeMap::new();
        for access in &denied.accesses {
            let Some(&action) = Action::ALL.iter().find(|action| action.name() == access.action) else {
                self.unreadable = self.unreadable.saturating_add(1);
                continue;
            };
            let thing = thing(action, access);
            let seen = things.entry(thing).or_insert_with(|| Seen::new(statement, time, session));
            seen.columns(&access.columns, access.all_columns);
        }
        for (thing, seen) in things {
            let key = (grantee.clone(), thing);
            if let Some(known) = self.seen.get_mut(&key) {
                known.merge(seen);
            } else if self.seen.len() < MOST_SEEN {
                self.seen.insert(key, seen);
            } else {
                self.beyond = self.beyond.saturating_add(1);
            }
        }
    }

    fn grantee(&self, session: &SessionInfo) -> Grantee {
        let groups = Grantee::Groups(session.groups.iter().cloned().collect::<BTreeSet<_>>());
        match self.whom {
            Whom::Groups if session.groups.len() <= MOST_GROUPS && groups.can_be_named() => groups,
            Whom::Groups | Whom::Agent => Grantee::Agent(session.agent.clone()),
        }
    }
}

fn thing(action: Action, access: &DeniedAccess) -> Thing {
    let DeniedAccess { kind, id, forbidden_by, unmet, .. } = access;
    let why = match action.class() {
        Class::Admin => Some(Why::Admin),
        Class::Unknown => Some(Why::Unknown),
        Class::Read | Class::Write | Class::Ddl | Class::Code | Class::Session => None,
    };
    let forbidden = (!forbidden_by.is_empty()).then(|| Why::Forbidden(forbidden_by.clone()));
    let unmet = (!unmet.is_empty()).then(|| Why::Conditions(unmet.clone()));
    let why = why.or(forbidden).or(unmet);
    match (why, Entity::new(kind, id).filter(|_| id.len() <= LONGEST_ID)) {
        (None, Some(entity)) => Thing::Permittable(entity, action),
        (None, None) => Thing::Left(Why::Unnamable, named(kind, id), action),
        (Some(why), _) => Thing::Left(why, named(kind, id), action),
    }
}

/// An entity's name, for a line that is only read: harmless already.
fn named(kind: &str, id: &str) -> String {
    line(&format!("{kind} {id}"), SHOWN)
}

#[cfg(test)]
mod tests;
