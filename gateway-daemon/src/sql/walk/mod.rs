//! From parse tree to accesses.

use pg_query::protobuf::RawStmt;

use super::{
    Access, Action, Catalog, Columns, Object, ReadError, Reading, SessionNames, StatementKind, StatementReading, parse::parse,
    reading::Reuse,
};

/// Understands a text that may hold several statements. Wants a stack of [`super::PARSE_STACK_BYTES`].
///
/// # Errors
/// When the text cannot be read; it is then unknown, and to be refused.
pub fn read(text: &str, _catalog: &Catalog, _names: &SessionNames) -> Result<Reading, ReadError> {
    let statements = parse(text)?.iter().map(statement).collect();
    Ok(Reading { statements, reuse: Reuse::Never, secrets: Vec::new() })
}

fn statement(_statement: &RawStmt) -> StatementReading {
    StatementReading {
        kind: StatementKind::Utility,
        accesses: vec![Access { action: Action::Unknown, object: Object::Database, columns: Columns::None }],
        functions: Vec::new(),
        reasons: Vec::new(),
        unresolved: false,
        effects: Vec::new(),
        executes: None,
    }
}
