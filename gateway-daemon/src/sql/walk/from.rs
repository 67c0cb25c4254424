//! FROM: relations, queries, functions, tables made of XML and JSON, and how they are joined.

use std::sync::Arc;

use pg_query::{
    Node, NodeEnum,
    protobuf::{Alias, JoinExpr, JsonTable, RangeFunction, RangeTableFunc, RangeVar},
};

use super::{
    MAX_ITEMS, Walker,
    names::{qualified, text},
    query::{Output, alias_columns, alias_name, all_columns},
    scope::{ColumnNames, Item, Scope, renamed},
};
use crate::sql::{
    access::{Action, Object},
    names::cut,
};

impl Walker<'_> {
    /// The items of a FROM list. `level` is the query's scope, still without items.
    pub(super) fn items(&mut self, list: &[Node], level: &Scope<'_>) -> Vec<Item> {
        let mut items = Vec::new();
        if list.len() > MAX_ITEMS {
            self.unknown("node", "FromClause", "it has more items than are followed");
            return items;
        }
        for node in list {
            let more = self.item(node, level, &items);
            items.extend(more);
        }
        items
    }

    /// One item of FROM. `left` is what LATERAL sees.
    pub(super) fn item(&mut self, node: &Node, level: &Scope<'_>, left: &[Item]) -> Vec<Item> {
        let lateral = || Scope { items: left.to_vec(), ..Scope::below(level) };
        match &node.node {
            Some(NodeEnum::RangeVar(relation)) => vec![self.relation_item(relation, level)],
            Some(NodeEnum::RangeSubselect(e)) => {
                let output = match e.subquery.as_deref() {
                    Some(query) if e.lateral => self.query(query, &lateral()),
                    Some(query) => self.query(query, level),
                    None => Output::default(),
                };
                vec![derived(e.alias.as_ref(), output.columns, output.locks)]
            }
            Some(NodeEnum::RangeFunction(e)) => vec![self.range_function(e, &lateral())],
            Some(NodeEnum::RangeTableFunc(e)) => vec![self.xml_table(e, &lateral())],
            Some(NodeEnum::JsonTable(e)) => vec![self.json_table(e, &lateral())],
            Some(NodeEnum::RangeTableSample(e)) => {
                match qualified(&e.method) {
                    Some(("" | "pg_catalog", "bernoulli" | "system")) => {}
                    Some((_, name)) => self.unknown("sampling method", name, "it is not one of pg_catalog's"),
                    None => self.unplaced(None),
                }
                self.exprs(&e.args, &lateral());
                self.maybe_expr(e.repeatable.as_deref(), &lateral());
                e.relation.as_deref().map_or_else(Vec::new, |relation| self.item(relation, level, left))
            }
            Some(NodeEnum::JoinExpr(join)) => self.join(join, level, left),
            other => {
                self.unplaced(other.as_ref());
                Vec::new()
            }
        }
    }

    fn relation_item(&mut self, relation: &RangeVar, level: &Scope<'_>) -> Item {
        let name = cut(&relation.relname);
        if let Some(cte) = level.cte(&name).filter(|_| relation.schemaname.is_empty()) {
            let mut item = derived(relation.alias.as_ref(), cte.columns.clone(), Vec::new());
            item.name.get_or_insert(name);
            return item;
        }
        let targets = self.targets(relation);
        for target in &targets {
            self.add(Action::Select, target.object());
        }
        Item::relation(&targets, alias_name(relation.alias.as_ref()), &alias_columns(relation.alias.as_ref()))
    }

    fn range_function(&mut self, e: &RangeFunction, lateral: &Scope<'_>) -> Item {
        let mut defined = !e.coldeflist.is_empty();
        for function in &e.functions {
            let Some(NodeEnum::List(parts)) = &function.node else {
                self.unplaced(function.node.as_ref());
                continue;
            };
            let [call, rest @ ..] = parts.items.as_slice() else { continue };
            self.expr(call, lateral);
            // ROWS FROM (f() AS (a int)): what it defines isn't followed.
            defined &= rest.iter().all(|columns| columns.node.is_none());
        }
        let columns = if defined && e.functions.len() == 1 && !e.ordinality {
            self.column_definitions(&e.coldeflist)
        } else {
            self.column_definitions(&e.coldeflist);
            None
        };
        derived(e.alias.as_ref(), columns, Vec::new())
    }

    fn column_definitions(&mut self, definitions: &[Node]) -> ColumnNames {
        definitions
            .iter()
            .map(|definition| match &definition.node {
                Some(NodeEnum::ColumnDef(column)) => Some(cut(&column.colname)),
                _ => None,
            })
            .collect()
    }

    fn xml_table(&mut self, e: &RangeTableFunc, lateral: &Scope<'_>) -> Item {
        self.maybe_expr(e.docexpr.as_deref(), lateral);
        self.maybe_expr(e.rowexpr.as_deref(), lateral);
        self.targets_list(&e.namespaces, lateral);
        let mut columns = Vec::new();
        for column in &e.columns {
            match &column.node {
                Some(NodeEnum::RangeTableFuncCol(column)) => {
                    columns.push(cut(&column.colname));
                    self.maybe_expr(column.colexpr.as_deref(), lateral);
                    self.maybe_expr(column.coldefexpr.as_deref(), lateral);
                }
                other => self.unplaced(other.as_ref()),
            }
        }
        derived(e.alias.as_ref(), Some(columns.into()), Vec::new())
    }

    fn json_table(&mut self, e: &JsonTable, lateral: &Scope<'_>) -> Item {
        self.json_value(e.context_item.as_deref(), lateral);
        self.maybe_expr(e.pathspec.as_deref().and_then(|path| path.string.as_deref()), lateral);
        self.json_passing(&e.passing, lateral);
        self.json_behavior(e.on_error.as_deref(), lateral);
        self.json_columns(&e.columns, lateral);
        derived(e.alias.as_ref(), None, Vec::new())
    }

    fn json_columns(&mut self, columns: &[Node], lateral: &Scope<'_>) {
        for column in columns {
            match &column.node {
                Some(NodeEnum::JsonTableColumn(column)) => {
                    self.maybe_expr(column.pathspec.as_deref().and_then(|path| path.string.as_deref()), lateral);
                    self.json_behavior(column.on_empty.as_deref(), lateral);
                    self.json_behavior(column.on_error.as_deref(), lateral);
                    self.cast_to(column.type_name.as_ref());
                    self.json_columns(&column.columns, lateral);
                }
                other => self.unplaced(other.as_ref()),
            }
        }
    }

    fn join(&mut self, join: &JoinExpr, level: &Scope<'_>, left: &[Item]) -> Vec<Item> {
        let (Some(larg), Some(rarg)) = (join.larg.as_deref(), join.rarg.as_deref()) else {
            self.unplaced(None);
            return Vec::new();
        };
        let mut items = self.item(larg, level, left);
        let seen: Vec<Item> = left.iter().chain(&items).cloned().collect();
        let right = self.item(rarg, level, &seen);
        self.join_columns(join, &items, &right, level);
        items.extend(right);
        let scope = Scope { items, ..Scope::below(level) };
        self.maybe_expr(join.quals.as_deref(), &scope);
        let mut items = scope.items;
        if let Some(alias) = &join.join_using_alias {
            let columns = join.using_clause.iter().map(|name| text(name).map(cut)).collect();
            items.push(derived(Some(alias), columns, Vec::new()));
        }
        match &join.alias {
            None => items,
            Some(alias) if alias.colnames.is_empty() => {
                let name = cut(&alias.aliasname);
                items
                    .into_iter()
                    .map(|item| Item { name: Some(Arc::clone(&name)), schemas: Vec::new(), ..item })
                    .collect()
            }
            // Which column takes which name isn't followed: all are counted.
            Some(alias) => {
                items.iter().for_each(|item| self.use_row(item));
                vec![derived(Some(alias), None, items.into_iter().flat_map(|item| item.locks).collect())]
            }
        }
    }

    /// USING and NATURAL compare columns that stand in no expression.
    fn join_columns(&mut self, join: &JoinExpr, left: &[Item], right: &[Item], level: &Scope<'_>) {
        if join.using_clause.is_empty() && !join.is_natural {
            return;
        }
        self.operator_named("=");
        for name in &join.using_clause {
            let Some(name) = text(name).map(cut) else { continue };
            for side in [left, right] {
                let scope = Scope { items: side.to_vec(), ..Scope::below(level) };
                self.bare_name(&name, &scope);
            }
        }
        if !join.is_natural {
            return;
        }
        match (all_columns(left), all_columns(right)) {
            (Some(l), Some(r)) => {
                for name in l.iter().filter(|name| r.contains(name)) {
                    for item in left.iter().chain(right) {
                        if item.columns.iter().flat_map(|c| c.iter()).any(|column| column == name) {
                            self.use_column(item, name);
                        }
                    }
                }
            }
            _ => left.iter().chain(right).for_each(|item| self.use_row(item)),
        }
    }
}

fn derived(alias: Option<&Alias>, columns: ColumnNames, locks: Vec<Object>) -> Item {
    let columns = columns.map(|columns| renamed(&columns, &alias_columns(alias)));
    Item::derived(alias_name(alias), columns, locks)
}
