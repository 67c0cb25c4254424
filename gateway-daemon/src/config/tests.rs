//! The configuration's faults as people are told them, and its reference in the README.

use std::{collections::BTreeSet, path::Path};

use super::{Config, Egress, EgressMode, Guard, Network, UpstreamTls, raw};
use crate::limits::AgentLimits;

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
fn egress_is_databases_unless_it_is_said_and_each_entry_has_its_reason() {
    let config = Config::parse(Path::new("weir.toml"), GOOD).unwrap();
    assert_eq!(config.agents[0].egress, Egress::default());
    assert_eq!(config.agents[0].egress.mode, EgressMode::Databases);
    let with = |lines: &str| GOOD.replace("user = \"agent-claude\"", &format!("user = \"agent-claude\"\n{lines}"));
    let good = with("egress = \"closed\"\negress_allow = [{ address = \"10.0.0.5:443\", reason = \"registry\" }]");
    let config = Config::parse(Path::new("weir.toml"), &good).unwrap();
    assert_eq!(config.agents[0].egress.mode, EgressMode::Closed);
    assert_eq!(config.agents[0].egress.allow[0].target.to_string(), "10.0.0.5:443");
    insta::assert_snapshot!(faults(&with(
        "egress = \"shut\"\negress_allow = [{ address = \"db:443\", reason = \"x\" }, { address = \"10.0.0.5:1\", reason = \" \" }]"
    )));
    insta::assert_snapshot!(faults(&with(
        "egress = \"open\"\negress_allow = [{ address = \"10.0.0.5:443\", reason = \"x\" }]"
    )));
    assert!(faults(&with("egress_allow = [{ address = \"10.0.0.5:443\" }]")).contains("reason: is missing"));
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
fn an_agent_has_the_limits_of_all_but_for_its_own() {
    let text = GOOD.replace("user = \"agent-claude\"", "user = \"agent-claude\"\nlimits = { rows_per_hour = 5 }");
    let text = format!("{text}\n[limits.agent]\nrows_per_hour = 7\nconnections = 3\n");
    let config = Config::parse(Path::new("weir.toml"), &text).unwrap();
    assert_eq!((config.limits.agent.rows_per_hour, config.limits.agent.connections), (7, 3));
    assert_eq!(config.agents[0].limits, AgentLimits { rows_per_hour: 5, ..config.limits.agent });
    for (wrong, where_) in [
        (text.replace("rows_per_hour = 5", "rows_per_hour = 0"), "agent \"claude\".rows_per_hour"),
        (text.replace("connections = 3", "store_share = 101"), "limits.agent.store_share"),
    ] {
        let faults = faults(&wrong);
        assert!(faults.contains(where_) && faults.contains("is out of range; use 1 to "), "{faults}");
    }
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
        let name = heading.trim_matches(['[', ']']);
        // A table within another is a key of that one.
        if !name.contains('.') {
            tables.insert(name.to_owned());
        }
        let keys = section.lines().filter_map(|row| row.strip_prefix("| `")?.split('`').next());
        // The table of credentials has references in its first column.
        let keys: BTreeSet<String> = keys.filter(|key| !key.contains([' ', '{'])).map(str::to_owned).collect();
        assert_eq!(keys, keys_of(&format!("{heading}\n\"?\" = 1")), "{heading}");
    }
    assert_eq!(tables, keys_of("\"?\" = 1"));
}

#[test]
fn several_servers_stand_in_place_of_one_and_share_the_port() {
    let several = |hosts: &str| GOOD.replace("host = \"db.internal\"", hosts);
    let text = several("hosts = [\"a:6000\", \"b\"]\ntarget_session_attrs = \"prefer-standby\"\nport = 6432");
    let config = Config::parse(Path::new("weir.toml"), &text).unwrap();
    let hosts: Vec<_> = config.connections[0].hosts.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["a:6000", "b:6432"]);
    assert_eq!(config.connections[0].attributes, super::SessionAttributes::PreferStandby);
    for (hosts, mend) in [
        ("", "orders\": names no server; set `host`, or `hosts` to several"),
        ("host = \"a\"\nhosts = [\"b\"]", "put all servers into `hosts`"),
        ("hosts = [\"a\", \"b:0\"]", "hosts: `b:0` is no server; write `db.internal:5432`"),
        ("hosts = [\"a\", \"A:5432\"]", "hosts: `A:5432` stands twice; name each server once"),
        (
            "host = \"a\"\ntarget_session_attrs = \"master\"",
            "target_session_attrs: `master` is no server's state; use `any`, `read-write`",
        ),
    ] {
        let faults = faults(&several(hosts));
        assert!(faults.contains(mend), "{hosts}: {faults}");
    }
}

#[test]
fn a_client_certificate_is_a_pair_and_needs_tls() {
    let with = |keys: &str| GOOD.replace("host = ", &format!("{keys}\nhost = "));
    let pair = "client_cert_file = \"/etc/weir/c.pem\"\nclient_key_file = \"/etc/weir/k.pem\"";
    let config = Config::parse(Path::new("weir.toml"), &with(pair)).unwrap();
    assert_eq!(config.connections[0].client_certificate, Some(("/etc/weir/c.pem".into(), "/etc/weir/k.pem".into())));
    for (keys, mend) in [
        ("client_cert_file = \"/c\"", "client_cert_file: stands without `client_key_file`"),
        ("client_key_file = \"/k\"", "client_key_file: stands without `client_cert_file`"),
        ("client_cert_file = \"c\"\nclient_key_file = \"/k\"", "client_cert_file: `c` must be an absolute path"),
        (&format!("{pair}\ntls = \"disable\""), "is never shown with `tls = \"disable\"`"),
    ] {
        let faults = faults(&with(keys));
        assert!(faults.contains(mend), "{keys}: {faults}");
    }
}
