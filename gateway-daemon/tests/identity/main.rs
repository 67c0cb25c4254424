//! Step "identify" from outside: hostile tokens, issuers that misbehave, runs, token files, and a real provider.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on says why and stops"
)]

mod claims;
mod good;
mod hostile;
mod issuer;
mod keys;
mod nanoidp;
mod provider;
mod providers;
mod registry;
mod tokens;
mod watch;
