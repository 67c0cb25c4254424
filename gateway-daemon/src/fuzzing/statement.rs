//! Statements: read, kept, put on the record.

use std::{borrow::Cow, sync::LazyLock};

use crate::sql::{Catalog, ReadingCache, for_record, read};

static CATALOG: LazyLock<Catalog> = LazyLock::new(Catalog::default);
static CACHE: LazyLock<ReadingCache> = LazyLock::new(ReadingCache::default);

/// No text ends the process, what is kept of a reading is what reading gives, and the record's text can be read where the
/// agent's could. Wants a stack of [`crate::sql::PARSE_STACK_BYTES`].
pub fn sql(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let names = CATALOG.session_names();
    let plain = read(text, &CATALOG, &names);
    let kept = for_record(text, plain.as_ref(), &|_| "'<secret>'".to_owned());
    if let Ok(reading) = &plain {
        assert!(!reading.statements.is_empty());
        assert!(reading.statements.iter().all(|statement| !statement.accesses.is_empty()));
        // An unreadable text may share its shape with a readable one; the server refuses it.
        let cached = CACHE.read(text, &CATALOG, &names);
        assert!(cached.is_ok_and(|cached| *cached == *reading), "the cache reads otherwise");
        // UESCAPE takes a literal of one character; a mark in its place is for people alone.
        if let Cow::Owned(kept) = &kept
            && !text.to_ascii_lowercase().contains("uescape")
        {
            let again = read(kept, &CATALOG, &names);
            assert!(again.is_ok_and(|again| again.statements.len() == reading.statements.len()), "{kept}");
        }
    }
    let removed = for_record(text, plain.as_ref(), &|_| String::new());
    assert!(removed.len() <= text.len(), "what is taken away makes it longer");
    assert!(kept.len() <= 11 * text.len() + 10, "one mark for each literal");
}
