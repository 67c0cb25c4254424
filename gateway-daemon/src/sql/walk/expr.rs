//! Expressions: every column, function, operator and subselect in them.

use std::sync::Arc;

use pg_query::{
    Node, NodeEnum,
    protobuf::{
        AConst, AExpr, AExprKind, FuncCall, JsonAggConstructor, JsonBehavior, JsonValueExpr, SortBy, SubLink, TypeName,
        WindowDef, a_const::Val,
    },
};

use super::{
    Walker,
    names::{CATALOG, qualified, text},
    nodes::family,
    query::bare,
    scope::Scope,
};
use crate::sql::{
    access::{Action, Name, Object},
    names::cut,
};

impl Walker<'_> {
    pub(super) fn exprs(&mut self, nodes: &[Node], scope: &Scope<'_>) {
        nodes.iter().for_each(|node| self.expr(node, scope));
    }

    pub(super) fn maybe_expr(&mut self, node: Option<&Node>, scope: &Scope<'_>) {
        if let Some(node) = node {
            self.expr(node, scope);
        }
    }

    pub(super) fn expr(&mut self, node: &Node, scope: &Scope<'_>) {
        // An absent element of a list, as in an empty grouping set.
        let Some(node) = &node.node else { return };
        match node {
            NodeEnum::AConst(_) | NodeEnum::ParamRef(_) | NodeEnum::SetToDefault(_) | NodeEnum::SqlvalueFunction(_) => {
            }
            // The cursor was decided when it was declared, and moves nothing here.
            NodeEnum::CurrentOfExpr(_) | NodeEnum::MergeSupportFunc(_) => {}
            NodeEnum::ColumnRef(column) => self.column_ref(&column.fields, scope),
            NodeEnum::AExpr(e) => {
                self.operator_of(e);
                self.maybe_expr(e.lexpr.as_deref(), scope);
                self.maybe_expr(e.rexpr.as_deref(), scope);
            }
            NodeEnum::BoolExpr(e) => self.exprs(&e.args, scope),
            NodeEnum::FuncCall(call) => self.call(call, scope),
            NodeEnum::TypeCast(cast) => {
                self.maybe_expr(cast.arg.as_deref(), scope);
                self.cast_to(cast.type_name.as_ref());
            }
            NodeEnum::SubLink(link) => self.sublink(link, scope),
            NodeEnum::AIndirection(e) => self.indirection(e.arg.as_deref(), &e.indirection, scope),
            NodeEnum::AArrayExpr(e) => self.exprs(&e.elements, scope),
            // A star in ROW(…) is a ColumnRef like any other.
            NodeEnum::RowExpr(e) => self.exprs(&e.args, scope),
            NodeEnum::CaseExpr(e) => {
                self.maybe_expr(e.arg.as_deref(), scope);
                for when in &e.args {
                    match &when.node {
                        Some(NodeEnum::CaseWhen(when)) => {
                            self.maybe_expr(when.expr.as_deref(), scope);
                            self.maybe_expr(when.result.as_deref(), scope);
                        }
                        other => self.unplaced(other.as_ref()),
                    }
                }
                self.maybe_expr(e.defresult.as_deref(), scope);
                // CASE x WHEN y compares by the operator `=`.
                if e.arg.is_some() {
                    self.operator_named("=");
                }
            }
            NodeEnum::CoalesceExpr(e) => self.exprs(&e.args, scope),
            NodeEnum::MinMaxExpr(e) => self.exprs(&e.args, scope),
            NodeEnum::NullTest(e) => self.maybe_expr(e.arg.as_deref(), scope),
            NodeEnum::BooleanTest(e) => self.maybe_expr(e.arg.as_deref(), scope),
            NodeEnum::CollateClause(e) => self.maybe_expr(e.arg.as_deref(), scope),
            NodeEnum::NamedArgExpr(e) => self.maybe_expr(e.arg.as_deref(), scope),
            NodeEnum::GroupingFunc(e) => self.exprs(&e.args, scope),
            NodeEnum::GroupingSet(e) => self.exprs(&e.content, scope),
            NodeEnum::List(list) => self.exprs(&list.items, scope),
            NodeEnum::MultiAssignRef(e) => {
                // The source stands once for each column that it gives.
                if e.colno <= 1 {
                    self.maybe_expr(e.source.as_deref(), scope);
                }
            }
            NodeEnum::XmlExpr(e) => {
                for named in &e.named_args {
                    match &named.node {
                        Some(NodeEnum::ResTarget(target)) => self.maybe_expr(target.val.as_deref(), scope),
                        _ => self.expr(named, scope),
                    }
                }
                self.exprs(&e.args, scope);
            }
            NodeEnum::XmlSerialize(e) => {
                self.maybe_expr(e.expr.as_deref(), scope);
                self.cast_to(e.type_name.as_ref());
            }
            NodeEnum::JsonIsPredicate(e) => self.maybe_expr(e.expr.as_deref(), scope),
            NodeEnum::JsonValueExpr(e) => self.json_value(Some(e), scope),
            NodeEnum::JsonParseExpr(e) => self.json_value(e.expr.as_deref(), scope),
            NodeEnum::JsonScalarExpr(e) => self.maybe_expr(e.expr.as_deref(), scope),
            NodeEnum::JsonSerializeExpr(e) => self.json_value(e.expr.as_deref(), scope),
            NodeEnum::JsonFuncExpr(e) => {
                self.json_value(e.context_item.as_deref(), scope);
                self.maybe_expr(e.pathspec.as_deref(), scope);
                self.json_passing(&e.passing, scope);
                self.json_behavior(e.on_empty.as_deref(), scope);
                self.json_behavior(e.on_error.as_deref(), scope);
                self.cast_to(e.output.as_ref().and_then(|output| output.type_name.as_ref()));
            }
            NodeEnum::JsonObjectConstructor(e) => self.json_pairs(&e.exprs, scope),
            NodeEnum::JsonArrayConstructor(e) => self.exprs(&e.exprs, scope),
            NodeEnum::JsonArrayQueryConstructor(e) => {
                if let Some(query) = e.query.as_deref() {
                    self.query(query, scope);
                }
            }
            NodeEnum::JsonObjectAgg(e) => {
                self.json_aggregate(e.constructor.as_deref(), scope);
                if let Some(pair) = e.arg.as_deref() {
                    self.maybe_expr(pair.key.as_deref(), scope);
                    self.json_value(pair.value.as_deref(), scope);
                }
            }
            NodeEnum::JsonArrayAgg(e) => {
                self.json_aggregate(e.constructor.as_deref(), scope);
                self.json_value(e.arg.as_deref(), scope);
            }
            other => self.unplaced(Some(other)),
        }
    }

    /// A node where it has no business, or of a kind that only analysis makes.
    pub(super) fn unplaced(&mut self, node: Option<&NodeEnum>) {
        let name = node.map_or("nothing", |node| family(node).1);
        self.unknown("node", name, "the statement has a part that is not understood here");
    }

    pub(super) fn column_ref(&mut self, fields: &[Node], scope: &Scope<'_>) {
        let names: Option<Vec<Name>> =
            fields.iter().filter(|f| !is_star(f)).map(|field| text(field).map(cut)).collect();
        let Some(names) = names else { return self.unknown("node", "ColumnRef", "a name has a part that is no name") };
        // A name of four parts begins with the database, which can only be this one.
        let names = if names.len() + usize::from(fields.last().is_some_and(is_star)) == 4 {
            names.get(1..)
        } else {
            Some(&*names)
        };
        match (names.unwrap_or_default(), fields.last().is_some_and(is_star)) {
            ([name], false) => self.bare_name(name, scope),
            ([table, column], false) => self.qualified_name(None, table, column, scope),
            ([schema, table, column], false) => self.qualified_name(Some(schema), table, column, scope),
            ([], true) => scope.items.iter().for_each(|item| self.use_row(item)),
            ([table], true) => self.qualified_star(None, table, scope),
            ([schema, table], true) => self.qualified_star(Some(schema), table, scope),
            _ => self.unknown("node", "ColumnRef", "a column's name has too many parts"),
        }
    }

    /// `(row).field`, `array[1]`.
    fn indirection(&mut self, arg: Option<&Node>, steps: &[Node], scope: &Scope<'_>) {
        self.maybe_expr(arg, scope);
        let mut row = arg.and_then(bare).filter(|name| scope.is_row(name));
        for step in steps {
            match &step.node {
                Some(NodeEnum::AIndices(indices)) => {
                    self.maybe_expr(indices.lidx.as_deref(), scope);
                    self.maybe_expr(indices.uidx.as_deref(), scope);
                }
                Some(NodeEnum::AStar(_)) => {}
                Some(NodeEnum::String(field)) => match row.take() {
                    // `(t).f` is `t.f`.
                    Some(table) => self.qualified_name(None, &table, &cut(&field.sval), scope),
                    None => self.field(&cut(&field.sval)),
                },
                other => self.unplaced(other.as_ref()),
            }
        }
    }

    /// A field of a row whose type is not known: where a function is called so, it may be that.
    pub(super) fn field(&mut self, name: &Name) {
        use crate::sql::lists::FunctionClass::Free;
        let free = crate::sql::lists::function_class(name) == Some(Free);
        let exists = self.catalog.functions(name).iter().any(|f| !(&*f.schema == CATALOG && free || f.harmless));
        if exists {
            self.unknown("field", name, "a function is called so, and may be meant");
        }
    }

    fn sublink(&mut self, link: &SubLink, scope: &Scope<'_>) {
        self.maybe_expr(link.testexpr.as_deref(), scope);
        if link.oper_name.is_empty() {
            // `x IN (SELECT …)` compares by `=`.
            if link.testexpr.is_some() {
                self.operator_named("=");
            }
        } else {
            self.operator(&link.oper_name);
        }
        match link.subselect.as_deref() {
            Some(select) => {
                self.query(select, scope);
            }
            None => self.unplaced(None),
        }
    }

    pub(super) fn call(&mut self, call: &FuncCall, scope: &Scope<'_>) {
        match qualified(&call.funcname) {
            Some((schema, name)) => self.function(schema, &cut(name), &call.args),
            None => self.unknown("function", "", "its name has a part that is no name"),
        }
        self.exprs(&call.args, scope);
        self.sorts(&call.agg_order, scope);
        self.maybe_expr(call.agg_filter.as_deref(), scope);
        if let Some(window) = call.over.as_deref() {
            self.window(window, scope);
        }
    }

    pub(super) fn window(&mut self, window: &WindowDef, scope: &Scope<'_>) {
        self.exprs(&window.partition_clause, scope);
        self.sorts(&window.order_clause, scope);
        self.maybe_expr(window.start_offset.as_deref(), scope);
        self.maybe_expr(window.end_offset.as_deref(), scope);
    }

    pub(super) fn sorts(&mut self, sorts: &[Node], scope: &Scope<'_>) {
        for sort in sorts {
            match &sort.node {
                Some(NodeEnum::SortBy(sort)) => self.sort(sort, scope),
                other => self.unplaced(other.as_ref()),
            }
        }
    }

    pub(super) fn sort(&mut self, sort: &SortBy, scope: &Scope<'_>) {
        self.maybe_expr(sort.node.as_deref(), scope);
        self.operator(&sort.use_op);
    }

    /// The operators of an expression: BETWEEN has none in its name.
    fn operator_of(&mut self, e: &AExpr) {
        match AExprKind::try_from(e.kind) {
            Ok(
                AExprKind::AexprBetween
                | AExprKind::AexprNotBetween
                | AExprKind::AexprBetweenSym
                | AExprKind::AexprNotBetweenSym,
            ) => ["<", "<=", ">", ">="].into_iter().for_each(|name| self.operator_named(name)),
            Ok(
                AExprKind::AexprOp
                | AExprKind::AexprOpAny
                | AExprKind::AexprOpAll
                | AExprKind::AexprDistinct
                | AExprKind::AexprNotDistinct
                | AExprKind::AexprNullif
                | AExprKind::AexprIn
                | AExprKind::AexprLike
                | AExprKind::AexprIlike
                | AExprKind::AexprSimilar,
            ) => self.operator(&e.name),
            Ok(AExprKind::Undefined) | Err(_) => {
                self.unknown("node", "A_Expr", "this form of expression is not understood")
            }
        }
    }

    /// An operator by its name: one of pg_catalog's, or the call of its function.
    pub(super) fn operator(&mut self, name: &[Node]) {
        match qualified(name) {
            None if name.is_empty() => {}
            Some(("", name)) => self.operator_named(name),
            Some((CATALOG, _)) => {}
            Some((_, name)) => self.unknown("operator", name, "it is not one of pg_catalog's"),
            None => self.unknown("operator", "", "its name has a part that is no name"),
        }
    }

    pub(super) fn operator_named(&mut self, name: &str) {
        let catalog = self.catalog;
        let entries = catalog.operators(name);
        if entries.is_empty() {
            return;
        }
        let searched = self.schemas_searched();
        for entry in entries.iter().filter(|entry| searched.contains(&entry.schema)) {
            self.call_function(&entry.function.0, &entry.function.1);
        }
    }

    /// A cast: by a function of pg_catalog's or of the type, unless someone made one.
    pub(super) fn cast_to(&mut self, to: Option<&TypeName>) {
        let Some((_, name)) = to.and_then(|to| qualified(&to.names)) else { return };
        let catalog = self.catalog;
        for cast in catalog.casts().iter().filter(|cast| &*cast.target == name) {
            self.call_function(&cast.function.0, &cast.function.1);
        }
    }

    pub(super) fn call_function(&mut self, schema: &Name, name: &Name) {
        self.note_function(schema, name, false);
        self.add(Action::Call, Object::Function { schema: Arc::clone(schema), name: Arc::clone(name) });
    }

    pub(super) fn json_value(&mut self, value: Option<&JsonValueExpr>, scope: &Scope<'_>) {
        if let Some(value) = value {
            self.maybe_expr(value.raw_expr.as_deref(), scope);
            self.maybe_expr(value.formatted_expr.as_deref(), scope);
        }
    }

    pub(super) fn json_behavior(&mut self, behavior: Option<&JsonBehavior>, scope: &Scope<'_>) {
        self.maybe_expr(behavior.and_then(|behavior| behavior.expr.as_deref()), scope);
    }

    pub(super) fn json_passing(&mut self, passing: &[Node], scope: &Scope<'_>) {
        for argument in passing {
            match &argument.node {
                Some(NodeEnum::JsonArgument(argument)) => self.json_value(argument.val.as_deref(), scope),
                other => self.unplaced(other.as_ref()),
            }
        }
    }

    fn json_pairs(&mut self, pairs: &[Node], scope: &Scope<'_>) {
        for pair in pairs {
            match &pair.node {
                Some(NodeEnum::JsonKeyValue(pair)) => {
                    self.maybe_expr(pair.key.as_deref(), scope);
                    self.json_value(pair.value.as_deref(), scope);
                }
                other => self.unplaced(other.as_ref()),
            }
        }
    }

    fn json_aggregate(&mut self, constructor: Option<&JsonAggConstructor>, scope: &Scope<'_>) {
        let Some(constructor) = constructor else { return };
        self.maybe_expr(constructor.agg_filter.as_deref(), scope);
        self.sorts(&constructor.agg_order, scope);
        if let Some(window) = constructor.over.as_deref() {
            self.window(window, scope);
        }
    }
}

fn is_star(node: &Node) -> bool {
    matches!(node.node, Some(NodeEnum::AStar(_)))
}

/// A string constant, also under a cast (`'x'::regclass`).
pub(super) fn constant(node: &Node) -> Option<&str> {
    match &node.node {
        Some(NodeEnum::AConst(AConst { val: Some(Val::Sval(string)), .. })) => Some(&string.sval),
        Some(NodeEnum::TypeCast(cast)) => constant(cast.arg.as_deref()?),
        _ => None,
    }
}

/// An integer constant.
pub(super) fn integer(node: &Node) -> Option<i32> {
    match &node.node {
        Some(NodeEnum::AConst(AConst { val: Some(Val::Ival(integer)), .. })) => Some(integer.ival),
        _ => None,
    }
}
