//! Step "identify" from outside: hostile tokens, issuers that misbehave, runs, token files, and a real provider.

mod hostile;
mod issuer;
mod keys;
mod nanoidp;
mod provider;
mod registry;
mod watch;
