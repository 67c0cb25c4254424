//! The cache: what it gives is what reading gives.

use std::time::{Duration, Instant};

use gateway_daemon::sql::{CacheLimits, ReadLimits, ReadingCache, read};
use proptest::{prelude::*, test_runner::TestRunner};

use crate::support::{CATALOG, cases, on_a_big_stack};

/// A text with its plain literals replaced, chosen by `seed`. Byte by byte, so that it needs no scanner: digits that
/// stand free, and what is between single quotes.
fn mutated(text: &str, mut seed: u64) -> String {
    let mut next = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut out = String::new();
    let mut quoted = false;
    let mut before = ' ';
    for c in text.chars() {
        let free = !before.is_ascii_alphanumeric() && before != '_' && before != '$' && before != '.';
        match c {
            '\'' => quoted = !quoted,
            'a'..='z' if quoted && next(8) == 0 => {
                out.push(char::from(b'a' + u8::try_from(next(26)).unwrap()));
                before = c;
                continue;
            }
            '1'..='9' if !quoted && free && next(2) == 0 => {
                out.push_str(&(1 + next(9)).to_string());
                before = c;
                continue;
            }
            _ => {}
        }
        out.push(c);
        before = c;
    }
    out
}

#[test]
fn reading_through_the_cache_equals_reading_without() {
    on_a_big_stack(|| {
        let texts: Vec<String> =
            ["benign.jsonl", "attacks.jsonl"].iter().flat_map(|f| cases(f)).flat_map(|c| c.texts).collect();
        let cache = ReadingCache::new(CacheLimits { entries: 400, bytes: 4 << 20 }, ReadLimits::default());
        let names = CATALOG.session_names();
        let mut runner =
            TestRunner::new(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() });
        let strategy = (0..texts.len(), any::<u64>());
        runner
            .run(&strategy, |(i, seed)| {
                let text = mutated(&texts[i], seed);
                let plain = read(&text, &CATALOG, &names);
                let cached = cache.read(&text, &CATALOG, &names);
                match (plain, cached) {
                    (Ok(plain), Ok(cached)) => prop_assert_eq!(&plain, &*cached, "{}", text),
                    (Err(plain), Err(cached)) => prop_assert_eq!(plain, cached),
                    (plain, cached) => prop_assert!(false, "{text}: {plain:?} {cached:?}"),
                }
                Ok(())
            })
            .unwrap();
    });
}

#[test]
fn what_a_literal_decides_is_not_shared_by_shape() {
    let cache = ReadingCache::default();
    let names = CATALOG.session_names();
    for (one, other) in [
        ("SELECT nextval('ticket_seq')", "SELECT nextval('orders_id_seq')"),
        ("SELECT set_config('work_mem', '1', true)", "SELECT set_config('role', 'app', true)"),
        ("SELECT current_setting('work_mem')", "SELECT current_setting('hba_file')"),
        ("SELECT repeat('x', 3)", "SELECT repeat('x', 300000000)"),
        ("SELECT pg_notify('a', 'x')", "SELECT pg_notify('b', 'x')"),
        ("SET client_encoding = 'utf8'", "SET client_encoding = 'sjis'"),
        ("COPY orders TO STDOUT (DELIMITER 'x')", "COPY orders TO STDOUT (DELIMITER 'y')"),
        ("EXPLAIN (ANALYZE 0) DELETE FROM orders", "EXPLAIN (ANALYZE 1) DELETE FROM orders"),
    ] {
        for text in [one, other] {
            let cached = cache.read(text, &CATALOG, &names).unwrap();
            assert_eq!(*cached, read(text, &CATALOG, &names).unwrap(), "{text}");
            assert!(cache.get(text, &CATALOG, &names).is_some() || text.contains("role"), "{text} is kept by its text");
        }
    }
}

#[test]
fn secrets_are_never_kept() {
    let cache = ReadingCache::default();
    let names = CATALOG.session_names();
    for text in ["ALTER ROLE r PASSWORD 'secret'", "SET search_path = x", "CREATE TEMP TABLE t (a int)"] {
        cache.read(text, &CATALOG, &names).unwrap();
        assert!(cache.get(text, &CATALOG, &names).is_none(), "{text}");
    }
}

/// The shortest of a few runs.
fn best(work: &dyn Fn()) -> Duration {
    let time = |_| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..20).map(time).min().unwrap_or_default()
}

/// Prints what first sight and a hit cost beside the parser alone. Only the order is asserted: a loaded machine and a
/// debug build say nothing of the goals.
#[test]
fn a_hit_costs_a_fraction_of_the_parse() {
    on_a_big_stack(|| {
        let names = CATALOG.session_names();
        let texts: Vec<String> = cases("benign.jsonl").into_iter().flat_map(|case| case.texts).collect();
        let cache = ReadingCache::default();
        let measure = |texts: &[String]| {
            let (mut parse, mut first, mut hit) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
            let mut kept = 0u32;
            for text in texts.iter().filter(|text| cache.read(text, &CATALOG, &names).is_ok()) {
                if cache.get(text, &CATALOG, &names).is_some() {
                    kept += 1;
                    parse += best(&|| drop(pg_query::parse(text, 0)));
                    first += best(&|| drop(read(text, &CATALOG, &names)));
                    hit += best(&|| drop(cache.get(text, &CATALOG, &names)));
                }
            }
            println!(
                "{kept} texts, each: parse {:?}, first sight {:?}, hit {:?}",
                parse / kept,
                first / kept,
                hit / kept
            );
            (parse, hit)
        };
        measure(&["SELECT id, total FROM orders WHERE customer_id = 17".to_owned()]);
        let (parse, hit) = measure(&texts);
        assert!(hit < parse / 4, "a hit {hit:?} beside a parse {parse:?}");
    });
}
