//! Step "understand": a statement becomes a list of accesses. Knows neither tokio nor the configuration.
//!
//! A text passes byte checks (`parse`), becomes PostgreSQL's own parse tree, and is walked (`walk`) with the names that
//! the session may mean (`names`) against a snapshot of the server's catalogues (`catalog`). What is on no list and of no
//! known kind gives an access of [`Action::Unknown`]: nothing is let through for not being known.

mod access;
mod cache;
mod catalog;
mod declared;
mod lex;
mod lists;
mod names;
mod parse;
mod place;
mod reading;
mod redact;
mod walk;

pub use access::{Access, Action, Class, Columns, Name, Object};
pub use cache::{CacheLimits, ReadingCache};
pub use catalog::{Catalog, CatalogError, CatalogVersion, MAX_CATALOG_ROWS, Relation, RelationKind};
pub use declared::DeclaredTable;
pub use lex::{LexError, MAX_COMMENT_DEPTH};
pub use names::{
    MAX_IDENTIFIER_BYTES, MAX_PATH_SCHEMAS, MAX_SEARCH_PATHS, MAX_TEMPORARY, NameEffect, SearchPath, SearchPathError,
    SessionNames, TooManyNames,
};
pub use parse::{MAX_NESTING, MAX_TEXT_BYTES, MAX_TOKENS, PARSE_STACK_BYTES, ReadError, ReadLimits};
pub use place::{place_of, place_of_syntax_error};
pub use reading::{Discard, FunctionUse, Reading, StatementKind, StatementReading, TransactionControl};
pub use redact::for_record;
pub use walk::read;

/// Whether an access may change how the session's later statements are read, in a way that Weir does not follow: the text's
/// encoding, where a string ends, what a name means.
pub fn unsettles_reading(access: &Access) -> bool {
    if access.action != Action::Unknown {
        return false;
    }
    match &access.object {
        // Without a name it is computed.
        Object::Setting { name } | Object::Other { kind: "setting", name } => {
            let followed = matches!(&**name, "" | "search_path" | "role" | "session_authorization");
            followed || matches!(lists::setting_rule(name), Some(lists::SettingRule::Only(_)))
        }
        // An UPDATE of it is a SET.
        Object::Relation { schema, name } => (&**schema, &**name) == ("pg_catalog", "pg_settings"),
        Object::Database | Object::Schema { .. } | Object::Function { .. } | Object::Other { .. } => false,
    }
}

/// Whether an agent may set a setting to this value at the start of its session: the same list that SET goes by.
pub fn setting_is_free(name: &str, value: &str) -> bool {
    match lists::setting_rule(name) {
        Some(lists::SettingRule::Set) => true,
        Some(lists::SettingRule::Only(values)) => values.iter().any(|allowed| allowed.eq_ignore_ascii_case(value)),
        Some(lists::SettingRule::Show) | None => false,
    }
}

/// Whether an access sets what decides how statements are read, to something by which the server would read them otherwise
/// than [`read`] does.
pub fn changes_reading(access: &Access) -> bool {
    match (&access.object, access.action) {
        (Object::Setting { name }, Action::Unknown) => {
            matches!(lists::setting_rule(name), Some(lists::SettingRule::Only(_)))
        }
        _ => false,
    }
}
