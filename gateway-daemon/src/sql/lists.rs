//! The lists of what is allowed, read from `data/`: functions, catalogue relations, settings, extensions. Nothing is
//! allowed that is on no list, so a name that a file forgets is refused, never let through.

use std::{
    collections::{HashMap, HashSet},
    sync::LazyLock,
};

/// What a function is named for in `data/functions.txt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum FunctionClass {
    /// No effect, no sight of rows, files or other sessions.
    Free,
    /// Free where its second argument is a small integer constant.
    Bounded,
    /// Uses the sequence that its first argument names.
    Sequence,
    /// Reads or sets the setting that its first argument names.
    Setting,
    /// Sends a notification.
    Notify,
    /// Gives back what the session holds itself.
    Release,
    /// Has effects, but none on what names mean.
    Inert,
    /// Reaches the server's files.
    Host,
    /// Acts on the server or on other sessions.
    System,
    /// Runs SQL from a string, reads rows by a name in a string, or shows other sessions' statements.
    Unknown,
}

impl FunctionClass {
    /// Whether the class counts for the bare name in any schema, not in pg_catalog alone.
    pub(super) const fn in_any_schema(self) -> bool {
        match self {
            Self::Host | Self::System | Self::Unknown => true,
            Self::Free
            | Self::Bounded
            | Self::Sequence
            | Self::Setting
            | Self::Notify
            | Self::Release
            | Self::Inert => false,
        }
    }

    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "free" => Self::Free,
            "bounded" => Self::Bounded,
            "sequence" => Self::Sequence,
            "setting" => Self::Setting,
            "notify" => Self::Notify,
            "release" => Self::Release,
            "inert" => Self::Inert,
            "host" => Self::Host,
            "system" => Self::System,
            "unknown" => Self::Unknown,
            _ => return None,
        })
    }
}

/// Which columns of a catalogue relation may be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Readable {
    All,
    Columns(HashSet<&'static str>),
}

/// What the list says of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SettingRule {
    /// May be set and shown.
    Set,
    /// May be set to these values, and shown.
    Only(Vec<&'static str>),
    /// May be shown.
    Show,
}

pub(super) fn function_class(name: &str) -> Option<FunctionClass> {
    FUNCTIONS.get(name).copied()
}

pub(super) fn readable_catalog(schema: &str, relation: &str) -> Option<&'static Readable> {
    CATALOGS.get(schema)?.get(relation)
}

/// Every catalogue relation on the list, with the columns that are named of it: none where all may be read.
pub(super) fn catalog_relations()
-> impl Iterator<Item = (&'static str, &'static str, impl Iterator<Item = &'static str>)> {
    CATALOGS.iter().flat_map(|(schema, relations)| {
        relations.iter().map(|(name, readable)| {
            let columns = match readable {
                Readable::All => None,
                Readable::Columns(columns) => Some(columns.iter().copied()),
            };
            (*schema, *name, columns.into_iter().flatten())
        })
    })
}

/// Every function on the list; all are pg_catalog's.
pub(super) fn function_names() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.keys().copied()
}

pub(super) fn setting_rule(name: &str) -> Option<&'static SettingRule> {
    SETTINGS.get(name)
}

pub(super) fn is_harmless_extension(name: &str) -> bool {
    EXTENSIONS.contains(name)
}

static FUNCTIONS: LazyLock<HashMap<&'static str, FunctionClass>> = LazyLock::new(|| {
    let mut functions = HashMap::new();
    for (class, names) in entries(include_str!("data/functions.txt")) {
        // A class that the code does not know lists nothing: its functions stay refused.
        let Some(class) = FunctionClass::parse(class) else { continue };
        for name in names.split_whitespace() {
            // A name on two lines keeps the stricter reading: the refusing classes stand last in the file.
            functions.insert(name, class);
        }
    }
    functions
});

static CATALOGS: LazyLock<HashMap<&'static str, HashMap<&'static str, Readable>>> = LazyLock::new(|| {
    let mut catalogs: HashMap<_, HashMap<_, _>> = HashMap::new();
    for line in lines(include_str!("data/catalogs.txt")) {
        let (relation, readable) = match line.split_once(':') {
            Some((relation, columns)) => (relation, Readable::Columns(columns.split_whitespace().collect())),
            None => (line, Readable::All),
        };
        if let Some((schema, name)) = relation.split_once('.') {
            catalogs.entry(schema).or_default().insert(name, readable);
        }
    }
    catalogs
});

static SETTINGS: LazyLock<HashMap<&'static str, SettingRule>> = LazyLock::new(|| {
    let mut settings = HashMap::new();
    for (class, words) in entries(include_str!("data/settings.txt")) {
        let mut words = words.split_whitespace();
        match class {
            "set" => settings.extend(words.map(|name| (name, SettingRule::Set))),
            "show" => settings.extend(words.map(|name| (name, SettingRule::Show))),
            "only" => settings.extend(words.next().map(|name| (name, SettingRule::Only(words.collect())))),
            _ => {}
        }
    }
    settings
});

static EXTENSIONS: LazyLock<HashSet<&'static str>> =
    LazyLock::new(|| lines(include_str!("data/extensions.txt")).collect());

/// The lines that are neither empty nor a comment.
fn lines(file: &'static str) -> impl Iterator<Item = &'static str> {
    file.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The same, cut at the first colon.
fn entries(file: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    lines(file).filter_map(|line| line.split_once(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_lists_is_understood() {
        for (class, names) in entries(include_str!("data/functions.txt")) {
            assert!(FunctionClass::parse(class).is_some(), "{class}");
            assert!(
                names
                    .split_whitespace()
                    .all(|n| n.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
            );
        }
        assert!(lines(include_str!("data/functions.txt")).all(|l| l.contains(": ")));
        assert!(
            lines(include_str!("data/settings.txt"))
                .all(|l| ["set: ", "show: ", "only: "].iter().any(|c| l.starts_with(c)))
        );
        assert!(
            lines(include_str!("data/catalogs.txt"))
                .all(|l| l.starts_with("pg_catalog.") || l.starts_with("information_schema."))
        );
        assert_eq!(CATALOGS.len(), 2);
    }

    #[test]
    fn no_function_is_both_free_and_refused() {
        let mut seen = HashMap::new();
        for (class, names) in entries(include_str!("data/functions.txt")) {
            for name in names.split_whitespace() {
                if let Some(before) = seen.insert(name, class) {
                    assert_eq!(before, class, "{name} is on two lines");
                }
            }
        }
    }

    #[test]
    fn what_holds_values_or_secrets_is_on_no_list() {
        for name in ["pg_authid", "pg_shadow", "pg_statistic", "pg_largeobject", "pg_user_mapping", "pg_hba_file_rules"]
        {
            assert_eq!(readable_catalog("pg_catalog", name), None, "{name}");
        }
        for name in ["query_to_xml", "pg_read_file", "dblink", "pg_sleep", "pg_terminate_backend", "lo_get"] {
            assert_ne!(function_class(name), Some(FunctionClass::Free), "{name}");
        }
        for name in ["weir.agent", "session_preload_libraries", "log_statement", "debug_print_parse"] {
            assert_eq!(setting_rule(name), None, "{name}");
        }
    }
}
