//! `weir completions` and `weir man`: what shells and `man` want to know of the command line, made from it.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_complete::Shell;

use super::Cli;

/// Prints the completions of a shell.
pub(super) fn completions(shell: Shell) -> Result<ExitCode> {
    // Into memory first: whoever closes the pipe early is no error of the generator's.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "weir", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a page for each verb into `folder`: `weir.1`, `weir-policy-test.1`.
pub(super) fn man(folder: &Path) -> Result<ExitCode> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut command = Cli::command();
    command.build();
    let written = pages(&command, "weir", folder)?;
    writeln!(io::stdout().lock(), "{written} pages in {}", folder.display())?;
    Ok(ExitCode::SUCCESS)
}

fn pages(command: &Command, name: &str, folder: &Path) -> Result<usize> {
    let path = folder.join(format!("{name}.1"));
    let mut page = Vec::new();
    // The page's title is the file's name, as git's and cargo's are.
    clap_mangen::Man::new(command.clone()).title(name).render(&mut page)?;
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    let seen = |verb: &&Command| !verb.is_hide_set() && verb.get_name() != "help";
    command.get_subcommands().filter(seen).try_fold(1, |sum: usize, verb| {
        Ok(sum.saturating_add(pages(verb, &format!("{name}-{}", verb.get_name()), folder)?))
    })
}
