//! What people are told before they do anything: help, and the README.

use clap::{Command, CommandFactory, Parser};

use super::{Cli, told};

/// The command line with all that parsing would add, as wide as it is on most terminals.
fn command() -> Command {
    let mut command = Cli::command().term_width(100);
    command.build();
    command
}

/// Each verb that people see, those below it included, by its words: `weir agent list`.
fn verbs(of: &Command) -> Vec<Command> {
    let seen = |verb: &&Command| !verb.is_hide_set() && verb.get_name() != "help";
    let below = of.get_subcommands().filter(seen).flat_map(|verb| [vec![verb.clone()], verbs(verb)].concat());
    below.collect()
}

fn words(verb: &Command) -> String {
    verb.get_bin_name().unwrap_or_else(|| verb.get_name()).to_owned()
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn every_verb_s_help_is_its_snapshot() {
    let command = command();
    for mut verb in [vec![command.clone()], verbs(&command)].concat() {
        insta::assert_snapshot!(words(&verb).replace(' ', "-"), verb.render_long_help());
    }
}

#[test]
fn every_verb_s_help_has_examples_of_itself() {
    for mut verb in verbs(&command()) {
        let (words, help) = (words(&verb), verb.render_long_help().to_string());
        let examples = help.split_once("\nExamples:\n").map(|(_, examples)| examples.to_owned());
        let examples = examples.unwrap_or_else(|| panic!("`{words}` has no examples"));
        assert!(examples.contains(&format!("  {words}")) || examples.contains(&format!(" {words}")), "{examples}");
    }
}

#[test]
fn the_readme_names_every_verb() {
    let readme = include_str!("../../../README.md");
    let (_, section) = readme.split_once("## The verbs").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let command = command();
    for verb in verbs(&command).iter().filter(|verb| !verb.has_subcommands()) {
        let (words, last) = (words(verb), verb.get_name());
        let (group, _) = words.rsplit_once(' ').unwrap();
        let short = format!("{} ", group.trim_start_matches("weir "));
        // In a row, the first verb has all its words; those behind it may leave the first ones out.
        let mut names =
            section.lines().filter(|row| row.contains(&format!("`{group} "))).flat_map(|row| row.split('`'));
        let is_named = names.any(|name| {
            let own = name.strip_prefix(&format!("{group} ")).or_else(|| name.strip_prefix(&short)).unwrap_or(name);
            own.split(' ').next() == Some(last)
        });
        assert!(is_named, "`{words}` is in no row of the README's table");
    }
}

#[test]
fn a_wrong_word_is_answered_with_the_right_ones() {
    for (words, mend) in [
        (["log", "--since", "nonsense"], "15m, 2h, 7d"),
        (["log", "--action", "fly"], "read, select"),
        (["log", "--session", "xyz"], "16 hex digits"),
        (["log", "--decision", "maybe"], "allow, deny"),
        (["logs", "--agent", "claude"], "'log'"),
    ] {
        let said = Cli::try_parse_from(["weir"].iter().chain(&words)).unwrap_err().to_string();
        assert!(said.contains(mend), "{said}");
    }
}

#[test]
fn an_error_tells_each_cause_once() {
    let cause = || anyhow::anyhow!("no such file");
    assert_eq!(told(&cause().context("cannot read x")), "cannot read x: no such file");
    assert_eq!(told(&cause().context("cannot read x: no such file")), "cannot read x: no such file");
}

#[test]
fn the_manual_has_a_page_for_every_verb_and_each_shell_its_completions() {
    let folder = tempfile::tempdir().unwrap();
    super::manual::man(folder.path()).unwrap();
    for verb in verbs(&command()) {
        let (words, page) = (words(&verb), folder.path().join(words(&verb).replace(' ', "-") + ".1"));
        let page = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(page.contains(".SH SYNOPSIS") && page.contains("Examples:"), "{words}: {page}");
    }
    for shell in <clap_complete::Shell as clap::ValueEnum>::value_variants() {
        let mut script = Vec::new();
        clap_complete::generate(*shell, &mut Cli::command(), "weir", &mut script);
        assert!(String::from_utf8(script).unwrap().contains("policy"), "{shell}");
    }
}
