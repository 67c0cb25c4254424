//! Builds, tests and shows Weir: `cargo xtask --help`.

fn main() {}
