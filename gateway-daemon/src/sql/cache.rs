//! Readings kept: a statement whose tokens were seen before, literals aside, is not parsed again.
//!
//! A key holds all that a reading depends on (the catalogue's version, the session's names, the tokens) and is compared in
//! full: the hash only finds the place. Only a text of plain tokens has a shape; any other is kept by its exact bytes.

use std::{
    cell::RefCell,
    collections::VecDeque,
    hash::BuildHasher,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::{
    Catalog, ReadError, Reading, SessionNames,
    lex::{Kind, Lexer},
    parse::ReadLimits,
    reading::Reuse,
    walk::read_within,
};

/// Bytes of a key beyond which a reading is not kept.
const MAX_KEY_BYTES: usize = 64 << 10;
/// Parts with a lock each.
const SHARDS: usize = 16;
/// Between the tokens of a shape; no token of a shape holds it.
const SEPARATOR: u8 = 1;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// Readings.
    pub entries: usize,
    /// Bytes of keys and readings, as estimated.
    pub bytes: usize,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self { entries: 16_384, bytes: 32 << 20 }
    }
}

/// Readings of statements seen before; shared by all sessions and threads.
#[derive(Debug)]
pub struct ReadingCache {
    shards: [Mutex<Shard>; SHARDS],
    hasher: DefaultHashBuilder,
    /// Of one shard.
    limits: CacheLimits,
    within: ReadLimits,
}

#[derive(Debug, Default)]
struct Shard {
    table: HashTable<Entry>,
    /// The keys in the order in which they may go; one that was used since is passed over once.
    order: VecDeque<(u64, Arc<[u8]>)>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    key: Arc<[u8]>,
    reading: Arc<Reading>,
    bytes: usize,
    used: bool,
}

thread_local! {
    /// Where keys are written, so that a hit allocates nothing.
    static KEY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl ReadingCache {
    /// An empty cache, for texts within these limits: what is over them is never read, and so never kept.
    pub fn new(limits: CacheLimits, within: ReadLimits) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: DefaultHashBuilder::default(),
            limits: CacheLimits { entries: (limits.entries / SHARDS).max(1), bytes: limits.bytes / SHARDS },
            within,
        }
    }

    /// The reading of a text that was seen before, if it is kept; needs no big stack.
    pub fn get(&self, text: &str, catalog: &Catalog, names: &SessionNames) -> Option<Arc<Reading>> {
        KEY.with_borrow_mut(|key| {
            (write_shape(key, text, catalog, names).then(|| self.find(key)).flatten())
                .or_else(|| write_text(key, text, catalog, names).then(|| self.find(key)).flatten())
        })
    }

    /// Reads a text, or gives what was read before: the same as [`read`] gives. Wants a stack of
    /// [`super::PARSE_STACK_BYTES`].
    ///
    /// # Errors
    /// As [`read`]; errors are not kept.
    pub fn read(&self, text: &str, catalog: &Catalog, names: &SessionNames) -> Result<Arc<Reading>, ReadError> {
        if let Some(reading) = self.get(text, catalog, names) {
            return Ok(reading);
        }
        let reading = Arc::new(read_within(text, catalog, names, self.within)?);
        KEY.with_borrow_mut(|key| {
            let keep = match reading.reuse {
                Reuse::Shape => write_shape(key, text, catalog, names) || write_text(key, text, catalog, names),
                Reuse::Text => write_text(key, text, catalog, names),
                Reuse::Never => false,
            };
            if keep {
                self.insert(key, &reading);
            }
        });
        Ok(reading)
    }

    fn find(&self, key: &[u8]) -> Option<Arc<Reading>> {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash)?;
        let entry = shard.table.find_mut(hash, |entry| *entry.key == *key)?;
        entry.used = true;
        Some(Arc::clone(&entry.reading))
    }

    fn insert(&self, key: &[u8], reading: &Arc<Reading>) {
        let hash = self.hasher.hash_one(key);
        let bytes = key.len() + reading.weight();
        let Some(mut shard) = self.shard(hash) else { return };
        if bytes > self.limits.bytes || shard.table.find(hash, |entry| *entry.key == *key).is_some() {
            return;
        }
        while shard.table.len() >= self.limits.entries || shard.bytes + bytes > self.limits.bytes {
            if !shard.make_room() {
                return;
            }
        }
        let key: Arc<[u8]> = Arc::from(key);
        shard.order.push_back((hash, Arc::clone(&key)));
        shard.bytes += bytes;
        let entry = Entry { hash, key, reading: Arc::clone(reading), bytes, used: false };
        shard.table.insert_unique(hash, entry, |entry| entry.hash);
    }

    fn shard(&self, hash: u64) -> Option<MutexGuard<'_, Shard>> {
        // The table takes the low bits and the seven highest; these lie between.
        let index = usize::try_from((hash >> 48) % 16).ok()?;
        // A panic under the lock leaves at worst an entry too few.
        Some(self.shards.get(index)?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shard {
    /// Lets the next entry go that was not used since it was last passed over; whether there was one.
    fn make_room(&mut self) -> bool {
        while let Some((hash, key)) = self.order.pop_front() {
            let Ok(mut found) = self.table.find_entry(hash, |entry| *entry.key == *key) else { continue };
            if std::mem::take(&mut found.get_mut().used) {
                self.order.push_back((hash, key));
                continue;
            }
            self.bytes = self.bytes.saturating_sub(found.remove().0.bytes);
            return true;
        }
        false
    }
}

impl Default for ReadingCache {
    fn default() -> Self {
        Self::new(CacheLimits::default(), ReadLimits::default())
    }
}

/// Begins a key with what every reading depends on. The first byte keeps shapes and texts apart.
fn begin(key: &mut Vec<u8>, mode: u8, catalog: &Catalog, names: &SessionNames) {
    key.clear();
    key.push(mode);
    key.extend_from_slice(&catalog.version().0);
    key.extend_from_slice(names.fingerprint());
}

/// The key of exactly this text; whether it has one.
fn write_text(key: &mut Vec<u8>, text: &str, catalog: &Catalog, names: &SessionNames) -> bool {
    if text.len() > MAX_KEY_BYTES {
        return false;
    }
    begin(key, b't', catalog, names);
    key.extend_from_slice(text.as_bytes());
    true
}

/// The key of all texts with these tokens; whether the text has one.
fn write_shape(key: &mut Vec<u8>, text: &str, catalog: &Catalog, names: &SessionNames) -> bool {
    // Blanks may make a text longer than its key, but not without end.
    if text.len() > 2 * MAX_KEY_BYTES {
        return false;
    }
    begin(key, b's', catalog, names);
    let mut lexer = Lexer::new(text);
    let mut before = Kind::Semicolon;
    for token in lexer.by_ref() {
        let Ok(token) = token else { return false };
        if token.after_comment {
            return false;
        }
        let bytes = text.as_bytes().get(token.range()).unwrap_or_default();
        match token.kind {
            // Two literals side by side are one on two lines and an error on one.
            Kind::PlainString if before == Kind::PlainString => return false,
            Kind::PlainString => key.push(2),
            Kind::PlainNumber => key.push(3),
            Kind::QuotedName if bytes.iter().any(u8::is_ascii_control) => return false,
            Kind::Word
            | Kind::QuotedName
            | Kind::Parameter
            | Kind::Operator
            | Kind::Cast
            | Kind::Open
            | Kind::Close
            | Kind::Comma
            | Kind::Semicolon
            | Kind::Dot => key.extend_from_slice(bytes),
            Kind::ForeignWord | Kind::OtherString | Kind::OtherNumber | Kind::Other => return false,
        }
        key.push(SEPARATOR);
        before = token.kind;
    }
    !lexer.trailing_comment && key.len() <= MAX_KEY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::SearchPath;

    fn shape(text: &str) -> Option<Vec<u8>> {
        let catalog = Catalog::default();
        let names = SessionNames::new("app", SearchPath::parse("public").unwrap());
        let mut key = Vec::new();
        write_shape(&mut key, text, &catalog, &names).then_some(key)
    }

    #[test]
    fn texts_that_differ_in_literals_and_blanks_alone_share_a_shape() {
        let one = shape("SELECT a, 'x' FROM t WHERE id=7 AND n > 1.5").unwrap();
        assert_eq!(one, shape("SELECT a ,'it''s'\nFROM t  WHERE id = 1234 AND n > 0.25").unwrap());
        for other in [
            "SELECT a, 'x' FROM u WHERE id=7 AND n > 1.5",
            "SELECT a, 7 FROM t WHERE id=7 AND n > 1.5",
            "SELECT a, $1 FROM t WHERE id=7 AND n > 1.5",
            "SELECT a, 'x' FROM \"t\" WHERE id=7 AND n > 1.5",
            "SELECT a, 'x' FROM t WHERE id=-7 AND n > 1.5",
            "SELECT a, 'x' FROM t WHERE id=7 AND n > 1.5;",
        ] {
            assert_ne!(one, shape(other).unwrap(), "{other}");
        }
        assert_ne!(shape("SELECT ab"), shape("SELECT a b"));
        assert_ne!(shape("SELECT 1 2"), shape("SELECT 12"));
    }

    #[test]
    fn what_is_not_plain_has_no_shape() {
        for text in [
            "SELECT E'x'",
            "SELECT U&'x'",
            "SELECT $$x$$",
            "SELECT 1e5",
            "SELECT größe",
            "SELECT 1 /* c */",
            "SELECT 1 -- c",
            "SELECT 'a'\n'b'",
            "SELECT 'a' 'b'",
            r"SELECT '\'",
            "SELECT \u{1}",
            "SELECT \"\u{1}\"",
            "SELECT 0x1F",
            "SELECT 'a",
        ] {
            assert_eq!(shape(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_kept_has_an_end() {
        let cache = ReadingCache::new(CacheLimits { entries: 64, bytes: 1 << 20 }, ReadLimits::default());
        let catalog = Catalog::default();
        let names = SessionNames::new("app", SearchPath::parse("public").unwrap());
        for i in 0..2000 {
            cache.read(&format!("SELECT c{i} FROM t"), &catalog, &names).unwrap();
        }
        let kept: usize = cache.shards.iter().map(|shard| shard.lock().unwrap().table.len()).sum();
        assert!((16..=64).contains(&kept), "{kept}");
        assert!(cache.shards.iter().all(|shard| shard.lock().unwrap().order.len() <= 64));
    }

    #[test]
    fn a_kept_reading_is_given_again_and_another_catalogue_asks_anew() {
        let cache = ReadingCache::default();
        let catalog = Catalog::default();
        let mut names = SessionNames::new("app", SearchPath::parse("public").unwrap());
        let first = cache.read("SELECT a FROM t WHERE id = 1", &catalog, &names).unwrap();
        let again = cache.get("SELECT a FROM t WHERE id = 2", &catalog, &names).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        names.apply(&[crate::sql::NameEffect::Temporary("t".into())]).unwrap();
        assert!(cache.get("SELECT a FROM t WHERE id = 2", &catalog, &names).is_none());
    }
}
