//! What a decision is, and the clearance that it gives to those who may forward.

use std::{fmt, sync::Arc};

use crate::sql::Access;

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
    },
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

/// Leave to forward one statement. Only an allowing decision gives one, and forwarding takes it by value.
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

/// Leave to forward what has effects, once its request is durable. Cannot be made but by [`Decision::clear`].
#[derive(Debug)]
pub struct EffectClearance(());

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
    /// The clearance of an allowing decision, or the refusal to answer with.
    ///
    /// # Errors
    /// The refusal, when the verdict is deny.
    pub fn clear(&self) -> Result<Clearance, Refusal> {
        match &self.verdict {
            Verdict::Allow if self.durable_first => Ok(Clearance::Effect(EffectClearance(()))),
            Verdict::Allow => Ok(Clearance::Read(ReadClearance(()))),
            Verdict::Deny { what, reason, access } => Err(Refusal {
                what: what.clone(),
                reason: reason.clone(),
                policies: self.policies.clone(),
                access: access.clone(),
            }),
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
