//! A catalogue that is written down instead of asked for: what tests of policies run against, without a server.

use super::{
    catalog::{Catalog, CatalogError},
    lists,
};

/// One table of a declared catalogue.
#[derive(Debug, Clone, Copy)]
pub struct DeclaredTable<'a> {
    /// Its schema.
    pub schema: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its columns, in order.
    pub columns: &'a [String],
}

impl Catalog {
    /// The catalogue of a database with these tables and what every server has: the functions and the catalogue relations
    /// on Weir's lists. Sessions are of the role `user`, with the server's own search path.
    ///
    /// # Errors
    /// See [`Catalog::from_rows`].
    pub fn declared(database: &str, user: &str, tables: &[DeclaredTable<'_>]) -> Result<Self, CatalogError> {
        let row = |cells: &[&str]| cells.iter().map(|cell| Some((*cell).to_owned())).collect::<Vec<_>>();
        let mut schemas = vec!["public", "pg_catalog", "information_schema"];
        let mut relations = Vec::new();
        for table in tables {
            if !schemas.contains(&table.schema) {
                schemas.push(table.schema);
            }
            let bare = vec![Some(table.schema.to_owned()), Some(table.name.to_owned()), Some("r".to_owned()), None];
            let columns = table.columns.iter().map(|column| row(&[table.schema, table.name, "r", column]));
            relations.extend(if table.columns.is_empty() { vec![bare] } else { columns.collect() });
        }
        for (schema, name, columns) in lists::catalog_relations() {
            relations.push(vec![Some(schema.to_owned()), Some(name.to_owned()), Some("v".to_owned()), None]);
            relations.extend(columns.map(|column| row(&[schema, name, "v", column])));
        }
        let functions = lists::function_names().map(|name| vec![Some("pg_catalog".into()), Some(name.into()), None]);
        Self::from_rows(vec![
            vec![row(&["\"$user\", public", user, database, user])],
            schemas.into_iter().map(|schema| row(&[schema])).collect(),
            relations,
            functions.collect(),
            Vec::new(),
            Vec::new(),
        ])
    }
}
