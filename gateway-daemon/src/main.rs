//! The `weir` binary.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use gateway_daemon::launch;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let verb = arguments.next().unwrap_or_default();
    let done = match verb.to_str() {
        Some("launcher") => launch::launcher_main().map(|()| 0).map_err(|e| (e.to_string(), 1)),
        Some("run") => run(arguments),
        _ => Err(("usage: weir run --control SOCKET --agent NAME -- COMMAND…".to_owned(), 2)),
    };
    match done {
        Ok(code) => code.into(),
        Err((message, code)) => {
            eprintln!("weir: {message}");
            code.into()
        }
    }
}

fn run(mut arguments: impl Iterator<Item = OsString>) -> Result<u8, (String, u8)> {
    let (mut control, mut agent) = (PathBuf::from("/run/weir/control.sock"), String::new());
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--") => break,
            Some("--control") => control = arguments.next().unwrap_or_default().into(),
            Some("--agent") => {
                agent = arguments.next().unwrap_or_default().to_string_lossy().into_owned();
            }
            _ => return Err((format!("unknown argument `{}`", argument.display()), 2)),
        }
    }
    let argv = arguments.map(|argument| argument.as_os_str().into()).collect();
    let options = launch::client::RunOptions { control, agent, token_file: None, argv };
    launch::client::run(options).map_err(|error| (error.to_string(), error.exit_code()))
}
