//! A snapshot of what the server's catalogues say, as far as names are concerned. It is asked for by plain queries
//! that the daemon runs over a connection of its own, and does not change: a newer one takes its place.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use aws_lc_rs::digest;

use super::{
    access::Name,
    lists::is_harmless_extension,
    names::{SearchPath, SearchPathError, SessionNames},
};

/// Rows of all answers together, beyond which no snapshot is made.
pub const MAX_CATALOG_ROWS: usize = 4_000_000;

/// Names a snapshot by its content: two of the same version say the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct CatalogVersion(pub [u8; 32]);

/// Kinds of relations, as `pg_class.relkind` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RelationKind {
    /// A table, partitioned or not.
    Table,
    /// A view.
    View,
    /// A materialized view.
    MaterializedView,
    /// A foreign table.
    ForeignTable,
    /// A sequence.
    Sequence,
    /// An index.
    Index,
    /// A composite type.
    CompositeType,
}

/// One relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// What it is.
    pub kind: RelationKind,
    /// Its columns in order, dropped ones left out, system columns too.
    pub columns: Arc<[Name]>,
}

/// Why an answer is no catalogue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// There must be one answer a query.
    #[error("{got} answers came to {want} queries")]
    Answers {
        /// Answers that came.
        got: usize,
        /// Queries that were asked.
        want: usize,
    },
    /// A row is not of the shape that its query asked for.
    #[error("row {row} of answer {answer} is not of the shape asked for")]
    Row {
        /// Which answer, from 0.
        answer: usize,
        /// Which row, from 0.
        row: usize,
    },
    /// More than [`MAX_CATALOG_ROWS`].
    #[error("the catalogues have more than {MAX_CATALOG_ROWS} rows")]
    TooLarge,
    /// The server's own search path could not be read.
    #[error("the server's search path cannot be read")]
    SearchPath {
        /// Why.
        #[source]
        source: SearchPathError,
    },
}

/// A function outside pg_catalog (or, inside it, merely that it is there).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FunctionEntry {
    pub(super) schema: Name,
    /// All overloads belong to an extension on the list of harmless ones.
    pub(super) harmless: bool,
}

/// An operator outside pg_catalog that is not a harmless extension's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OperatorEntry {
    pub(super) schema: Name,
    pub(super) function: (Name, Name),
}

/// A cast by a function outside pg_catalog that is not a harmless extension's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CastEntry {
    pub(super) target: Name,
    /// The server applies it without being asked.
    pub(super) implicit: bool,
    pub(super) function: (Name, Name),
}

/// What the catalogues say. The default knows nothing: every name is then unresolved, and stands for all that it could mean.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    version: CatalogVersion,
    database: Option<Name>,
    /// The role that a session begins with, and the one that it logged in as: usually the same.
    user: Option<Name>,
    login: Option<Name>,
    search_path: SearchPath,
    schemas: HashSet<Name>,
    relations: HashMap<Name, HashMap<Name, Relation>>,
    functions: HashMap<Name, Vec<FunctionEntry>>,
    operators: HashMap<Name, Vec<OperatorEntry>>,
    casts: Vec<CastEntry>,
}

type Row = Vec<Option<String>>;

impl Catalog {
    /// What to ask the server, each a statement with one result of text columns. They name everything with its schema,
    /// operators too, so that no search path changes what they mean. For PostgreSQL 13 and later.
    pub const QUERIES: &[&str] = &[
        "SELECT pg_catalog.current_setting('search_path'), current_user::pg_catalog.text, \
         pg_catalog.current_database()::pg_catalog.text, session_user::pg_catalog.text",
        "SELECT n.nspname::pg_catalog.text FROM pg_catalog.pg_namespace n \
         WHERE n.nspname OPERATOR(pg_catalog.!~) '^pg_(toast|temp|toast_temp)(_|$)' ORDER BY 1",
        "SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text, c.relkind::pg_catalog.text, \
         a.attname::pg_catalog.text FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
         LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid \
         AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped \
         WHERE n.nspname OPERATOR(pg_catalog.!~) '^pg_(toast|temp|toast_temp)(_|$)' \
         AND c.relkind OPERATOR(pg_catalog.<>) 't' ORDER BY 1, 2, a.attnum",
        "SELECT DISTINCT n.nspname::pg_catalog.text, p.proname::pg_catalog.text, e.extname::pg_catalog.text \
         FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace \
         LEFT JOIN pg_catalog.pg_depend d ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass \
         AND d.objid OPERATOR(pg_catalog.=) p.oid AND d.deptype OPERATOR(pg_catalog.=) 'e' \
         LEFT JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid ORDER BY 1, 2, 3",
        "SELECT n.nspname::pg_catalog.text, o.oprname::pg_catalog.text, f.nspname::pg_catalog.text, \
         p.proname::pg_catalog.text, e.extname::pg_catalog.text FROM pg_catalog.pg_operator o \
         JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) o.oprnamespace \
         JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) o.oprcode \
         JOIN pg_catalog.pg_namespace f ON f.oid OPERATOR(pg_catalog.=) p.pronamespace \
         LEFT JOIN pg_catalog.pg_depend d ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass \
         AND d.objid OPERATOR(pg_catalog.=) p.oid AND d.deptype OPERATOR(pg_catalog.=) 'e' \
         LEFT JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid \
         WHERE n.nspname OPERATOR(pg_catalog.<>) 'pg_catalog' OR f.nspname OPERATOR(pg_catalog.<>) 'pg_catalog' \
         ORDER BY 1, 2, 3, 4, 5",
        "SELECT t.typname::pg_catalog.text, c.castcontext::pg_catalog.text, f.nspname::pg_catalog.text, \
         p.proname::pg_catalog.text, e.extname::pg_catalog.text FROM pg_catalog.pg_cast c \
         JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) c.casttarget \
         JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) c.castfunc \
         JOIN pg_catalog.pg_namespace f ON f.oid OPERATOR(pg_catalog.=) p.pronamespace \
         LEFT JOIN pg_catalog.pg_depend d ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass \
         AND d.objid OPERATOR(pg_catalog.=) p.oid AND d.deptype OPERATOR(pg_catalog.=) 'e' \
         LEFT JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid \
         WHERE f.nspname OPERATOR(pg_catalog.<>) 'pg_catalog' ORDER BY 1, 2, 3, 4, 5",
    ];

    /// Builds the snapshot of the answers to [`Self::QUERIES`], in their order.
    ///
    /// # Errors
    /// When an answer is missing, too large, or not of the shape asked for.
    pub fn from_rows(answers: Vec<Vec<Row>>) -> Result<Self, CatalogError> {
        if answers.iter().map(Vec::len).sum::<usize>() > MAX_CATALOG_ROWS {
            return Err(CatalogError::TooLarge);
        }
        let version = version_of(&answers);
        let [settings, schemas, relations, functions, operators, casts]: [Vec<Row>; 6] = answers
            .try_into()
            .map_err(|answers: Vec<_>| CatalogError::Answers { got: answers.len(), want: Self::QUERIES.len() })?;
        let [path, user, database, login] = match settings.into_iter().next().map(<[Option<String>; 4]>::try_from) {
            Some(Ok([Some(path), Some(user), Some(database), Some(login)])) => [path, user, database, login],
            _ => return Err(CatalogError::Row { answer: 0, row: 0 }),
        };
        Ok(Self {
            version,
            database: Some(database.into()),
            user: Some(user.into()),
            login: Some(login.into()),
            search_path: SearchPath::parse(&path).map_err(|source| CatalogError::SearchPath { source })?,
            schemas: each(schemas, 1, |[schema]: [Option<String>; 1]| Some(Name::from(schema?)))?.into_iter().collect(),
            relations: relations_of(relations)?,
            functions: functions_of(functions)?,
            operators: operators_of(operators)?,
            casts: each(casts, 5, |[target, context, schema, name, extension]: [Option<String>; 5]| {
                let entry = CastEntry {
                    target: target?.into(),
                    implicit: context? != "e",
                    function: (schema?.into(), name?.into()),
                };
                Some((entry, extension))
            })?
            .into_iter()
            .filter(|(_, extension)| !of_harmless(extension.as_deref()))
            .map(|(entry, _)| entry)
            .collect(),
        })
    }

    /// Names this snapshot by its content.
    pub fn version(&self) -> CatalogVersion {
        self.version
    }

    /// The database that it describes.
    pub fn database(&self) -> Option<&Name> {
        self.database.as_ref()
    }

    /// The role that Weir logs in as.
    pub fn login(&self) -> Option<&Name> {
        self.login.as_ref()
    }

    /// Whether sessions begin with the role that they log in as: neither the role, nor the database, nor a trigger has
    /// given them another. Then nobody gains by going back to it.
    pub(super) fn begins_as_login(&self) -> bool {
        self.login.is_some() && self.login == self.user
    }

    /// The names of a session of the same role that has just begun.
    pub fn session_names(&self) -> SessionNames {
        SessionNames::new(self.user.as_deref().unwrap_or_default(), self.search_path.clone())
    }

    /// Looks a relation up.
    pub fn relation(&self, schema: &str, name: &str) -> Option<&Relation> {
        self.relations.get(schema)?.get(name)
    }

    /// Whether there is a schema of this name.
    pub fn has_schema(&self, schema: &str) -> bool {
        self.schemas.contains(schema)
    }

    pub(super) fn functions(&self, name: &str) -> &[FunctionEntry] {
        self.functions.get(name).map_or(&[], Vec::as_slice)
    }

    pub(super) fn operators(&self, name: &str) -> &[OperatorEntry] {
        self.operators.get(name).map_or(&[], Vec::as_slice)
    }

    pub(super) fn casts(&self) -> &[CastEntry] {
        &self.casts
    }
}

/// The columns that every table has, and that `*` leaves out.
pub(super) fn is_system_column(name: &str) -> bool {
    matches!(name, "ctid" | "xmin" | "cmin" | "xmax" | "cmax" | "tableoid")
}

fn relations_of(rows: Vec<Row>) -> Result<HashMap<Name, HashMap<Name, Relation>>, CatalogError> {
    let mut relations: HashMap<Name, HashMap<Name, (RelationKind, Vec<Name>)>> = HashMap::new();
    let rows = each(rows, 2, |[schema, name, kind, column]: [Option<String>; 4]| {
        let kind = match kind?.as_str() {
            "r" | "p" => RelationKind::Table,
            "v" => RelationKind::View,
            "m" => RelationKind::MaterializedView,
            "f" => RelationKind::ForeignTable,
            "S" => RelationKind::Sequence,
            "i" | "I" => RelationKind::Index,
            "c" => RelationKind::CompositeType,
            _ => return None,
        };
        Some((Name::from(schema?), Name::from(name?), kind, column.map(Name::from)))
    })?;
    for (schema, name, kind, column) in rows {
        let (_, columns) = relations.entry(schema).or_default().entry(name).or_insert_with(|| (kind, Vec::new()));
        columns.extend(column);
    }
    let finish =
        |(name, (kind, columns)): (Name, (RelationKind, Vec<Name>))| (name, Relation { kind, columns: columns.into() });
    Ok(relations.into_iter().map(|(schema, names)| (schema, names.into_iter().map(finish).collect())).collect())
}

fn functions_of(rows: Vec<Row>) -> Result<HashMap<Name, Vec<FunctionEntry>>, CatalogError> {
    let mut functions: HashMap<Name, Vec<FunctionEntry>> = HashMap::new();
    for (schema, name, harmless) in each(rows, 3, |[schema, name, extension]: [Option<String>; 3]| {
        Some((Name::from(schema?), Name::from(name?), of_harmless(extension.as_deref())))
    })? {
        let entries = functions.entry(name).or_default();
        match entries.iter_mut().find(|entry| entry.schema == schema) {
            Some(entry) => entry.harmless &= harmless,
            None => entries.push(FunctionEntry { schema, harmless }),
        }
    }
    Ok(functions)
}

fn operators_of(rows: Vec<Row>) -> Result<HashMap<Name, Vec<OperatorEntry>>, CatalogError> {
    let mut operators: HashMap<Name, Vec<OperatorEntry>> = HashMap::new();
    for (name, entry, extension) in
        each(rows, 4, |[schema, name, f_schema, f_name, extension]: [Option<String>; 5]| {
            let entry = OperatorEntry { schema: schema?.into(), function: (f_schema?.into(), f_name?.into()) };
            Some((Name::from(name?), entry, extension))
        })?
    {
        if !of_harmless(extension.as_deref()) {
            operators.entry(name).or_default().push(entry);
        }
    }
    Ok(operators)
}

fn of_harmless(extension: Option<&str>) -> bool {
    extension.is_some_and(is_harmless_extension)
}

/// Turns every row of answer number `answer` into a value, or says which row is not of the shape asked for.
fn each<const N: usize, T>(
    rows: Vec<Row>,
    answer: usize,
    read: impl Fn([Option<String>; N]) -> Option<T>,
) -> Result<Vec<T>, CatalogError> {
    rows.into_iter()
        .enumerate()
        .map(|(row, columns)| {
            <[Option<String>; N]>::try_from(columns).ok().and_then(&read).ok_or(CatalogError::Row { answer, row })
        })
        .collect()
}

fn version_of(answers: &[Vec<Row>]) -> CatalogVersion {
    let mut context = digest::Context::new(&digest::SHA256);
    for answer in answers {
        for row in answer {
            for column in row {
                // No text of the server holds NUL, so the marks cannot be forged.
                match column {
                    Some(text) => context.update(text.as_bytes()),
                    None => context.update(b"\0n"),
                }
                context.update(b"\0c");
            }
            context.update(b"\0r");
        }
        context.update(b"\0a");
    }
    let mut version = [0; 32];
    version.copy_from_slice(context.finish().as_ref());
    CatalogVersion(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row<const N: usize>(columns: [&str; N]) -> Row {
        columns.iter().map(|c| (!c.is_empty()).then(|| c.to_string())).collect()
    }

    fn answers() -> Vec<Vec<Row>> {
        vec![
            vec![row(["\"$user\", public", "app", "shop", "app"])],
            vec![row(["public"])],
            vec![row(["public", "t", "r", "a"]), row(["public", "t", "r", "b"]), row(["public", "e", "v", ""])],
            vec![row(["public", "f", ""]), row(["public", "max", "citext"]), row(["public", "f", "citext"])],
            vec![row(["public", "=", "public", "citext_eq", "citext"]), row(["public", "=", "public", "mine", ""])],
            vec![row(["text", "i", "public", "mine", ""])],
        ]
    }

    #[test]
    fn a_snapshot_says_what_the_rows_said() {
        let catalog = Catalog::from_rows(answers()).unwrap();
        let table = catalog.relation("public", "t").unwrap();
        assert_eq!((table.kind, table.columns.join(",")), (RelationKind::Table, "a,b".to_owned()));
        assert_eq!(catalog.relation("public", "e").unwrap().columns.len(), 0);
        assert_eq!(catalog.relation("other", "t"), None);
        assert!(!catalog.functions("f")[0].harmless && catalog.functions("max")[0].harmless);
        assert_eq!(catalog.operators("=").len(), 1);
        assert!(catalog.casts()[0].implicit);
    }

    #[test]
    fn rows_of_another_shape_are_refused_with_their_place() {
        let mut wrong = answers();
        wrong[2].push(row(["public", "x", "?", "a"]));
        assert_eq!(Catalog::from_rows(wrong).unwrap_err(), CatalogError::Row { answer: 2, row: 3 });
        assert_eq!(Catalog::from_rows(vec![]).unwrap_err(), CatalogError::Answers { got: 0, want: 6 });
    }

    #[test]
    fn another_content_is_another_version() {
        let version = Catalog::from_rows(answers()).unwrap().version();
        assert_eq!(version, Catalog::from_rows(answers()).unwrap().version());
        let mut moved = answers();
        let column = moved[2][0][3].take();
        moved[2][1][3] = column;
        assert_ne!(version, Catalog::from_rows(moved).unwrap().version());
    }
}
