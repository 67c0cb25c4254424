//! SELECT in all its forms: WITH, set operations, VALUES.

use std::collections::HashSet;

use pg_query::{
    Node, NodeEnum,
    protobuf::{Alias, SelectStmt, SetOperation, WithClause},
};

use super::{
    MAX_ITEMS, Walker,
    names::{qualified, text},
    scope::{ColumnNames, Cte, Item, Scope, renamed},
};
use crate::sql::{
    access::{Action, Name, Object},
    names::cut,
};

/// What a query gives to the one around it.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) columns: ColumnNames,
    /// The relations of its FROM, which FOR UPDATE around it locks.
    pub(super) locks: Vec<Object>,
}

impl Walker<'_> {
    /// A query, or a data-modifying statement where one may stand.
    pub(super) fn query(&mut self, node: &Node, parent: &Scope<'_>) -> Output {
        match &node.node {
            Some(NodeEnum::SelectStmt(select)) => self.select(select, parent),
            Some(NodeEnum::InsertStmt(insert)) => self.insert(insert, parent),
            Some(NodeEnum::UpdateStmt(update)) => self.update(update, parent),
            Some(NodeEnum::DeleteStmt(delete)) => self.delete(delete, parent),
            Some(NodeEnum::MergeStmt(merge)) => self.merge(merge, parent),
            other => {
                self.unplaced(other.as_ref());
                Output::default()
            }
        }
    }

    pub(super) fn select(&mut self, select: &SelectStmt, parent: &Scope<'_>) -> Output {
        let mut scope = Scope::below(parent);
        self.with(select.with_clause.as_ref(), &mut scope);
        if let Some(into) = select.into_clause.as_deref() {
            self.table_made(into);
        }
        let mut output = match SetOperation::try_from(select.op) {
            Ok(SetOperation::SetopNone) if !select.values_lists.is_empty() => self.values(&select.values_lists, &scope),
            Ok(SetOperation::SetopNone) => return self.plain_select(select, scope),
            Ok(SetOperation::SetopUnion | SetOperation::SetopIntersect | SetOperation::SetopExcept) => {
                self.set_operation(select, &scope)
            }
            Ok(SetOperation::Undefined) | Err(_) => {
                self.unknown("node", "SelectStmt", "this form of SELECT is not understood");
                Output::default()
            }
        };
        // Here ORDER BY sees the result's columns alone, and those were counted.
        scope.items = vec![Item::derived(None, None, Vec::new())];
        self.sorts(&select.sort_clause, &scope);
        self.limits(select, &scope);
        self.locking(&select.locking_clause, &scope);
        output.locks.dedup();
        output
    }

    fn set_operation(&mut self, select: &SelectStmt, scope: &Scope<'_>) -> Output {
        let (Some(left), Some(right)) = (select.larg.as_deref(), select.rarg.as_deref()) else {
            self.unplaced(None);
            return Output::default();
        };
        let output = self.select(left, scope);
        self.select(right, scope);
        output
    }

    fn values(&mut self, lists: &[Node], scope: &Scope<'_>) -> Output {
        self.exprs(lists, scope);
        let width = match lists.first().and_then(|list| list.node.as_ref()) {
            Some(NodeEnum::List(list)) => list.items.len(),
            _ => 0,
        };
        Output { columns: Some((1..=width).map(|i| Name::from(format!("column{i}"))).collect()), locks: Vec::new() }
    }

    fn plain_select(&mut self, select: &SelectStmt, mut scope: Scope<'_>) -> Output {
        scope.items = self.items(&select.from_clause, &scope);
        let aliases = self.targets_list(&select.target_list, &scope);
        self.maybe_expr(select.where_clause.as_deref(), &scope);
        for group in &select.group_clause {
            // Here a column of FROM goes before a name of the result.
            if !is_alias(group, &aliases) || is_column(group, &scope) {
                self.expr(group, &scope);
            }
        }
        self.maybe_expr(select.having_clause.as_deref(), &scope);
        for window in &select.window_clause {
            match &window.node {
                Some(NodeEnum::WindowDef(window)) => self.window(window, &scope),
                other => self.unplaced(other.as_ref()),
            }
        }
        for distinct in &select.distinct_clause {
            if !is_alias(distinct, &aliases) {
                self.expr(distinct, &scope);
            }
        }
        for sort in &select.sort_clause {
            match &sort.node {
                Some(NodeEnum::SortBy(sort)) if sort.node.as_deref().is_some_and(|node| is_alias(node, &aliases)) => {
                    self.operator(&sort.use_op);
                }
                Some(NodeEnum::SortBy(sort)) => self.sort(sort, &scope),
                other => self.unplaced(other.as_ref()),
            }
        }
        self.limits(select, &scope);
        self.locking(&select.locking_clause, &scope);
        Output {
            columns: output_names(&select.target_list, &scope),
            locks: scope.items.iter().flat_map(|item| item.locks.iter().cloned()).collect(),
        }
    }

    /// The expressions of a target list; the names that it gives with AS.
    pub(super) fn targets_list(&mut self, targets: &[Node], scope: &Scope<'_>) -> HashSet<Name> {
        let mut aliases = HashSet::new();
        for target in targets {
            match &target.node {
                Some(NodeEnum::ResTarget(target)) => {
                    self.maybe_expr(target.val.as_deref(), scope);
                    if !target.name.is_empty() {
                        aliases.insert(cut(&target.name));
                    }
                }
                other => self.unplaced(other.as_ref()),
            }
        }
        aliases
    }

    fn limits(&mut self, select: &SelectStmt, scope: &Scope<'_>) {
        self.maybe_expr(select.limit_offset.as_deref(), scope);
        self.maybe_expr(select.limit_count.as_deref(), scope);
    }

    /// FOR UPDATE and its kin lock rows, which is as good as a write for everyone else.
    fn locking(&mut self, clauses: &[Node], scope: &Scope<'_>) {
        for clause in clauses {
            let Some(NodeEnum::LockingClause(clause)) = &clause.node else {
                self.unplaced(clause.node.as_ref());
                continue;
            };
            if clause.locked_rels.is_empty() {
                for object in scope.items.iter().flat_map(|item| &item.locks) {
                    self.add(Action::Update, object.clone());
                }
            }
            for relation in &clause.locked_rels {
                let Some(NodeEnum::RangeVar(relation)) = &relation.node else {
                    self.unplaced(relation.node.as_ref());
                    continue;
                };
                let name = cut(&relation.relname);
                let items: Vec<&Item> = scope.items.iter().filter(|item| item.name.as_ref() == Some(&name)).collect();
                if items.is_empty() {
                    self.unknown("table", &name, "nothing in FROM is called so");
                }
                for object in items.into_iter().flat_map(|item| &item.locks) {
                    self.add(Action::Update, object.clone());
                }
            }
        }
    }

    pub(super) fn with(&mut self, with: Option<&WithClause>, scope: &mut Scope<'_>) {
        let Some(with) = with else { return };
        let first = scope.ctes.len();
        let mut ctes = Vec::new();
        if with.ctes.len() > MAX_ITEMS {
            return self.unknown("node", "WithClause", "it has more queries than are followed");
        }
        for cte in &with.ctes {
            match &cte.node {
                Some(NodeEnum::CommonTableExpr(cte)) => ctes.push(cte),
                other => self.unplaced(other.as_ref()),
            }
        }
        if with.recursive {
            // Each sees all, itself too.
            scope.ctes.extend(ctes.iter().map(|cte| Cte { name: cut(&cte.ctename), columns: None }));
        }
        for (i, cte) in ctes.into_iter().enumerate() {
            let output = match cte.ctequery.as_deref() {
                Some(query) => self.query(query, scope),
                None => Output::default(),
            };
            let aliases = aliases_of(&cte.aliascolnames);
            let mut columns = output.columns.map(|columns| renamed(&columns, &aliases));
            if let Some(cycle) = cte.cycle_clause.as_deref() {
                self.maybe_expr(cycle.cycle_mark_value.as_deref(), scope);
                self.maybe_expr(cycle.cycle_mark_default.as_deref(), scope);
                columns = None;
            }
            if cte.search_clause.is_some() {
                columns = None;
            }
            match scope.ctes.get_mut(first + i).filter(|_| with.recursive) {
                Some(known) => known.columns = columns,
                None => scope.ctes.push(Cte { name: cut(&cte.ctename), columns }),
            }
        }
    }
}

pub(super) fn all_columns(items: &[Item]) -> Option<Vec<Name>> {
    let mut all = Vec::new();
    for item in items {
        all.extend(item.columns.as_ref()?.iter().cloned());
    }
    Some(all)
}

pub(super) fn alias_name(alias: Option<&Alias>) -> Option<Name> {
    alias.map(|alias| cut(&alias.aliasname))
}

pub(super) fn alias_columns(alias: Option<&Alias>) -> Vec<Name> {
    alias.map_or_else(Vec::new, |alias| aliases_of(&alias.colnames))
}

fn aliases_of(names: &[Node]) -> Vec<Name> {
    names.iter().filter_map(text).map(cut).collect()
}

/// The single name of a bare column reference.
pub(super) fn bare(node: &Node) -> Option<Name> {
    match &node.node {
        Some(NodeEnum::ColumnRef(column)) => match column.fields.as_slice() {
            [field] => text(field).map(cut),
            _ => None,
        },
        _ => None,
    }
}

fn is_alias(node: &Node, aliases: &HashSet<Name>) -> bool {
    bare(node).is_some_and(|name| aliases.contains(&name))
}

fn is_column(node: &Node, scope: &Scope<'_>) -> bool {
    // What cannot be told may be one.
    bare(node)
        .is_some_and(|name| scope.items.iter().any(|item| item.columns.as_ref().is_none_or(|c| c.contains(&name))))
}

/// The names of a query's columns, as the server's FigureColname gives them; `None` where one cannot be told.
pub(super) fn output_names(targets: &[Node], scope: &Scope<'_>) -> ColumnNames {
    let mut names = Vec::with_capacity(targets.len());
    for target in targets {
        let Some(NodeEnum::ResTarget(target)) = &target.node else { return None };
        if !target.name.is_empty() {
            names.push(cut(&target.name));
            continue;
        }
        let value = target.val.as_deref()?;
        match &value.node {
            Some(NodeEnum::ColumnRef(column)) => match column.fields.last().map(|field| (text(field), &field.node)) {
                Some((Some(name), _)) => names.push(cut(name)),
                Some((None, Some(NodeEnum::AStar(_)))) if column.fields.len() == 1 => {
                    names.extend(all_columns(&scope.items)?)
                }
                _ => return None,
            },
            _ => names.push(figured_name(value)?),
        }
    }
    Some(names.into())
}

fn figured_name(node: &Node) -> Option<Name> {
    match node.node.as_ref()? {
        NodeEnum::ColumnRef(column) => column.fields.last().and_then(text).map(cut),
        NodeEnum::FuncCall(call) => qualified(&call.funcname).map(|(_, name)| cut(name)),
        NodeEnum::TypeCast(cast) => match figured_name(cast.arg.as_deref()?)? {
            unnamed if &*unnamed == UNNAMED => qualified(&cast.type_name.as_ref()?.names).map(|(_, name)| cut(name)),
            name => Some(name),
        },
        NodeEnum::AConst(_) | NodeEnum::ParamRef(_) | NodeEnum::BoolExpr(_) | NodeEnum::NullTest(_) => {
            Some(UNNAMED.into())
        }
        NodeEnum::CoalesceExpr(_) => Some("coalesce".into()),
        NodeEnum::RowExpr(_) => Some("row".into()),
        NodeEnum::AArrayExpr(_) => Some("array".into()),
        _ => None,
    }
}

/// What the server calls a column without a name of its own.
const UNNAMED: &str = "?column?";
