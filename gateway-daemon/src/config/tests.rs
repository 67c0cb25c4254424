//! The configuration's faults as people are told them, and its reference in the README.

use std::{collections::BTreeSet, path::Path};

use super::{Config, Guard, Network, UpstreamTls, raw};

const GOOD: &str = r#"
[[issuer]]
name = "corp"
issuer = "https://idp.example"
audience = "weir"
algorithms = ["RS256"]

[[agent]]
name = "claude"
user = "agent-claude"
issuer = "corp"

[[connection]]
name = "orders"
protocol = "postgres"
host = "db.internal"
targets = ["10.0.0.0/16:5432"]
user = "weir_orders"
password = { file = "/etc/weir/orders.password" }
"#;

fn faults(text: &str) -> String {
    match Config::parse(Path::new("weir.toml"), text) {
        Ok(_) => panic!("taken"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_good_configuration_has_safe_defaults() {
    let config = Config::parse(Path::new("weir.toml"), GOOD).unwrap();
    assert_eq!(config.connections[0].tls, UpstreamTls::VerifyFull);
    assert_eq!(config.daemon.guard, Guard::Host);
    assert_eq!((config.daemon.scope.as_str(), config.daemon.listener_port), ("/", 943));
}

#[test]
fn all_faults_are_told_at_once_with_line_key_and_mend() {
    let text = GOOD
        .replace("RS256", "HS256")
        .replace("\"agent-claude\"\nissuer = \"corp\"", "\"root\"\nissuer = \"other\"")
        .replace("10.0.0.0/16", "10.0.0.1/16")
        .replace("postgres", "oracle");
    insta::assert_snapshot!(faults(&text));
}

#[test]
fn an_unknown_key_names_its_line() {
    insta::assert_snapshot!(faults(&GOOD.replace("host =", "hots =")));
}

#[test]
fn networks_are_parsed_or_refused() {
    for good in ["127.0.0.1:5432", "10.0.0.0/8:1", "[::1]:5432", "[fd00::]/8:5432", "0.0.0.0/0:5432"] {
        assert!(good.parse::<Network>().is_ok(), "{good}");
    }
    for bad in ["127.0.0.1", "10.0.0.0/33:1", "::1:5432", "10.0.0.1/8:5432", "x:1", "1.2.3.4:0", "1.2.3.4:70000"] {
        assert!(bad.parse::<Network>().is_err(), "{bad}");
    }
}

#[test]
fn weirs_cgroup_lies_below_the_scope() {
    let text = format!("[daemon]\nscope = \"/a\"\ncgroup = \"/ab/c\"\n{GOOD}");
    assert!(faults(&text).contains("must lie below the scope"));
}

#[test]
fn a_value_of_another_type_is_told_in_the_words_of_the_file() {
    for (wrong, mend) in [
        (format!("[daemon]\nlistener_port = \"943\"\n{GOOD}"), "a whole number from 0 to 65535, without quotes"),
        (GOOD.replace("[[agent]]", "[agent]"), "so its header has two brackets: `[[agent]]`"),
        (GOOD.replace("[\"RS256\"]", "\"RS256\""), "a list"),
        (GOOD.replace("\"weir_orders\"", "7"), "a text in quotes"),
    ] {
        let faults = faults(&wrong);
        assert!(faults.starts_with("weir.toml:") && faults.contains(mend), "{faults}");
    }
}

/// The names that the parser takes where it met an unknown one.
fn known(message: &str) -> BTreeSet<String> {
    let (_, expected) = message.split_once("expected ").unwrap();
    expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_readme_names_every_table_and_key_that_exists_and_no_other() {
    let readme = include_str!("../../../README.md");
    let (_, reference) = readme.split_once("## Configuration\n").unwrap();
    let (reference, _) = reference.split_once("\n## ").unwrap();
    let keys_of = |text: &str| known(toml::from_str::<raw::Root>(text).err().unwrap().message());
    let mut tables = BTreeSet::new();
    for section in reference.split("\n### ").skip(1) {
        let heading = section.split('`').nth(1).unwrap();
        tables.insert(heading.trim_matches(['[', ']']).to_owned());
        let keys = section.lines().filter_map(|row| row.strip_prefix("| `")?.split('`').next());
        // The table of credentials has references in its first column.
        let keys: BTreeSet<String> = keys.filter(|key| !key.contains([' ', '{'])).map(str::to_owned).collect();
        assert_eq!(keys, keys_of(&format!("{heading}\n\"?\" = 1")), "{heading}");
    }
    assert_eq!(tables, keys_of("\"?\" = 1"));
}
