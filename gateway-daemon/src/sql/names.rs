//! Which names mean what in a session: the search paths that may be in force and the temporary relations that may exist.
//!
//! `SET LOCAL` outside a transaction does nothing, a failed batch undoes its SET, ROLLBACK TO undoes it and RELEASE keeps
//! it: who tracks the one path in force goes wrong. So this set only grows: every path that was ever set is a candidate
//! until the session ends, a name means what it means under each of them, and all of that must be permitted.

use std::{collections::BTreeSet, sync::Arc};

use aws_lc_rs::digest;

use super::access::Name;

/// PostgreSQL's NAMEDATALEN - 1: longer identifiers are cut by the server.
pub const MAX_IDENTIFIER_BYTES: usize = 63;
/// Candidate search paths of one session.
pub const MAX_SEARCH_PATHS: usize = 64;
/// Temporary relations of one session.
pub const MAX_TEMPORARY: usize = 4096;
/// Schemas of one search path.
pub const MAX_PATH_SCHEMAS: usize = 64;

/// What a statement adds to what names may mean afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameEffect {
    /// This search path may be in force.
    SearchPath(SearchPath),
    /// A temporary relation of this name may exist.
    Temporary(Name),
    /// `"$user"` may mean this role.
    User(Name),
}

/// A search path as written: schemas in order, `$user` and `pg_temp` not yet replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SearchPath(pub(super) Vec<Name>);

/// Why a text is no search path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SearchPathError {
    /// As the server would say.
    #[error("the list of schemas is not well formed")]
    Syntax,
    /// Beyond [`MAX_PATH_SCHEMAS`].
    #[error("the search path has more than {MAX_PATH_SCHEMAS} schemas")]
    TooLong,
}

/// A session has had more candidates than are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session has had more than {MAX_SEARCH_PATHS} search paths or {MAX_TEMPORARY} temporary relations")]
pub struct TooManyNames;

/// What names may mean in one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionNames {
    paths: Vec<SearchPath>,
    users: BTreeSet<Name>,
    temporary: BTreeSet<Name>,
    fingerprint: [u8; 32],
}

impl SearchPath {
    /// Reads the text of the setting, as `SHOW search_path` gives it and `set_config` takes it.
    ///
    /// # Errors
    /// When the server would refuse the text, or it is longer than is followed.
    pub fn parse(text: &str) -> Result<Self, SearchPathError> {
        let mut schemas = Vec::new();
        let mut rest = text.trim_start_matches(is_space);
        if rest.is_empty() {
            return Ok(Self(schemas));
        }
        loop {
            let name;
            (name, rest) = split_identifier(rest)?;
            schemas.push(cut(&name));
            if schemas.len() > MAX_PATH_SCHEMAS {
                return Err(SearchPathError::TooLong);
            }
            rest = rest.trim_start_matches(is_space);
            match rest.strip_prefix(',') {
                Some(more) => rest = more.trim_start_matches(is_space),
                None if rest.is_empty() => return Ok(Self(schemas)),
                None => return Err(SearchPathError::Syntax),
            }
        }
    }

    /// The path of `SET search_path = a, b`, where each constant is one schema.
    ///
    /// # Errors
    /// When it is longer than is followed.
    pub(super) fn of_schemas<'a>(schemas: impl Iterator<Item = &'a str>) -> Result<Self, SearchPathError> {
        let schemas: Vec<Name> = schemas.map(cut).collect();
        if schemas.len() > MAX_PATH_SCHEMAS { Err(SearchPathError::TooLong) } else { Ok(Self(schemas)) }
    }
}

impl SessionNames {
    /// The names of a session that has just begun: `user` is the role on the server, `path` what `SHOW search_path` says.
    pub fn new(user: &str, path: SearchPath) -> Self {
        let mut names = Self {
            paths: vec![path],
            users: BTreeSet::from([cut(user)]),
            temporary: BTreeSet::new(),
            fingerprint: [0; 32],
        };
        names.seal();
        names
    }

    /// Adds what a statement may have changed. Call it before the statement is forwarded, and never take back.
    ///
    /// # Errors
    /// When the session has had more candidates than are followed; the statement must then be refused.
    pub fn apply(&mut self, effects: &[NameEffect]) -> Result<(), TooManyNames> {
        if effects.is_empty() {
            return Ok(());
        }
        for effect in effects {
            match effect {
                NameEffect::SearchPath(path) if self.paths.contains(path) => {}
                NameEffect::SearchPath(_) if self.paths.len() >= MAX_SEARCH_PATHS => return Err(TooManyNames),
                NameEffect::SearchPath(path) => self.paths.push(path.clone()),
                NameEffect::Temporary(name) => {
                    if self.temporary.len() >= MAX_TEMPORARY && !self.temporary.contains(name) {
                        return Err(TooManyNames);
                    }
                    self.temporary.insert(Arc::clone(name));
                }
                NameEffect::User(name) if self.users.len() >= MAX_SEARCH_PATHS && !self.users.contains(name) => {
                    return Err(TooManyNames);
                }
                NameEffect::User(name) => {
                    self.users.insert(Arc::clone(name));
                }
            }
        }
        self.seal();
        Ok(())
    }

    /// Changes whenever a name may mean something else: part of the key under which a reading is kept.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// The names with a schema before all others in every path: how the parts of CREATE SCHEMA are read.
    pub(super) fn within(&self, schema: &Name) -> Self {
        let mut names = self.clone();
        names.paths.iter_mut().for_each(|path| path.0.insert(0, Arc::clone(schema)));
        names.seal();
        names
    }

    /// Whether a temporary relation of this name may exist.
    pub(super) fn may_be_temporary(&self, name: &str) -> bool {
        self.temporary.contains(name)
    }

    /// Every candidate path with `$user` replaced by each candidate role, without the implicit schemas.
    pub(super) fn paths(&self) -> impl Iterator<Item = Vec<Name>> + '_ {
        self.paths.iter().flat_map(|path| {
            self.users.iter().map(|user| {
                path.0
                    .iter()
                    .map(|schema| if &**schema == "$user" { Arc::clone(user) } else { Arc::clone(schema) })
                    .collect()
            })
        })
    }

    fn seal(&mut self) {
        let mut context = digest::Context::new(&digest::SHA256);
        // NUL cannot stand in an identifier, so the parts cannot run into one another.
        for path in &self.paths {
            for schema in &path.0 {
                context.update(schema.as_bytes());
                context.update(b"\0");
            }
            context.update(b"\0p");
        }
        for (kind, names) in [(b"u", &self.users), (b"t", &self.temporary)] {
            for name in names {
                context.update(name.as_bytes());
                context.update(b"\0");
            }
            context.update(kind);
            context.update(b"\0\0");
        }
        self.fingerprint.copy_from_slice(context.finish().as_ref());
    }
}

/// Cuts an identifier where the server does: at 63 bytes, on a character's boundary.
pub(super) fn cut(name: &str) -> Name {
    let mut end = name.len().min(MAX_IDENTIFIER_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    Arc::from(name.get(..end).unwrap_or_default())
}

/// One element of the list, as the server's SplitIdentifierString takes it.
fn split_identifier(text: &str) -> Result<(String, &str), SearchPathError> {
    if let Some(mut rest) = text.strip_prefix('"') {
        let mut name = String::new();
        loop {
            let (part, after) = rest.split_once('"').ok_or(SearchPathError::Syntax)?;
            name.push_str(part);
            match after.strip_prefix('"') {
                Some(more) => {
                    name.push('"');
                    rest = more;
                }
                None => return Ok((name, after)),
            }
        }
    }
    let end = text.find(|c| c == ',' || is_space(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    // In a UTF-8 database the server folds ASCII letters alone.
    if name.is_empty() { Err(SearchPathError::Syntax) } else { Ok((name.to_ascii_lowercase(), rest)) }
}

/// The scanner's white space.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{c}' | '\u{b}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Vec<String> {
        SearchPath::parse(text).unwrap().0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_search_path_is_read_as_the_server_reads_it() {
        assert_eq!(path(r#""$user", public"#), ["$user", "public"]);
        assert_eq!(path(r#" Archive,"Odd ""S"" x" , b "#), ["archive", "Odd \"S\" x", "b"]);
        assert_eq!(path(""), Vec::<String>::new());
        assert_eq!(path(r#""""#), [""]);
        for broken in ["a b", "a,", ",a", "\"a", "\"a\"b"] {
            assert_eq!(SearchPath::parse(broken), Err(SearchPathError::Syntax), "{broken}");
        }
    }

    #[test]
    fn names_are_cut_at_63_bytes_on_a_boundary() {
        assert_eq!(cut(&"x".repeat(70)).len(), 63);
        assert_eq!(&*cut(&format!("{}é", "x".repeat(62))), "x".repeat(62));
        assert_eq!(&*cut("short"), "short");
    }

    #[test]
    fn names_only_grow_and_every_growth_shows_in_the_fingerprint() {
        let mut names = SessionNames::new("app", SearchPath::parse("public").unwrap());
        let mut seen = BTreeSet::from([*names.fingerprint()]);
        let effects = [
            NameEffect::SearchPath(SearchPath::parse("archive").unwrap()),
            NameEffect::Temporary(Arc::from("t")),
            NameEffect::User(Arc::from("t")),
        ];
        for effect in &effects {
            names.apply(std::slice::from_ref(effect)).unwrap();
            assert!(seen.insert(*names.fingerprint()), "{effect:?}");
            names.apply(std::slice::from_ref(effect)).unwrap();
            assert!(!seen.insert(*names.fingerprint()), "the second time changes nothing");
        }
        for i in 0..MAX_SEARCH_PATHS {
            let effect = NameEffect::SearchPath(SearchPath::parse(&format!("s{i}")).unwrap());
            if names.apply(&[effect]).is_err() {
                return;
            }
        }
        panic!("the number of paths has no end");
    }
}
