//! Weir, the library behind the `weir` binary. The modules stand in the order in which a statement meets them.
//!
//! Each step takes what the one before gave, and what may not be forgotten is a value: forwarding takes a
//! [`policy::Clearance`], releasing an answer takes a [`record::Receipt`].

pub mod redirect;

pub mod accept;

pub mod identity;

pub mod launch;

pub mod assign;

pub mod limits;

pub mod protocol;

pub mod sql;

pub mod policy;

pub mod record;

pub mod control;

pub mod cli;

pub mod config;

pub mod secret;

mod guarded;

pub mod daemon;

pub mod show;

pub mod suggest;

mod procfs;

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
