//! Every property with the seeds of its fuzz target, and with chance.

use std::{fs, path::PathBuf};

use super::*;

/// Runs a property with the seeds below `fuzz/seeds`, each also cut short and with a byte changed.
fn replay(target: &'static str, property: fn(&[u8])) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let seeds: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
    assert!(!seeds.is_empty(), "{} has no seed", folder.display());
    let run = move || {
        for seed in &seeds {
            property(seed);
            for at in (0..seed.len()).step_by(seed.len() / 16 + 1) {
                property(&seed[..at]);
                let mut changed = seed.clone();
                changed[at] ^= 1 << (at % 8);
                property(&changed);
            }
        }
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let any = proptest::collection::vec(proptest::num::u8::ANY, 0..400);
        runner
            .run(&any, |bytes| {
                property(&bytes);
                Ok(())
            })
            .unwrap();
    };
    let thread = std::thread::Builder::new().stack_size(crate::sql::PARSE_STACK_BYTES).spawn(run);
    thread.unwrap().join().unwrap();
}

macro_rules! replayed {
    ($($name:ident: $target:literal, $property:expr;)*) => {
        $(#[test] fn $name() { replay($target, $property); })*

        #[test]
        fn every_fuzz_target_has_its_seeds_replayed() {
            let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
            let mut targets: Vec<_> = fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
                .collect();
            targets.sort();
            let mut replayed = vec![$($target),*];
            replayed.sort();
            assert_eq!(targets, replayed);
        }
    };
}

replayed! {
    an_agent_s_message_has_one_reading: "frontend", frontend;
    a_server_s_message_is_read_within_its_bytes: "backend", backend;
    an_opening_is_taken_whole_and_alone: "startup", startup;
    nothing_leaves_the_machine_that_was_not_decided: "machine", machine;
    a_token_passes_only_with_signature_and_claims: "token", token;
    a_key_set_is_bounded: "keys", keys;
    a_damaged_store_is_read_without_harm: "record", record;
    a_text_is_read_the_same_from_the_cache: "sql", sql;
    a_server_that_asks_for_a_password_gets_it_only_as_configured: "upstream_startup", upstream_startup;
    a_look_up_s_answer_is_bounded: "upstream_answer", upstream_answer;
}
