//! `sql` by its public face: what statements of every kind are read as, on the catalogue of the corpora's database.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

#[path = "sql/cache.rs"]
mod cache;
#[path = "sql/cases.rs"]
mod cases;
#[path = "sql/corpora.rs"]
mod corpora;
#[path = "sql/limits.rs"]
mod limits;
#[path = "sql/support.rs"]
mod support;
