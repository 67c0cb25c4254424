//! End-to-end tests: real servers, real clients, real kernel.

pub mod kernel_support;
