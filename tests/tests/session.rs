//! An agent's PostgreSQL session through Weir: real kernel, real server, real clients.

#[path = "session/cancel.rs"]
mod cancel;
#[path = "session/clients.rs"]
mod clients;
#[path = "session/identity.rs"]
mod identity;
#[path = "session/messages.rs"]
mod messages;
#[path = "session/player.rs"]
mod player;
#[path = "session/record.rs"]
mod record;
#[path = "session/refusals.rs"]
mod refusals;
#[path = "session/same.rs"]
mod same;
#[path = "session/show.rs"]
mod show;
