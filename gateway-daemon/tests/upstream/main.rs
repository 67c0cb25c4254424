//! The road to real servers, and the TLS that agents see, with PostgreSQL and libpq as they are installed.

// All of it is test code, and clippy takes a helper for that only below `cfg(test)`.
#[cfg(test)]
mod all {
    mod agent_tls;
    mod authentication;
    mod certificates;
    mod client_certificates;
    mod hostile;
    mod modes;
    mod queries;
    mod renewed;
    mod server;
    mod several;
    mod versions;
}
