//! Step "identify": the cgroup leads to the enrolled run, the run to a verified identity.

mod agent;

pub use agent::{Group, Identity, Subject};
