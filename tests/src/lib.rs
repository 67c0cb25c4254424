//! End-to-end tests: real servers, real clients, real kernel.
//!
//! `cargo xtask test` starts the servers that all tests share, and says in a file where they are ([`servers`]). Each
//! test has a [`Database`] of its own there, people of its own at the identity provider ([`Person`]) and a
//! [`Weir`] of its own, in a [`Scope`] that parts it from its neighbours: tests run side by side.

mod claim;
mod database;
pub mod kernel_support;
mod program;
mod scope;
mod servers;
mod tokens;
mod weir;

pub use claim::{Port, UnixUser};
pub use database::Database;
pub use program::{Program, Ran, wait_until};
pub use scope::Scope;
pub use servers::{Idp, PostgresServer, Servers, servers};
pub use tokens::{Person, sign};
pub use weir::{Agent, Setup, Weir};

/// How often to do something that is done at random: `ci` times, or `long` times under `cargo xtask long NAME`.
pub fn rounds(ci: u32, long: u32) -> u32 {
    if std::env::var_os("WEIR_TEST_LONG").is_some() { long } else { ci }
}
