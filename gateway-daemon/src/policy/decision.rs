//! What a decision is, and the clearance that it gives to those who may forward.

use std::{fmt, sync::Arc};

use crate::sql::{Access, Action, Class, Columns};

/// The `@id` of a policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyId(pub Arc<str>);

/// SHA-256 over the policy set that decided: names which policies were in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicySetId(pub [u8; 32]);

/// What the policies say of one statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every access is permitted and none forbidden.
    Allow,
    /// At least one access is forbidden, or permitted by nothing.
    Deny {
        /// The first access that is refused, for people: `update on public.customers`.
        what: String,
        /// Why: the description of the policy that forbids, or that none permits.
        reason: String,
        /// That access itself, by which its place in the text is found.
        access: Option<Box<Access>>,
        /// Whose denial it is.
        by: Denier,
    },
    /// Denied by the policies and let pass, since the connection observes. Made by [`Decision::under`] alone.
    Lifted {
        /// See [`Verdict::Deny`].
        what: String,
        /// See [`Verdict::Deny`].
        reason: String,
        /// Every access that was denied.
        denied: Vec<DeniedAccess>,
    },
}

/// Who denies a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denier {
    /// The policies, these accesses of it, and nothing else.
    Policies(Vec<DeniedAccess>),
    /// Weir itself, whatever the policies say: a limit, a fault, what it does not understand.
    Weir,
}

/// An access that the policies deny, in their own words: what is known of it when the statement's session is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeniedAccess {
    /// What was to be done.
    pub action: Action,
    /// The entity's type: `Table`.
    pub kind: &'static str,
    /// The entity's name: `orders/shop/public/customers`.
    pub id: String,
    /// Which columns.
    pub columns: Columns,
    /// The policies that forbid it; empty where none permits it.
    pub forbidden_by: Vec<PolicyId>,
    /// Where none permits it, permits whose scope it is in, but whose conditions did not hold.
    pub unmet: Vec<PolicyId>,
}

/// What becomes of the policies' denials on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The statement is refused.
    Enforce,
    /// The statement passes, and the record says that it was denied.
    Observe(Lifts),
}

/// Which denials a connection lifts that observes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifts {
    /// Of every action.
    Everything,
    /// Of every action but `unknown`: what is not understood cannot be masked either.
    AllButUnknown,
}

/// One decision, with the policies that said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Allow or deny.
    pub verdict: Verdict,
    /// The policies that determined it; empty where nothing permits.
    pub policies: Vec<PolicyId>,
    /// The policy set.
    pub set: PolicySetId,
    /// Whether any access is of a class that must be durable before it is forwarded.
    pub durable_first: bool,
}

/// Leave to forward one statement. Only a decision gives one, and forwarding takes it by value.
#[derive(Debug)]
pub enum Clearance {
    /// May be forwarded at once.
    Read(ReadClearance),
    /// May be forwarded with the receipt of its request.
    Effect(EffectClearance),
}

/// Leave to forward a read. Cannot be made but by [`Decision::clear`].
#[derive(Debug)]
pub struct ReadClearance(());

/// Leave to forward what has effects, once its request is durable. Cannot be made but by [`Decision::clear`] and
/// [`Lifted::recorded`].
#[derive(Debug)]
pub struct EffectClearance(());

/// A denial that is lifted. It becomes a clearance when the record says so.
#[derive(Debug)]
pub struct Lifted(Refusal);

/// The request's event says that its denial is lifted. Comes with the words for that event ([`Decision::for_record`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiftOnRecord(());

/// What of a decision the request's event keeps.
#[derive(Debug)]
pub struct ForRecord<'a> {
    /// Whether the policies allow it.
    pub allowed: bool,
    /// Why not; empty when they do.
    pub reason: String,
    /// What the policies deny of it.
    pub denied: &'a [DeniedAccess],
    /// That the denial is lifted, if it is.
    pub lifted: Option<LiftOnRecord>,
}

/// Why a decision gives no clearance by itself.
#[derive(Debug)]
pub enum NotCleared {
    /// It refuses.
    Refused(Refusal),
    /// It denies, and the connection observes.
    Lifted(Lifted),
}

/// A denied statement: what is told to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The access that was refused.
    pub what: String,
    /// Why.
    pub reason: String,
    /// The policies that forbid; empty where none permits.
    pub policies: Vec<PolicyId>,
    /// The access that was refused, where it is one.
    pub access: Option<Box<Access>>,
}

impl Decision {
    /// The decision as the connection's mode has it. Lifts what the policies alone deny, and all of it or nothing.
    #[must_use]
    pub fn under(mut self, mode: Mode) -> Self {
        let Mode::Observe(lifts) = mode else { return self };
        self.verdict = match self.verdict {
            Verdict::Deny { what, reason, by: Denier::Policies(denied), .. }
                if denied.iter().all(|denied| lifts.covers(denied.action)) =>
            {
                self.durable_first = true;
                Verdict::Lifted { what, reason, denied }
            }
            verdict @ (Verdict::Allow | Verdict::Deny { .. } | Verdict::Lifted { .. }) => verdict,
        };
        self
    }

    /// The clearance of an allowing decision.
    ///
    /// # Errors
    /// The refusal to answer with, or what becomes a clearance once it is on the record.
    pub fn clear(&self) -> Result<Clearance, NotCleared> {
        match &self.verdict {
            Verdict::Allow if self.durable_first => Ok(Clearance::Effect(EffectClearance(()))),
            Verdict::Allow => Ok(Clearance::Read(ReadClearance(()))),
            Verdict::Deny { what, reason, access, .. } => {
                Err(NotCleared::Refused(self.refusal(what, reason, access.clone())))
            }
            Verdict::Lifted { what, reason, .. } => Err(NotCleared::Lifted(Lifted(self.refusal(what, reason, None)))),
        }
    }

    /// What the request's event is to say.
    pub fn for_record(&self) -> ForRecord<'_> {
        let reason = |what: &str, reason: &str| format!("{what}: {reason}");
        match &self.verdict {
            Verdict::Allow => ForRecord { allowed: true, reason: String::new(), denied: &[], lifted: None },
            Verdict::Deny { what, reason: why, by, .. } => {
                let denied = match by {
                    Denier::Policies(denied) => denied.as_slice(),
                    Denier::Weir => &[],
                };
                ForRecord { allowed: false, reason: reason(what, why), denied, lifted: None }
            }
            Verdict::Lifted { what, reason: why, denied } => {
                let lifted = Some(LiftOnRecord(()));
                ForRecord { allowed: false, reason: reason(what, why), denied, lifted }
            }
        }
    }

    fn refusal(&self, what: &str, reason: &str, access: Option<Box<Access>>) -> Refusal {
        Refusal { what: what.to_owned(), reason: reason.to_owned(), policies: self.policies.clone(), access }
    }
}

impl Lifted {
    /// The clearance, for a request whose event says that its denial is lifted: it is forwarded when that is durable.
    ///
    /// # Errors
    /// The refusal, where no event says so.
    pub fn recorded(self, on_record: Option<LiftOnRecord>) -> Result<Clearance, Refusal> {
        match on_record {
            Some(LiftOnRecord(())) => Ok(Clearance::Effect(EffectClearance(()))),
            None => Err(self.0),
        }
    }
}

impl Lifts {
    fn covers(self, action: Action) -> bool {
        match self {
            Self::Everything => true,
            Self::AllButUnknown => action.class() != Class::Unknown,
        }
    }
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PolicySetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(actions: &[Action]) -> Vec<DeniedAccess> {
        let denied = |&action| {
            let id = "orders/shop".to_owned();
            DeniedAccess {
                action,
                kind: "Database",
                id,
                columns: Columns::None,
                forbidden_by: Vec::new(),
                unmet: Vec::new(),
            }
        };
        actions.iter().map(denied).collect()
    }

    fn decision(verdict: Verdict) -> Decision {
        Decision { verdict, policies: Vec::new(), set: PolicySetId([0; 32]), durable_first: false }
    }

    fn deny(by: Denier) -> Decision {
        decision(Verdict::Deny { what: "it".into(), reason: "so".into(), access: None, by })
    }

    /// Each mode with each denial: whether it is lifted.
    #[test]
    fn only_what_the_policies_alone_deny_is_lifted_and_only_where_the_connection_observes() {
        let (unknown, known) = (&[Action::Select, Action::Unknown][..], &[Action::Select, Action::Host][..]);
        for (mode, by, lifted) in [
            (Mode::Enforce, Denier::Policies(denied(known)), false),
            (Mode::Enforce, Denier::Weir, false),
            (Mode::Observe(Lifts::Everything), Denier::Policies(denied(known)), true),
            (Mode::Observe(Lifts::Everything), Denier::Policies(denied(unknown)), true),
            (Mode::Observe(Lifts::Everything), Denier::Weir, false),
            (Mode::Observe(Lifts::AllButUnknown), Denier::Policies(denied(known)), true),
            (Mode::Observe(Lifts::AllButUnknown), Denier::Policies(denied(unknown)), false),
            (Mode::Observe(Lifts::AllButUnknown), Denier::Weir, false),
        ] {
            let case = format!("{mode:?} {by:?}");
            let decided = deny(by).under(mode);
            assert_eq!(matches!(decided.verdict, Verdict::Lifted { .. }), lifted, "{case}");
            assert_eq!(decided.for_record().lifted.is_some(), lifted, "{case}");
            assert!(!decided.for_record().allowed, "{case}: the record says what the policies say");
            assert_eq!(matches!(decided.clear(), Err(NotCleared::Lifted(_))), lifted, "{case}");
        }
        let allowed = decision(Verdict::Allow).under(Mode::Observe(Lifts::Everything));
        assert!(matches!(allowed.clear(), Ok(Clearance::Read(_))));
    }

    #[test]
    fn a_lifted_read_waits_for_its_record_and_without_one_it_is_refused() {
        let decided = deny(Denier::Policies(denied(&[Action::Select]))).under(Mode::Observe(Lifts::Everything));
        let lifted = || match decided.clear() {
            Err(NotCleared::Lifted(lifted)) => lifted,
            other => panic!("{other:?}"),
        };
        assert!(matches!(lifted().recorded(decided.for_record().lifted), Ok(Clearance::Effect(_))));
        assert_eq!(lifted().recorded(None).unwrap_err().reason, "so");
    }
}
