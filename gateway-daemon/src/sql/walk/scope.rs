//! Which columns a reference may mean: FROM items and WITH queries, level by level.

use std::sync::Arc;

use super::{Walker, names::Target};
use crate::sql::{
    access::{Action, Name, Object},
    catalog::is_system_column,
};

/// One level of a query: what its FROM and WITH make visible. Names that it does not have are looked for in its parent.
#[derive(Debug, Default)]
pub(super) struct Scope<'s> {
    pub(super) parent: Option<&'s Scope<'s>>,
    pub(super) items: Vec<Item>,
    pub(super) ctes: Vec<Cte>,
}

/// The columns of something in FROM, in order; `None` where they cannot be told.
pub(super) type ColumnNames = Option<Arc<[Name]>>;

/// A WITH query.
#[derive(Debug, Clone)]
pub(super) struct Cte {
    pub(super) name: Name,
    pub(super) columns: ColumnNames,
}

/// What stands in FROM under one name.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// What references call it; a join or subselect may have none.
    pub(super) name: Option<Name>,
    /// The schemas that may stand before the name; none where it has an alias.
    pub(super) schemas: Vec<Name>,
    /// What references call its columns.
    pub(super) columns: ColumnNames,
    pub(super) base: Base,
    /// The relations below it, for row locks.
    pub(super) locks: Vec<Object>,
}

/// What an item's columns are columns of.
#[derive(Debug, Clone)]
pub(super) enum Base {
    /// Of the relations that its name may mean. The columns by their own names stand in the order of [`Item::columns`].
    Relations {
        objects: Arc<[Object]>,
        own: ColumnNames,
        /// An alias list renames columns that are not known: any reference may mean any of them.
        opaque: bool,
    },
    /// Of a subselect, function or WITH query: whatever it reads was counted there.
    Derived,
}

/// How an item answers to a column's name.
enum Has {
    Yes,
    /// Its columns cannot be told.
    Perhaps,
    No,
}

impl<'s> Scope<'s> {
    pub(super) fn below(parent: &'s Scope<'s>) -> Self {
        Self { parent: Some(parent), items: Vec::new(), ctes: Vec::new() }
    }

    pub(super) fn cte(&self, name: &str) -> Option<&Cte> {
        self.levels().find_map(|level| level.ctes.iter().rev().find(|cte| &*cte.name == name))
    }

    fn levels(&self) -> impl Iterator<Item = &Scope<'s>> {
        std::iter::successors(Some(self), |level| level.parent)
    }

    /// Whether a bare name is a whole row here: some item is called so, and none may have it as a column.
    pub(super) fn is_row(&self, name: &str) -> bool {
        let column = |item: &Item| !matches!(item.has(name), Has::No);
        !self.levels().any(|level| level.items.iter().any(column)) && !self.named(name).is_empty()
    }

    /// The items called `name`, of the first level that has any.
    fn named(&self, name: &str) -> Vec<&Item> {
        let of = |level: &'_ Scope<'s>| -> bool { level.items.iter().any(|item| item.name.as_deref() == Some(name)) };
        let level = self.levels().find(|level| of(level));
        level.map_or_else(Vec::new, |level| {
            level.items.iter().filter(|item| item.name.as_deref() == Some(name)).collect()
        })
    }
}

impl Item {
    /// A relation in FROM, or the target of a write.
    pub(super) fn relation(targets: &[Target<'_>], alias: Option<Name>, aliases: &[Name]) -> Self {
        // Of several relations that the name may mean each may have other columns.
        let own = match targets {
            [target] => target.known.map(|relation| Arc::clone(&relation.columns)),
            _ => None,
        };
        let objects: Arc<[Object]> = targets.iter().map(Target::object).collect();
        let schemas =
            if alias.is_some() { Vec::new() } else { targets.iter().map(|t| Arc::clone(&t.schema)).collect() };
        Self {
            name: alias.or_else(|| targets.first().map(|target| Arc::clone(&target.name))),
            schemas,
            columns: own.as_ref().map(|own| renamed(own, aliases)),
            locks: objects.to_vec(),
            base: Base::Relations { objects, opaque: own.is_none() && !aliases.is_empty(), own },
        }
    }

    pub(super) fn derived(name: Option<Name>, columns: ColumnNames, locks: Vec<Object>) -> Self {
        Self { name, schemas: Vec::new(), columns, base: Base::Derived, locks }
    }

    fn has(&self, column: &str) -> Has {
        let system = matches!(self.base, Base::Relations { .. }) && is_system_column(column);
        match &self.columns {
            _ if system => Has::Yes,
            Some(columns) if columns.iter().any(|name| &**name == column) => Has::Yes,
            Some(_) => Has::No,
            None => Has::Perhaps,
        }
    }
}

/// Columns under an alias list: the first ones take its names.
pub(super) fn renamed(columns: &Arc<[Name]>, aliases: &[Name]) -> Arc<[Name]> {
    if aliases.is_empty() {
        return Arc::clone(columns);
    }
    columns.iter().enumerate().map(|(i, column)| Arc::clone(aliases.get(i).unwrap_or(column))).collect()
}

impl Walker<'_> {
    /// A bare name in an expression: a column of the innermost level that has it, or else a whole row.
    pub(super) fn bare_name(&mut self, name: &Name, scope: &Scope<'_>) {
        let mut perhaps = false;
        for level in scope.levels() {
            let mut found = false;
            for item in &level.items {
                match item.has(name) {
                    Has::Yes => {
                        found = true;
                        self.use_column(item, name);
                    }
                    Has::Perhaps => {
                        perhaps = true;
                        self.use_column(item, name);
                    }
                    Has::No => {}
                }
            }
            if found {
                return;
            }
        }
        let rows = scope.named(name);
        if rows.is_empty() && !perhaps {
            // No column that the catalogue knows. Whichever relation has come by one, all of it must be permitted.
            self.unresolved = true;
            for level in scope.levels() {
                level.items.iter().for_each(|item| self.use_row(item));
            }
        }
        rows.into_iter().for_each(|item| self.use_row(item));
    }

    /// `table.column`, `schema.table.column`.
    pub(super) fn qualified_name(&mut self, schema: Option<&str>, table: &str, column: &Name, scope: &Scope<'_>) {
        let items = self.items_named(schema, table, scope);
        // A join's alias stands for several items: the column is one of those that have it.
        let may_have: Vec<&Item> = items.iter().filter(|item| !matches!(item.has(column), Has::No)).collect();
        for item in &may_have {
            self.use_column(item, column);
        }
        if may_have.is_empty() {
            // `t.f` calls f(t) where t has no column f.
            self.unresolved |= !items.is_empty();
            items.iter().for_each(|item| self.use_row(item));
            if !items.is_empty() {
                self.unknown(
                    "column",
                    column,
                    "it is no column that the catalogue knows, and may be a function of the row",
                );
            }
        } else if !may_have.iter().any(|item| matches!(item.has(column), Has::Yes)) {
            self.field(column);
        }
    }

    /// `table.*`, `schema.table.*`.
    pub(super) fn qualified_star(&mut self, schema: Option<&str>, table: &str, scope: &Scope<'_>) {
        for item in self.items_named(schema, table, scope) {
            self.use_row(&item);
        }
    }

    fn items_named(&mut self, schema: Option<&str>, table: &str, scope: &Scope<'_>) -> Vec<Item> {
        let fits = |item: &&Item| schema.is_none_or(|schema| item.schemas.iter().any(|s| &**s == schema));
        let items: Vec<Item> = scope.named(table).into_iter().filter(fits).cloned().collect();
        if items.is_empty() {
            self.unknown("table", table, "nothing in FROM is called so");
        }
        items
    }

    /// Counts one column of an item, under the name that references use.
    pub(super) fn use_column(&mut self, item: &Item, column: &Name) {
        let Base::Relations { objects, own, opaque } = &item.base else { return };
        if *opaque {
            return self.use_row(item);
        }
        let own_name = match (&item.columns, own) {
            (Some(columns), Some(own)) => {
                columns.iter().position(|c| c == column).and_then(|i| own.get(i)).unwrap_or(column)
            }
            _ => column,
        };
        for object in objects.iter() {
            self.add_column(Action::Select, object, own_name);
        }
    }

    /// Counts every column of an item.
    pub(super) fn use_row(&mut self, item: &Item) {
        let Base::Relations { objects, .. } = &item.base else { return };
        for object in objects.iter() {
            self.add_all(Action::Select, object);
        }
    }
}
