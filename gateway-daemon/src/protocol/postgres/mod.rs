//! The PostgreSQL front: a core without sockets, and the tokio part around it.
//!
//! An agent's connection is opened in [`serve`]: start-up, identity, upstream. From there the [`machine`] holds the
//! session, [`pump`] moves its bytes, and [`judge`] understands and decides for it.

pub mod answer;
pub mod backend;
pub mod cancels;
pub mod catalogs;
pub mod frame;
pub mod frontend;
pub mod gate;
pub mod judge;
pub mod machine;
pub mod opening;
pub mod pump;
pub mod reserved;
pub mod serve;
pub mod startup;
pub mod tls;
pub mod upstream;
pub mod version;
