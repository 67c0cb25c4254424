//! INSERT, UPDATE, DELETE, MERGE, and what they return.

use pg_query::{
    Node, NodeEnum,
    protobuf::{
        CmdType, DeleteStmt, InsertStmt, MergeStmt, MergeWhenClause, OnConflictClause, RangeVar, ReturningClause,
        ReturningOptionKind, UpdateStmt,
    },
};

use super::{
    Walker,
    query::{Output, alias_name, output_names},
    scope::{Base, Item, Scope},
};
use crate::sql::{
    access::{Action, Name, Object},
    names::cut,
};

impl Walker<'_> {
    pub(super) fn insert(&mut self, insert: &InsertStmt, parent: &Scope<'_>) -> Output {
        let mut scope = Scope::below(parent);
        self.with(insert.with_clause.as_ref(), &mut scope);
        let (item, objects) = self.write_target(insert.relation.as_ref());
        objects.iter().for_each(|object| self.add(Action::Insert, object.clone()));
        self.write_columns(Action::Insert, &objects, &insert.cols, &scope);
        if let Some(select) = insert.select_stmt.as_deref() {
            if insert.cols.is_empty() {
                objects.iter().for_each(|object| self.add_all(Action::Insert, object));
            }
            self.query(select, &scope);
        }
        scope.items.push(item.clone());
        if let Some(conflict) = insert.on_conflict_clause.as_deref() {
            self.on_conflict(conflict, &item, &objects, &scope);
        }
        self.returning(insert.returning_clause.as_ref(), &item, scope)
    }

    fn on_conflict(&mut self, conflict: &OnConflictClause, item: &Item, objects: &[Object], parent: &Scope<'_>) {
        // What was proposed, not what is stored.
        let excluded = Item::derived(Some("excluded".into()), item.columns.clone(), Vec::new());
        let scope = Scope { items: vec![item.clone(), excluded], ..Scope::below(parent) };
        if let Some(infer) = conflict.infer.as_deref() {
            for element in &infer.index_elems {
                match &element.node {
                    Some(NodeEnum::IndexElem(element)) => {
                        if !element.name.is_empty() {
                            objects.iter().for_each(|o| self.add_column(Action::Insert, o, &cut(&element.name)));
                        }
                        self.maybe_expr(element.expr.as_deref(), &scope);
                    }
                    other => self.unplaced(other.as_ref()),
                }
            }
            self.maybe_expr(infer.where_clause.as_deref(), &scope);
        }
        self.assignments(objects, &conflict.target_list, &scope);
        self.maybe_expr(conflict.where_clause.as_deref(), &scope);
    }

    pub(super) fn update(&mut self, update: &UpdateStmt, parent: &Scope<'_>) -> Output {
        let mut scope = Scope::below(parent);
        self.with(update.with_clause.as_ref(), &mut scope);
        let (item, objects) = self.write_target(update.relation.as_ref());
        let from = self.items(&update.from_clause, &scope);
        scope.items.push(item.clone());
        scope.items.extend(from);
        objects.iter().for_each(|object| self.add(Action::Update, object.clone()));
        self.assignments(&objects, &update.target_list, &scope);
        self.maybe_expr(update.where_clause.as_deref(), &scope);
        self.returning(update.returning_clause.as_ref(), &item, scope)
    }

    pub(super) fn delete(&mut self, delete: &DeleteStmt, parent: &Scope<'_>) -> Output {
        let mut scope = Scope::below(parent);
        self.with(delete.with_clause.as_ref(), &mut scope);
        let (item, objects) = self.write_target(delete.relation.as_ref());
        let using = self.items(&delete.using_clause, &scope);
        scope.items.push(item.clone());
        scope.items.extend(using);
        objects.into_iter().for_each(|object| self.add(Action::Delete, object));
        self.maybe_expr(delete.where_clause.as_deref(), &scope);
        self.returning(delete.returning_clause.as_ref(), &item, scope)
    }

    pub(super) fn merge(&mut self, merge: &MergeStmt, parent: &Scope<'_>) -> Output {
        let mut scope = Scope::below(parent);
        self.with(merge.with_clause.as_ref(), &mut scope);
        let (item, objects) = self.write_target(merge.relation.as_ref());
        let source = merge.source_relation.as_deref().map_or_else(Vec::new, |node| self.item(node, &scope, &[]));
        scope.items.push(item.clone());
        scope.items.extend(source);
        self.maybe_expr(merge.join_condition.as_deref(), &scope);
        for clause in &merge.merge_when_clauses {
            match &clause.node {
                Some(NodeEnum::MergeWhenClause(clause)) => self.merge_when(clause, &objects, &scope),
                other => self.unplaced(other.as_ref()),
            }
        }
        self.returning(merge.returning_clause.as_ref(), &item, scope)
    }

    fn merge_when(&mut self, clause: &MergeWhenClause, objects: &[Object], scope: &Scope<'_>) {
        self.maybe_expr(clause.condition.as_deref(), scope);
        match CmdType::try_from(clause.command_type) {
            Ok(CmdType::CmdInsert) => {
                objects.iter().for_each(|object| self.add(Action::Insert, object.clone()));
                self.write_columns(Action::Insert, objects, &clause.target_list, scope);
                if clause.target_list.is_empty() {
                    objects.iter().for_each(|object| self.add_all(Action::Insert, object));
                }
                self.exprs(&clause.values, scope);
            }
            Ok(CmdType::CmdUpdate) => self.assignments(objects, &clause.target_list, scope),
            Ok(CmdType::CmdDelete) => objects.iter().for_each(|object| self.add(Action::Delete, object.clone())),
            Ok(CmdType::CmdNothing) => {}
            Ok(
                CmdType::Undefined | CmdType::CmdUnknown | CmdType::CmdSelect | CmdType::CmdMerge | CmdType::CmdUtility,
            )
            | Err(_) => self.unknown("node", "MergeWhenClause", "this form of MERGE is not understood"),
        }
    }

    /// The relation that is written. It is no WITH query, whatever it is called, and is read only where a column is named.
    fn write_target(&mut self, relation: Option<&RangeVar>) -> (Item, Vec<Object>) {
        let Some(relation) = relation else {
            self.unplaced(None);
            return (Item::derived(None, None, Vec::new()), Vec::new());
        };
        let targets = self.targets(relation);
        let item = Item::relation(&targets, alias_name(relation.alias.as_ref()), &[]);
        (item, targets.iter().map(super::names::Target::object).collect())
    }

    /// SET a = …, (b, c) = …
    fn assignments(&mut self, objects: &[Object], targets: &[Node], scope: &Scope<'_>) {
        objects.iter().filter(|_| !targets.is_empty()).for_each(|object| self.add(Action::Update, object.clone()));
        self.write_columns(Action::Update, objects, targets, scope);
    }

    fn write_columns(&mut self, action: Action, objects: &[Object], targets: &[Node], scope: &Scope<'_>) {
        for target in targets {
            let Some(NodeEnum::ResTarget(target)) = &target.node else {
                self.unplaced(target.node.as_ref());
                continue;
            };
            objects.iter().for_each(|object| self.add_column(action, object, &cut(&target.name)));
            for step in &target.indirection {
                if let Some(NodeEnum::AIndices(indices)) = &step.node {
                    self.maybe_expr(indices.lidx.as_deref(), scope);
                    self.maybe_expr(indices.uidx.as_deref(), scope);
                }
            }
            self.maybe_expr(target.val.as_deref(), scope);
        }
    }

    fn returning(&mut self, clause: Option<&ReturningClause>, target: &Item, mut scope: Scope<'_>) -> Output {
        let Some(clause) = clause else { return Output::default() };
        let (mut old, mut new): (Name, Name) = ("old".into(), "new".into());
        for option in &clause.options {
            match &option.node {
                Some(NodeEnum::ReturningOption(option)) => match ReturningOptionKind::try_from(option.option) {
                    Ok(ReturningOptionKind::ReturningOptionOld) => old = cut(&option.value),
                    Ok(ReturningOptionKind::ReturningOptionNew) => new = cut(&option.value),
                    Ok(ReturningOptionKind::Undefined) | Err(_) => self.unplaced(None),
                },
                other => self.unplaced(other.as_ref()),
            }
        }
        let exprs = &clause.exprs;
        let output = Output { columns: output_names(exprs, &scope), locks: Vec::new() };
        // The row before and after; a bare column means the target's own, which is counted either way.
        for name in [old, new] {
            if !scope.items.iter().any(|item| item.name.as_ref() == Some(&name)) {
                let Base::Relations { .. } = target.base else { continue };
                scope.items.push(Item { name: Some(name), schemas: Vec::new(), ..target.clone() });
            }
        }
        self.targets_list(exprs, &scope);
        output
    }
}
