//! From parse tree to accesses. Each kind of node is met by name; what has no place gives an unknown access.

mod administration;
mod ddl;
mod dml;
mod expr;
mod from;
mod functions;
mod names;
mod nodes;
mod objects;
mod query;
mod scope;
mod settings;
mod statement;
mod tables;

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use pg_query::{Node, protobuf::RawStmt};

use super::{
    access::{Access, Action, Columns, Name, Object},
    catalog::Catalog,
    lists::{Readable, readable_catalog},
    names::{NameEffect, SessionNames},
    parse::{MAX_ACCESSES, ReadError, ReadLimits, parse},
    reading::{FunctionUse, Reading, Reuse, StatementKind, StatementReading},
    redact::literals,
};
pub(super) use names::text;
use scope::Scope;

/// Reasons that one statement keeps.
const MAX_REASONS: usize = 16;
/// Items of one FROM, and queries of one WITH: what is looked for among them must not cost their square.
const MAX_ITEMS: usize = 1_000;

/// Understands a text that may hold several statements. Wants a stack of [`super::PARSE_STACK_BYTES`].
///
/// # Errors
/// When the text cannot be read; it is then unknown, and to be refused.
pub fn read(text: &str, catalog: &Catalog, names: &SessionNames) -> Result<Reading, ReadError> {
    read_within(text, catalog, names, ReadLimits::default())
}

/// [`read`] within an operator's limits.
pub(super) fn read_within(
    text: &str,
    catalog: &Catalog,
    names: &SessionNames,
    limits: ReadLimits,
) -> Result<Reading, ReadError> {
    let raw = parse(text, limits)?;
    let mut reading = Reading { statements: Vec::with_capacity(raw.len()), reuse: Reuse::Shape, secrets: Vec::new() };
    if raw.is_empty() {
        reading.statements.push(empty());
        return Ok(reading);
    }
    // A statement may change what names mean for those behind it.
    let mut changed: Option<SessionNames> = None;
    for statement in &raw {
        let before = changed.clone();
        let mut walker = Walker::new(catalog, before.as_ref().unwrap_or(names));
        let mut kind = walker.raw(statement);
        if !walker.effects.is_empty() {
            walker.reuse = Reuse::Never;
            if changed.get_or_insert_with(|| names.clone()).apply(&walker.effects).is_err() {
                walker.unknown("statement", "", "the session has had too many search paths or temporary relations");
                kind = StatementKind::Utility;
            }
        }
        reading.reuse = reading.reuse.max(walker.reuse);
        if walker.secret {
            reading.reuse = Reuse::Never;
            reading.secrets.extend(literals(text, span(statement, text)));
        }
        let statement = walker.finish(kind);
        if statement.accesses.len() > MAX_ACCESSES {
            return Err(ReadError::TooManyAccesses { found: statement.accesses.len() });
        }
        reading.statements.push(statement);
    }
    Ok(reading)
}

/// Where a statement stands in its text.
fn span(statement: &RawStmt, text: &str) -> Range<usize> {
    let start = usize::try_from(statement.stmt_location).unwrap_or(0).min(text.len());
    match usize::try_from(statement.stmt_len) {
        // Zero means all the rest.
        Ok(len) if len > 0 => start..start.saturating_add(len).min(text.len()),
        _ => start..text.len(),
    }
}

fn empty() -> StatementReading {
    StatementReading {
        kind: StatementKind::Empty,
        accesses: vec![Access { action: Action::Transaction, object: Object::Database, columns: Columns::None }],
        functions: Vec::new(),
        reasons: Vec::new(),
        unresolved: false,
        effects: Vec::new(),
        executes: None,
    }
}

/// Gathers what one statement does.
struct Walker<'a> {
    catalog: &'a Catalog,
    names: &'a SessionNames,
    /// The paths of `names` as the server searches them, and their schemas; worked out when first asked for.
    paths: OnceCell<Vec<Vec<Name>>>,
    searched: OnceCell<Arc<[Name]>>,
    uses: BTreeMap<(Action, Object), Columns>,
    functions: BTreeSet<FunctionUse>,
    reasons: Vec<String>,
    unresolved: bool,
    effects: Vec<NameEffect>,
    executes: Option<Name>,
    /// The schema that the statement itself makes.
    new_schema: Option<Name>,
    reuse: Reuse,
    /// Its literals may hold secrets.
    secret: bool,
}

impl<'a> Walker<'a> {
    fn new(catalog: &'a Catalog, names: &'a SessionNames) -> Self {
        Self {
            catalog,
            names,
            paths: OnceCell::new(),
            searched: OnceCell::new(),
            uses: BTreeMap::new(),
            functions: BTreeSet::new(),
            reasons: Vec::new(),
            unresolved: false,
            effects: Vec::new(),
            executes: None,
            new_schema: None,
            reuse: Reuse::Shape,
            secret: false,
        }
    }

    fn raw(&mut self, raw: &RawStmt) -> StatementKind {
        match raw.stmt.as_deref() {
            Some(node) => self.statement(node, &Scope::default()),
            None => {
                self.unplaced(None);
                StatementKind::Utility
            }
        }
    }

    /// Reads a statement inside another (PREPARE, EXPLAIN, a view's query) on its own.
    fn nested(&mut self, node: Option<&Node>) -> StatementReading {
        let mut walker = Walker { new_schema: self.new_schema.clone(), ..Walker::new(self.catalog, self.names) };
        let kind = match node {
            Some(node) => walker.statement(node, &Scope::default()),
            None => {
                walker.unplaced(None);
                StatementKind::Utility
            }
        };
        self.reuse = self.reuse.max(walker.reuse);
        self.secret |= walker.secret;
        walker.finish(kind)
    }

    /// Takes over what a nested statement does.
    fn absorb(&mut self, nested: StatementReading) {
        for access in nested.accesses {
            self.add_columns(access.action, access.object, access.columns);
        }
        self.functions.extend(nested.functions);
        self.reasons.extend(nested.reasons);
        self.unresolved |= nested.unresolved;
        self.effects.extend(nested.effects);
        self.executes = self.executes.take().or(nested.executes);
    }

    fn add(&mut self, action: Action, object: Object) {
        self.uses.entry((action, object)).or_insert(Columns::None);
    }

    fn add_column(&mut self, action: Action, object: &Object, column: &Name) {
        match self.uses.entry((action, object.clone())).or_insert(Columns::None) {
            Columns::All => {}
            Columns::Some(names) => {
                names.insert(Arc::clone(column));
            }
            none @ Columns::None => *none = Columns::Some(BTreeSet::from([Arc::clone(column)])),
        }
    }

    fn add_all(&mut self, action: Action, object: &Object) {
        self.uses.insert((action, object.clone()), Columns::All);
    }

    fn add_columns(&mut self, action: Action, object: Object, columns: Columns) {
        match columns {
            Columns::None => self.add(action, object),
            Columns::Some(names) => names.iter().for_each(|name| self.add_column(action, &object, name)),
            Columns::All => self.add_all(action, &object),
        }
    }

    fn note_function(&mut self, schema: &Name, name: &Name, free: bool) {
        self.functions.insert(FunctionUse { schema: Arc::clone(schema), name: Arc::clone(name), free });
    }

    fn unknown(&mut self, kind: &'static str, name: &str, why: &str) {
        self.unknown_object(Object::Other { kind, name: super::names::cut(name) }, why);
    }

    fn unknown_object(&mut self, object: Object, why: &str) {
        if self.reasons.len() < MAX_REASONS {
            self.reasons.push(format!("{object}: {why}"));
        }
        self.add(Action::Unknown, object);
    }

    fn finish(mut self, kind: StatementKind) -> StatementReading {
        self.check_catalogs();
        if self.uses.is_empty() {
            // Nothing but constants and free functions: a read of no relation.
            self.add(Action::Select, Object::Database);
        }
        let accesses = self.uses.into_iter();
        StatementReading {
            kind,
            accesses: accesses.map(|((action, object), columns)| Access { action, object, columns }).collect(),
            functions: self.functions.into_iter().collect(),
            reasons: self.reasons,
            unresolved: self.unresolved,
            effects: self.effects,
            executes: self.executes,
        }
    }

    /// Relations of the system's schemas may be read where the list says so, and no more.
    fn check_catalogs(&mut self) {
        let system = |object: &Object| match object {
            Object::Relation { schema, .. } => is_system(schema),
            _ => false,
        };
        let touched: Vec<_> =
            self.uses.iter().filter(|((_, object), _)| system(object)).map(|(key, _)| key.clone()).collect();
        for key in touched {
            let Some(columns) = self.uses.get(&key) else { continue };
            if !may_touch(&key, columns) {
                self.uses.remove(&key);
                self.unknown_object(
                    key.1,
                    "it is not on the list of catalogues that may be read, or not with these columns",
                );
            }
        }
    }
}

/// Schemas that are the server's own; `pg_temp` is the session's.
fn is_system(schema: &str) -> bool {
    schema == "information_schema" || (schema.starts_with("pg_") && !names::is_temporary(schema))
}

fn may_touch((action, object): &(Action, Object), columns: &Columns) -> bool {
    let Object::Relation { schema, name } = object else { return false };
    match (action, readable_catalog(schema, name)) {
        (Action::Unknown, _) | (Action::Select, Some(Readable::All)) => true,
        (Action::Select, Some(Readable::Columns(readable))) => match columns {
            Columns::None => true,
            Columns::Some(columns) => columns.iter().all(|column| readable.contains(&**column)),
            Columns::All => false,
        },
        _ => false,
    }
}
