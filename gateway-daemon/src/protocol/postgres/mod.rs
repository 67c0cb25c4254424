//! The PostgreSQL front: a core without sockets, and the tokio part around it.

pub mod tls;
pub mod upstream;
