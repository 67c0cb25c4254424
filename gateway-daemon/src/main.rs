//! The `weir` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    gateway_daemon::cli::main()
}
