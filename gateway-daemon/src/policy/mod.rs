//! Step "decide": accesses become a decision, by Cedar policies. Knows neither tokio nor the configuration.
//!
//! In come a folder of policies ([`PolicySet::load`]) and a [`Query`]; out goes a [`Decision`], and from an allowing one
//! a [`Clearance`]; from a denying one as well where the connection observes, once the record says so. What always holds: a set with a fault is no set; a statement is allowed only when every access of it
//! is permitted, none is forbidden and no policy failed; and the answer of a slice is that of the whole set.
//!
//! The language is that of docs.cedarpolicy.com, its words are those of [`SCHEMA`].

mod ask;
mod check;
mod decide;
mod decision;
mod doc;
mod examine;
mod explain;
mod fault;
mod guarded;
mod holder;
mod load;
mod names;
mod permit;
mod rule;
mod schema;
mod set;
mod slice;
mod source;
mod trial;

pub use check::{Check, check};
pub use decide::{Decided, Had, MAX_ACCESSES, Query};
pub use decision::{
    Clearance, Decision, DeniedAccess, Denier, EffectClearance, ForRecord, LiftOnRecord, Lifted, Lifts, Mode,
    NotCleared, PolicyId, PolicySetId, ReadClearance, Refusal, Verdict,
};
pub use doc::{Document, Row, doc};
pub use explain::{ExplainedAccess, Explanation, PolicyNote, explain};
pub use fault::{Fault, FaultKind, LoadErrors};
pub use guarded::check_guarded;
pub use holder::{Policies, Reload};
pub use load::{Known, Loaded};
pub use names::NameFault;
pub use permit::{Entity, Extent, Grantee, Permit};
pub use rule::Effect;
pub use schema::SCHEMA;
pub use set::PolicySet;
pub use source::{Place, Source};
