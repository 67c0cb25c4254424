//! Step "decide": accesses become a decision, by Cedar policies. Knows neither tokio nor the configuration.

mod decision;

pub use decision::{Clearance, Decision, EffectClearance, PolicyId, PolicySetId, ReadClearance, Refusal, Verdict};
