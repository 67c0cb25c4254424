//! What one agent may use up: over a limit that agent alone is refused, as PostgreSQL would, and on the record.

#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "helpers of tests fail with them")]

use std::time::{Duration, Instant};

use anyhow::Result;
use end_to_end::{Database, Setup, Weir, wait_until};
use toml::Table;

use crate::player::{Style, play};

const SCENARIOS: &str = include_str!("limits.py");
const READERS: &str = r#"
    @id("readers")
    @description("Readers read.")
    permit (principal in Group::"corp/readers", action in [Action::"read", Action::"session"], resource);
"#;

/// Two agents, of whom the first has `limits` of its own.
fn start(limits: Table, more: impl FnOnce(&mut Setup) -> Result<()>) -> Result<(Weir, Database)> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| {
        setup.policy("readers.cedar", READERS)?;
        setup.agent("greedy", &["readers"])?;
        setup.agent("modest", &["readers"])?;
        setup.connection("orders", &database)?;
        more(setup)?;
        let greedy = setup.config.get_mut("agent").and_then(|agents| agents.get_mut(0));
        let greedy = greedy.and_then(|agent| agent.as_table_mut()).expect("the first agent was declared");
        greedy.insert("limits".into(), limits.into());
        Ok(())
    })?;
    Ok((weir, database))
}

fn shown(weir: &Weir, database: &Database, scenario: &str) -> Result<Vec<String>> {
    let shown = play(&weir.agent("greedy")?, database, SCENARIOS, scenario, Style::Brief)?;
    Ok(shown.lines().map(str::to_owned).collect())
}

/// Whether each line begins as it should.
fn assert_shown(shown: &[String], expected: &[&str]) {
    let fits = shown.len() == expected.len() && shown.iter().zip(expected).all(|(line, start)| line.starts_with(start));
    assert!(fits, "expected {expected:#?}, was shown {shown:#?}");
}

fn modest_is_served(weir: &Weir, database: &Database) -> Result<()> {
    let counted = weir.agent("modest")?.psql(database, "SELECT count(*) FROM generate_series(1, 100000)")?;
    assert_eq!(counted.succeeded()?, "100000");
    Ok(())
}

/// How many statements the server runs for agents' sessions.
fn running(database: &Database) -> Result<String> {
    database.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'
         AND application_name LIKE 'weir:%'",
    )
}

const USED_UP: &str = "E 53400 Weir refused this statement: the agent has had ";

#[test]
fn an_answer_is_cut_off_where_the_amount_runs_out_and_the_session_is_as_after_an_error() -> Result<()> {
    let (weir, database) = start(toml::toml! { rows_per_hour = 5000 }, |_| Ok(()))?;
    let lines = shown(&weir, &database, "cut_off")?;
    let expected = [
        "Z I",
        "C BEGIN",
        "Z T",
        "T",
        "rows below 10000",
        USED_UP,
        "Z E",
        USED_UP,
        "Z E",
        "C ROLLBACK",
        "Z I",
        USED_UP,
        "Z I",
        USED_UP,
        "Z I",
    ];
    assert_shown(&lines, &expected);
    let told = &lines[5];
    assert!(told.contains("its limit `rows_per_hour` is 5000, free again at 20"), "{told}");
    wait_until("the server has stopped", Duration::from_secs(10), || Ok((running(&database)? == "0").then_some(())))?;
    modest_is_served(&weir, &database)?;
    let log = weir.weir(["log", "--json"])?.succeeded()?;
    assert!(log.contains("its limit `rows_per_hour` is 5000"), "{log}");
    assert!(log.lines().any(|row| row.contains("after it") && row.contains(r#""allowed":false"#)), "{log}");
    Ok(())
}

#[test]
fn pipelines_and_copies_are_cut_off_as_well() -> Result<()> {
    for (scenario, start_of_answer) in [("cut_off_in_a_pipeline", &["1", "2"][..]), ("copied", &["H"][..])] {
        let limits = toml::toml! { bytes_per_hour = 300000 };
        let (weir, database) = start(limits, |_| Ok(()))?;
        let lines = shown(&weir, &database, scenario)?;
        let (error, ready) = (USED_UP, "Z I");
        let kept: Vec<&str> = lines.iter().map(String::as_str).filter(|line| *line != "d").collect();
        assert_eq!(kept.first().copied(), Some("Z I"));
        assert!(kept.get(1..).is_some_and(|rest| rest.starts_with(start_of_answer)), "{kept:?}");
        let end: Vec<_> = kept.iter().rev().take(2).rev().collect();
        assert!(
            end[0].starts_with(error) && end[0].contains("`bytes_per_hour` is 300000") && *end[1] == ready,
            "{end:?}"
        );
        assert!(lines.len() < 100_000, "{} messages passed", lines.len());
        wait_until("the server has stopped", Duration::from_secs(10), || {
            Ok((running(&database)? == "0").then_some(()))
        })?;
    }
    Ok(())
}

#[test]
fn many_small_answers_count_like_a_big_one() -> Result<()> {
    let (weir, database) = start(toml::toml! { rows_per_hour = 1000 }, |_| Ok(()))?;
    let lines = shown(&weir, &database, "small_steps")?;
    let mut expected = vec!["Z I"];
    for _ in 0..5 {
        expected.extend(["T", "rows below 1000", "C SELECT 200", "Z I"]);
    }
    for _ in 0..4 {
        expected.extend([USED_UP, "Z I"]);
    }
    assert_shown(&lines, &expected);
    Ok(())
}

#[test]
fn over_its_rate_an_agent_is_held_back_and_nothing_is_refused() -> Result<()> {
    let (weir, database) = start(toml::toml! { statements_per_second = 20 }, |_| Ok(()))?;
    let statements = "SELECT 1;\n".repeat(60);
    let psql = end_to_end::servers()?.postgres.programs.join("psql");
    let run = |agent: &str| -> Result<(usize, Duration)> {
        let program = weir.agent(agent)?.program([&psql])?.args(["-XAtq", "-d", &database.address()?]);
        let begun = Instant::now();
        let rows = program.input(statements.clone()).run()?.succeeded()?.lines().count();
        Ok((rows, begun.elapsed()))
    };
    let (rows, took) = run("greedy")?;
    assert_eq!(rows, 60);
    assert!(took >= Duration::from_millis(1900), "a second's worth at once, and two more: {took:?}");
    assert_eq!(run("modest")?.0, 60);
    Ok(())
}

#[test]
fn who_has_filled_its_part_of_the_record_has_no_session() -> Result<()> {
    let (weir, database) = start(toml::toml! { record_bytes_per_hour = 300000 }, |_| Ok(()))?;
    let lines = shown(&weir, &database, "filled")?;
    let refused = "E 53400 Weir refused this connection: the agent has had ";
    assert_shown(&lines, &["Z I", "E 53400 Weir ended this session: the agent has had ", "closed", refused]);
    assert!(lines[1].contains("its limit `record_bytes_per_hour` is 300000, free again at 20"), "{}", lines[1]);
    modest_is_served(&weir, &database)?;
    let log = weir.weir(["log", "--json"])?.succeeded()?;
    assert!(log.contains("Weir refused this connection: the agent has had"), "{log}");
    Ok(())
}

#[test]
fn one_agent_s_share_of_the_record_s_disk_is_kept_over_a_restart_and_freed_by_removing_windows() -> Result<()> {
    // A percent of the disk could be large: a file system of its own.
    let disk = tempfile::tempdir()?;
    let mount = end_to_end::Program::new(["mount", "-t", "tmpfs", "-o", "size=64m", "weir-test"]).args([disk.path()]);
    mount.run()?.succeeded()?;
    let store = disk.path().join("record");
    let outcome = share_of_the_disk(&store);
    end_to_end::Program::new(["umount", "--lazy"]).args([disk.path()]).run()?.succeeded()?;
    outcome
}

fn share_of_the_disk(store: &std::path::Path) -> Result<()> {
    let (mut weir, database) = start(toml::toml! { store_share = 2 }, |setup| {
        setup.set("store.dir", store.to_str().expect("a path of ours is UTF-8"))?;
        setup.set("store.window_bytes", 1 << 20)
    })?;
    let refused = "E 53400 Weir refused this connection: the agent has ";
    let lines = shown(&weir, &database, "filled")?;
    assert_shown(&lines, &["Z I", "E 53400 Weir ended this session: the agent has ", "closed", refused]);
    assert!(lines[1].contains("its limit `store_share` is 2 % of the "), "{}", lines[1]);
    modest_is_served(&weir, &database)?;
    for kill in [false, true] {
        if kill {
            weir.kill()?
        } else {
            weir.stop()?
        }
        weir.start_again(&[])?;
        let lines = shown(&weir, &database, "filled")?;
        assert!(lines[0].starts_with(refused), "{lines:?}");
        modest_is_served(&weir, &database)?;
    }
    // Retention is deleting the oldest windows: all but the one that is written.
    let mut windows: Vec<_> = std::fs::read_dir(store)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    windows.sort();
    windows.pop();
    assert!(!windows.is_empty());
    for window in windows {
        std::fs::remove_file(window)?;
    }
    wait_until("the agent is served again", Duration::from_secs(30), || {
        modest_is_served(&weir, &database)?;
        Ok(weir.agent("greedy")?.psql(&database, "SELECT 1")?.succeeded().ok())
    })?;
    Ok(())
}

const VOLUME: &str = include_str!("../../../policies/30-volume.cedar");
const ENOUGH: &str = "E 42501 Weir refused this statement: `select` on public.customers";

/// The example of `policies/`, for the test's own database.
fn with_volume() -> Result<(Weir, Database)> {
    let (weir, database) = start(Table::new(), |_| Ok(()))?;
    weir.setup().policy("volume.cedar", &VOLUME.replace("orders/shop", &format!("orders/{}", database.name)))?;
    weir.weir(["policy", "reload"])?.succeeded()?;
    Ok((weir, database))
}

#[test]
fn the_statement_after_the_10_001st_row_of_a_table_is_refused_by_the_policy_that_names_it() -> Result<()> {
    let (weir, database) = with_volume()?;
    let lines = shown(&weir, &database, "volume")?;
    let one = ["T", "rows below 10", "C SELECT 1", "Z I"];
    let mut expected = vec!["Z I", "T", "rows below 100000", "C SELECT 10000", "Z I"];
    expected.extend(one);
    expected.extend([ENOUGH, "Z I"]);
    expected.extend(one);
    expected.extend(["Z I", ENOUGH, "Z I"]);
    assert_shown(&lines, &expected);
    assert!(lines.iter().any(|line| line.contains("over 10,000 rows within an hour")), "{lines:?}");
    let explain = |agent: &str| {
        let words =
            ["explain", "--agent", agent, "--group", "corp/readers", "--connection", "orders", "TABLE customers"];
        weir.weir(words)
    };
    let explained = explain("greedy")?.stdout();
    assert!(explained.contains("this hour so far: 10001 rows"), "{explained}");
    assert!(explained.contains("customers-in-small-parts"), "{explained}");
    explain("modest")?.succeeded()?;
    let psql = weir.agent("modest")?.psql(&database, "SELECT count(*) FROM customers")?;
    assert_eq!(psql.succeeded()?, "100");
    Ok(())
}

#[test]
fn a_pipeline_does_not_get_ahead_of_the_count() -> Result<()> {
    let (weir, database) = with_volume()?;
    let lines = shown(&weir, &database, "volume_in_a_pipeline")?;
    let mut expected = vec!["Z I", "T", "rows below 100000", "C SELECT 10000", "Z I"];
    expected.extend(["T", "rows below 10", "C SELECT 1", "Z I", ENOUGH, "Z I", ENOUGH, "Z I"]);
    expected.extend(["Z I", "1", "2", "rows below 10000"]);
    assert_eq!(lines.len(), expected.len() + 2, "{lines:?}");
    assert_shown(&lines[..expected.len()], &expected);
    let (weir, database) = with_volume()?;
    let lines = shown(&weir, &database, "volume_in_one_pipeline")?;
    assert_shown(&lines, &["Z I", "1", "2", "rows below 100000", "C SELECT 20000", ENOUGH, "Z I"]);
    Ok(())
}
