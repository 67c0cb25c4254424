//! Which rows someone asked for.

use serde::{Deserialize, Serialize};

use super::{
    super::{Event, KernelRefusal, Request, SessionId, Time},
    log::SessionInfo,
};
use crate::sql::{Action, Class};

/// What of the log is wanted: all conditions that are given hold. A condition that an event cannot meet (an admin event
/// has no table) leaves it out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogFilter {
    /// The agent's configured name.
    pub agent: Option<String>,
    /// The token's subject.
    pub subject: Option<String>,
    /// A group, qualified by its issuer.
    pub group: Option<String>,
    /// The connection's name.
    pub connection: Option<String>,
    /// A relation that the statement touches, `schema.name` or `name`.
    pub table: Option<String>,
    /// What the statement does: an action or a class of actions, as policies name them.
    pub action: Option<String>,
    /// How it was decided.
    pub decision: Option<DecisionFilter>,
    /// From then on.
    pub since: Option<Time>,
    /// Until then, not included.
    pub until: Option<Time>,
    /// Of one session.
    pub session: Option<SessionId>,
    /// From this sequence number on.
    pub from: Option<u64>,
}

/// See [`LogFilter::decision`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecisionFilter {
    /// Allowed by the policies.
    Allow,
    /// Refused, by a policy, by Weir or by the kernel.
    Deny,
    /// Denied by the policies and let pass, since the connection observes.
    Observed,
    /// Denied by the policies or by Weir, refused or let pass.
    Unpermitted,
}

/// Which sessions are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionFilter {
    /// See [`LogFilter`].
    pub agent: Option<String>,
    /// See [`LogFilter`].
    pub subject: Option<String>,
    /// See [`LogFilter`].
    pub group: Option<String>,
    /// See [`LogFilter`].
    pub connection: Option<String>,
    /// Sessions that ended then or later, or not yet.
    pub since: Option<Time>,
    /// Sessions that began before.
    pub until: Option<Time>,
}

/// What the filter says of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Show,
    /// Shown when its request was.
    AsItsRequest,
    Hide,
}

impl LogFilter {
    pub(super) fn judge(&self, event: &Event, session: Option<&SessionInfo>) -> Verdict {
        if !self.session_passes(event, session) {
            return Verdict::Hide;
        }
        let of_requests = self.table.is_some() || self.action.is_some();
        let show = match event {
            Event::Request(request) => self.request_passes(request),
            Event::Outcome(_) | Event::Answer(_) | Event::CopyIn(_) => {
                return Verdict::AsItsRequest;
            }
            Event::Refused(_) => !of_requests && matches!(self.decision, None | Some(DecisionFilter::Deny)),
            Event::SessionStart(_) | Event::SessionEnd(_) | Event::Admin(_) => !of_requests && self.decision.is_none(),
        };
        if show { Verdict::Show } else { Verdict::Hide }
    }

    fn session_passes(&self, event: &Event, session: Option<&SessionInfo>) -> bool {
        let of_session = self.subject.is_some() || self.group.is_some() || self.connection.is_some();
        match (event, session) {
            (_, Some(session)) => {
                same(self.agent.as_deref(), &session.agent)
                    && same(self.subject.as_deref(), &session.subject)
                    && self.group.as_ref().is_none_or(|group| session.groups.contains(group))
                    && same(self.connection.as_deref(), &session.connection)
                    && self.session.is_none_or(|id| id == session.id)
            }
            (Event::Refused(KernelRefusal { agent: Some(agent), .. }), None) => {
                same(self.agent.as_deref(), agent) && !of_session && self.session.is_none()
            }
            // Nothing is known of whose it is.
            (_, None) => {
                let this = self.session.is_none_or(|id| event.session() == Some(id));
                this && self.agent.is_none() && !of_session
            }
        }
    }

    fn request_passes(&self, request: &Request) -> bool {
        let decided = match self.decision {
            None => true,
            Some(DecisionFilter::Allow) => request.decision.allowed,
            Some(DecisionFilter::Deny) => !request.decision.passed(),
            Some(DecisionFilter::Observed) => request.decision.is_observed(),
            Some(DecisionFilter::Unpermitted) => !request.decision.allowed,
        };
        // One access has to meet both: a read of this table, not a read and this table somewhere.
        let touches = |access: &String| {
            let (action, object) = access.split_once(' ').unwrap_or((access, ""));
            let object = object.split_once(" (").map_or(object, |(object, _)| object);
            self.action.as_ref().is_none_or(|wanted| action_is(action, wanted))
                && self.table.as_ref().is_none_or(|wanted| object_is(object, wanted))
        };
        decided && (self.table.is_none() && self.action.is_none() || request.accesses.iter().any(touches))
    }
}

impl SessionFilter {
    pub(super) fn passes(&self, session: &SessionInfo, start: Time, end: Option<Time>) -> bool {
        same(self.agent.as_deref(), &session.agent)
            && same(self.subject.as_deref(), &session.subject)
            && self.group.as_ref().is_none_or(|group| session.groups.contains(group))
            && same(self.connection.as_deref(), &session.connection)
            && self.since.is_none_or(|since| end.is_none_or(|end| end >= since))
            && self.until.is_none_or(|until| start < until)
    }
}

fn same(wanted: Option<&str>, is: &str) -> bool {
    wanted.is_none_or(|wanted| wanted == is)
}

/// `wanted` may name the action or its class.
fn action_is(action: &str, wanted: &str) -> bool {
    let class = Action::ALL.iter().find(|known| known.name() == action).map(|known| known.class());
    action == wanted || class.map(Class::name) == Some(wanted)
}

/// `wanted` may leave the schema out.
fn object_is(object: &str, wanted: &str) -> bool {
    object == wanted || object.rsplit_once('.').is_some_and(|(_, name)| name == wanted)
}
