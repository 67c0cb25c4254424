//! An agent's PostgreSQL session through Weir: real kernel, real server, real clients.

#[path = "session/cancel.rs"]
mod cancel;
#[path = "session/clients.rs"]
mod clients;
#[path = "session/flood.rs"]
mod flood;
#[path = "session/identity.rs"]
mod identity;
#[path = "session/limits.rs"]
mod limits;
#[path = "session/messages.rs"]
mod messages;
#[path = "session/player.rs"]
mod player;
#[path = "session/pools.rs"]
mod pools;
#[path = "session/record.rs"]
mod record;
#[path = "session/refusals.rs"]
mod refusals;
#[path = "session/row_security.rs"]
mod row_security;
#[path = "session/same.rs"]
mod same;
#[path = "session/schema.rs"]
mod schema;
#[path = "session/several.rs"]
mod several;
#[path = "session/show.rs"]
mod show;
#[path = "session/versions.rs"]
mod versions;
