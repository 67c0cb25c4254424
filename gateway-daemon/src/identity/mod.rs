//! Step "identify": the cgroup leads to the enrolled run, the run to a verified identity.
//!
//! At enrolment an [`Issuer`] verifies the agent's token ([`token`] holds the rules, without I/O) and the [`Registry`]
//! keeps the run under its cgroup. From then on who accepts a connection asks the registry, by the cgroup alone, and
//! gets a [`Run`] whose [`Standing`] says whether it may still act. [`watch`] renews a standing when its token file is
//! renewed. Nothing here keeps a token once it is verified.

mod agent;
pub mod clock;
pub mod issuer;
mod json;
pub mod registry;
pub mod token;
pub mod watch;

pub use agent::{Group, Identity, Subject};
pub use issuer::{Issuer, IssuerSettings};
pub use registry::{CgroupId, Enrolment, Freeze, Registry, RegistryError, Run, RunId, Standing, Uids};
pub use token::{TokenError, Verified};
