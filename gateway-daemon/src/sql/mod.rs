//! Step "understand": a statement becomes a list of accesses. Knows neither tokio nor the configuration.

mod access;

pub use access::{Access, Action, Class, Columns, Name, Object};
