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
pub use parse::{MAX_ACCESSES, MAX_NESTING, MAX_TEXT_BYTES, MAX_TOKENS, PARSE_STACK_BYTES, ReadError, ReadLimits};
pub use place::{place_of, place_of_syntax_error};
pub use reading::{Discard, FunctionUse, Reading, StatementKind, StatementReading, TransactionControl};
pub use redact::for_record;
pub use walk::read;

/// Whether Weir may lose sight of how the session's later statements are to be read, should this access happen: it sets, or
/// cannot be told not to set, the text's encoding, where a string ends, or what a name means. No mode lets it pass.
pub fn may_unsettle_reading(access: &Access) -> bool {
    if access.action != Action::Unknown {
        return false;
    }
    match &access.object {
        // Without a name it is computed.
        Object::Setting { name } | Object::Other { kind: "setting", name } => statements_are_read_by(name),
        // An UPDATE of it is a SET.
        Object::Relation { schema, name } => (&**schema, &**name) == ("pg_catalog", "pg_settings"),
        Object::Database | Object::Schema { .. } | Object::Function { .. } | Object::Other { .. } => false,
    }
}

/// What an access does to what names mean, for everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SchemaChange {
    /// It calls what may do anything.
    Possible,
    /// That is what it is for.
    Certain,
}

/// Whether an access changes the schema, as far as a catalogue snapshot tells of it.
pub fn schema_change(access: &Access) -> Option<SchemaChange> {
    match (access.action.class(), access.action, &access.object) {
        // Temporary relations are in no snapshot.
        (_, Action::Create, Object::Relation { schema, .. }) if &**schema == "pg_temp" => None,
        (Class::Ddl | Class::Code | Class::Admin | Class::Unknown, _, _) => Some(SchemaChange::Certain),
        // DDL in a function's or a procedure's body counts as well.
        (_, Action::Call, Object::Function { schema, name }) => {
            let listed = &**schema == "pg_catalog" && lists::function_class(name).is_some();
            (!listed).then_some(SchemaChange::Possible)
        }
        (_, Action::Call, _) => Some(SchemaChange::Possible),
        (Class::Read | Class::Write | Class::Session, _, _) => None,
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

/// Whether an access for certain makes the server read statements otherwise than [`read`] does: a setting by which they are
/// read, set to another value than the list allows, for this session or lastingly for later ones. No policy can permit it.
pub fn sets_a_reading_setting(access: &Access) -> bool {
    let Object::Setting { name } = &access.object else { return false };
    match access.action {
        Action::Unknown => matches!(lists::setting_rule(name), Some(lists::SettingRule::Only(_))),
        // Of a role, of a database, of the server: whatever the value is, other sessions begin with it.
        Action::System => statements_are_read_by(name),
        _ => false,
    }
}

/// Whether statements are read by a setting: what it is decides what a text means. Without a name it is computed; `all` is
/// all of them.
fn statements_are_read_by(name: &str) -> bool {
    matches!(name, "" | "all" | "search_path" | "role" | "session_authorization")
        || matches!(lists::setting_rule(name), Some(lists::SettingRule::Only(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(sql: &str) -> Option<SchemaChange> {
        let catalog = Catalog::declared("shop", "app", &[]).unwrap();
        let reading = read(sql, &catalog, &catalog.session_names()).unwrap();
        reading.statements.iter().flat_map(|statement| &statement.accesses).filter_map(schema_change).max()
    }

    #[test]
    fn the_way_back_to_the_role_that_logged_in_is_free_where_the_session_began_with_it() {
        let row = |login: &str| ["public", "app", "shop", login].map(|cell| Some(cell.to_owned())).to_vec();
        let catalog = |login: &str| {
            let answers = [vec![vec![row(login)]], vec![Vec::new(); Catalog::QUERIES.len() - 1]].concat();
            Catalog::from_rows(answers).unwrap()
        };
        let action = |sql: &str, login: &str| {
            let catalog = catalog(login);
            let reading = read(sql, &catalog, &catalog.session_names()).unwrap();
            reading.statements[0].accesses[0].action
        };
        for sql in [
            "RESET ROLE",
            "SET ROLE NONE",
            "SET LOCAL ROLE none",
            "SET role TO DEFAULT",
            "RESET SESSION AUTHORIZATION",
            "SET SESSION AUTHORIZATION DEFAULT",
            "SELECT set_config('role', 'none', false)",
        ] {
            assert_eq!(action(sql, "app"), Action::Transaction, "{sql}");
            // Something gave the session another role than the one that logged in, which may do more.
            assert_eq!(action(sql, "owner"), Action::Role, "{sql}");
        }
        for sql in ["SET ROLE 'NONE'", "SET SESSION AUTHORIZATION 'none'", "SET ROLE app", "SET ROLE ''"] {
            assert_eq!(action(sql, "app"), Action::Role, "{sql}");
        }
        assert_eq!(action("UNLISTEN *", "app"), Action::Transaction);
        assert_eq!(action("LISTEN c", "app"), Action::Listen);
    }

    #[test]
    fn what_changes_the_schema_and_what_does_not() {
        let (possible, certain) = (Some(SchemaChange::Possible), Some(SchemaChange::Certain));
        for (sql, expected) in [
            ("SELECT 1", None),
            ("SELECT pg_sleep(0.01), pg_catalog.pg_try_advisory_lock(1), setseed(0)", None),
            ("SELECT pg_advisory_unlock_all()", None),
            ("SELECT repeat('x', 1000000), nextval('s')", None),
            ("INSERT INTO t VALUES (1)", None),
            ("SET work_mem = '1MB'", None),
            ("CREATE TEMP TABLE scratch (a int)", None),
            ("CREATE TABLE pg_temp.scratch (a int)", None),
            ("CREATE TEMP TABLE scratch AS SELECT public.f()", possible),
            ("CREATE TABLE made (a int)", certain),
            ("ALTER TABLE pg_temp.scratch SET SCHEMA public", certain),
            ("SELECT f()", possible),
            ("SELECT public.pg_sleep(1)", possible),
            ("CALL p()", possible),
            ("SELECT pg_catalog.nobody_knows()", possible),
            ("SELECT pg_sleep(1), f(); DROP TABLE made", certain),
            ("DO $$ BEGIN END $$", certain),
            ("SELECT query_to_xml('SELECT 1', true, true, '')", certain),
        ] {
            assert_eq!(change(sql), expected, "{sql}");
        }
    }
}
