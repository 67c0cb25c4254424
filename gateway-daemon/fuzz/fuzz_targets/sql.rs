//! No text ends the process, and what is kept of a reading is what reading gives. Run with `-rss_limit_mb=4096` and the
//! corpora's statements as seeds; libFuzzer's main thread needs a stack as big as a worker's (`ulimit -s 16384`).

#![no_main]

use std::sync::LazyLock;

use gateway_daemon::sql::{Catalog, ReadingCache, for_record, read};
use libfuzzer_sys::fuzz_target;

static CATALOG: LazyLock<Catalog> = LazyLock::new(Catalog::default);
static CACHE: LazyLock<ReadingCache> = LazyLock::new(ReadingCache::default);

fuzz_target!(|text: &str| {
    let names = CATALOG.session_names();
    let plain = read(text, &CATALOG, &names);
    if let Ok(reading) = &plain {
        assert!(!reading.statements.is_empty());
        assert!(reading.statements.iter().all(|statement| !statement.accesses.is_empty()));
        // An unreadable text may share its shape with a readable one; the server refuses it.
        assert_eq!(**CACHE.read(text, &CATALOG, &names).as_ref().unwrap(), *reading);
    }
    let kept = for_record(text, plain.as_ref(), &|_| String::new());
    assert!(kept.len() <= text.len());
});
