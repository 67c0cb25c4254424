//! Who an agent is: what a verified token said, and nothing of the token itself.

use std::{sync::Arc, time::SystemTime};

/// A subject, qualified by the issuer that vouches for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The issuer's URL, exactly as in the token's `iss`.
    pub issuer: Arc<str>,
    /// The token's `sub`.
    pub subject: Arc<str>,
}

/// A group, qualified by the configured name of its issuer: `corp/developers`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(pub Arc<str>);

/// A verified identity, as policies and the record see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The agent's configured name.
    pub agent: Arc<str>,
    /// Who the token speaks for.
    pub subject: Subject,
    /// Its groups, sorted, without doubles.
    pub groups: Vec<Group>,
    /// The token's `jti`, where it has one.
    pub token_id: Option<String>,
    /// The token's `act` claim (RFC 8693 section 4.1) as JSON, where it has one. For the record, never for a decision.
    pub actor: Option<String>,
    /// SHA-256 of the token as it was presented.
    pub token_sha256: [u8; 32],
    /// When the token ends; from then on the agent is refused.
    pub expires: SystemTime,
}
