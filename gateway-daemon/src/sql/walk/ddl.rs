//! Statements that change the shape of data or leave code behind.

use std::sync::Arc;

use pg_query::{
    Node, NodeEnum,
    protobuf::{
        CreateFunctionStmt, CreateSchemaStmt, ObjectType, RangeVar, ReindexObjectType, ReindexStmt, RenameStmt,
    },
};

use super::{
    Walker,
    names::{is_temporary, qualified, qualified_node, text},
    objects::Deed,
    scope::{Item, Scope},
};
use crate::sql::{
    access::{Action, Object},
    names::{NameEffect, cut},
    reading::StatementKind,
    redact::is_suspicious,
};

impl Walker<'_> {
    pub(super) fn ddl(&mut self, statement: &NodeEnum) {
        match statement {
            NodeEnum::CreateStmt(e) => self.create_table(e),
            NodeEnum::CreateForeignTableStmt(e) => {
                match &e.base_stmt {
                    Some(base) => self.create_table(base),
                    None => self.unplaced(None),
                }
                self.other(Action::Foreign, "foreign server", &e.servername);
                self.secret = true;
            }
            NodeEnum::AlterTableStmt(e) => self.alter_table(e),
            NodeEnum::IndexStmt(e) => self.create_index(e),
            NodeEnum::CreateSeqStmt(e) => self.made(e.sequence.as_ref(), Action::Create),
            NodeEnum::AlterSeqStmt(e) => self.changed(e.sequence.as_ref(), Action::Alter),
            NodeEnum::CreateSchemaStmt(e) => self.create_schema(e),
            NodeEnum::ViewStmt(e) => {
                let nested = self.nested(e.query.as_deref());
                self.absorb(nested);
                self.made(e.view.as_ref(), Action::View);
            }
            NodeEnum::RefreshMatViewStmt(e) => self.changed(e.relation.as_ref(), Action::Maintain),
            NodeEnum::TruncateStmt(e) => self.each_relation(&e.relations, Action::Truncate),
            NodeEnum::DropStmt(e) => {
                for object in &e.objects {
                    self.object(e.remove_type, Some(object), Deed::Drop);
                }
            }
            NodeEnum::CommentStmt(e) => self.object(e.objtype, e.object.as_deref(), Deed::Alter),
            NodeEnum::SecLabelStmt(e) => self.object_as(Action::Owner, e.objtype, e.object.as_deref()),
            NodeEnum::RenameStmt(e) => self.rename(e),
            NodeEnum::AlterObjectSchemaStmt(e) => {
                self.on_object(e.object_type, e.relation.as_ref(), e.object.as_deref(), None);
                self.add(Action::Create, Object::Schema { schema: cut(&e.newschema) });
            }
            NodeEnum::AlterObjectDependsStmt(e) => {
                self.on_object(e.object_type, e.relation.as_ref(), e.object.as_deref(), None);
            }
            NodeEnum::AlterOwnerStmt(e) => {
                self.on_object(e.object_type, e.relation.as_ref(), e.object.as_deref(), Some(Action::Owner));
            }
            NodeEnum::ReindexStmt(e) => self.reindex(e),
            NodeEnum::ClusterStmt(e) => match &e.relation {
                Some(relation) => self.existing(relation, Action::Maintain),
                None => self.add(Action::Maintain, Object::Database),
            },
            NodeEnum::CheckPointStmt(_) => self.add(Action::Maintain, Object::Database),
            NodeEnum::CompositeTypeStmt(e) => self.made(e.typevar.as_ref(), Action::Create),
            NodeEnum::CreateEnumStmt(e) => self.type_(&e.type_name, Deed::Create),
            NodeEnum::CreateRangeStmt(e) => {
                self.type_(&e.type_name, Deed::Create);
                // It may name functions of its own: canonical, subtype_diff.
                self.options_routine(&e.params);
            }
            NodeEnum::AlterEnumStmt(e) => self.type_(&e.type_name, Deed::Alter),
            NodeEnum::AlterTypeStmt(e) => {
                self.type_(&e.type_name, Deed::Alter);
                self.options_routine(&e.options);
            }
            NodeEnum::CreateDomainStmt(e) => self.create_domain(e),
            NodeEnum::AlterDomainStmt(e) => self.alter_domain(e),
            NodeEnum::DefineStmt(e) => {
                match qualified(&e.defnames) {
                    Some((schema, name)) => self.define(e.kind, schema, name),
                    None => self.unplaced(None),
                }
                // A base type is functions.
                if e.kind == i32::from(ObjectType::ObjectType) {
                    self.options_routine(&e.definition);
                }
            }
            NodeEnum::AlterCollationStmt(e) => self.type_(&e.collname, Deed::Alter),
            NodeEnum::CreateStatsStmt(e) => {
                self.type_(&e.defnames, Deed::Create);
                self.each_relation(&e.relations, Action::Alter);
                let is_column =
                    |element: &Node| matches!(&element.node, Some(NodeEnum::StatsElem(e)) if e.expr.is_none());
                if !e.exprs.iter().all(is_column) {
                    self.each_relation(&e.relations, Action::Expression);
                }
            }
            NodeEnum::AlterStatsStmt(e) => self.type_(&e.defnames, Deed::Alter),
            NodeEnum::AlterTsdictionaryStmt(e) => self.type_(&e.dictname, Deed::Alter),
            NodeEnum::AlterTsconfigurationStmt(e) => self.type_(&e.cfgname, Deed::Alter),
            _ => self.code(statement),
        }
    }

    /// What runs later.
    fn code(&mut self, statement: &NodeEnum) {
        match statement {
            NodeEnum::CreateFunctionStmt(e) => self.create_function(e),
            NodeEnum::AlterFunctionStmt(e) => match e.func.as_ref().and_then(|func| qualified(&func.objname)) {
                Some((schema, name)) => self.routine(schema, name, Action::Routine, Deed::Alter),
                None => self.unplaced(None),
            },
            NodeEnum::DoStmt(e) => {
                self.add(Action::Routine, Object::Other { kind: "anonymous block", name: cut("") });
                self.secret |= e.args.iter().any(holds_suspicious_text);
            }
            NodeEnum::AlterOperatorStmt(e) => {
                let name = e.opername.as_ref().and_then(|op| qualified(&op.objname)).map_or("", |(_, name)| name);
                self.other(Action::Routine, "operator", name);
            }
            NodeEnum::CreateOpClassStmt(e) => self.listed_name(Action::Routine, "operator class", &e.opclassname),
            NodeEnum::CreateOpFamilyStmt(e) => self.listed_name(Action::Routine, "operator family", &e.opfamilyname),
            NodeEnum::AlterOpFamilyStmt(e) => self.listed_name(Action::Routine, "operator family", &e.opfamilyname),
            NodeEnum::CreateConversionStmt(e) => self.listed_name(Action::Routine, "conversion", &e.conversion_name),
            NodeEnum::CreateCastStmt(e) => {
                let target = e.targettype.as_ref().and_then(|name| qualified(&name.names)).map_or("", |(_, name)| name);
                self.other(Action::Routine, "cast", target);
            }
            NodeEnum::CreateTransformStmt(e) => {
                let of = e.type_name.as_ref().and_then(|name| qualified(&name.names)).map_or("", |(_, name)| name);
                self.other(Action::Routine, "transform", of);
            }
            NodeEnum::CreateAmStmt(e) => self.other(Action::Routine, "access method", &e.amname),
            NodeEnum::CreateTrigStmt(e) => {
                self.changed(e.relation.as_ref(), Action::Trigger);
                if let Some(other) = &e.constrrel {
                    self.existing(other, Action::Trigger);
                }
            }
            NodeEnum::CreateEventTrigStmt(e) => self.other(Action::Trigger, "event trigger", &e.trigname),
            NodeEnum::AlterEventTrigStmt(e) => self.other(Action::Trigger, "event trigger", &e.trigname),
            NodeEnum::RuleStmt(e) => {
                self.changed(e.relation.as_ref(), Action::Rule);
                self.rule_actions(e.relation.as_ref(), &e.actions);
            }
            NodeEnum::CreatePolicyStmt(e) => self.changed(e.table.as_ref(), Action::RowPolicy),
            NodeEnum::AlterPolicyStmt(e) => self.changed(e.table.as_ref(), Action::RowPolicy),
            NodeEnum::CreateExtensionStmt(e) => self.other(Action::Extension, "extension", &e.extname),
            NodeEnum::AlterExtensionStmt(e) => self.other(Action::Extension, "extension", &e.extname),
            NodeEnum::AlterExtensionContentsStmt(e) => self.other(Action::Extension, "extension", &e.extname),
            NodeEnum::CreatePlangStmt(e) => self.other(Action::Extension, "language", &e.plname),
            _ => self.administration(statement),
        }
    }

    fn create_schema(&mut self, e: &CreateSchemaStmt) {
        // Without a name it takes the role's.
        let role = e.authrole.as_ref().map_or("", |role| &role.rolename);
        let schema = cut(if e.schemaname.is_empty() { role } else { &e.schemaname });
        if schema.is_empty() {
            return self.unknown("schema", "", "its name is that of a role which is not named");
        }
        self.add(Action::Create, Object::Schema { schema: Arc::clone(&schema) });
        if e.authrole.is_some() {
            self.other(Action::Owner, "role", role);
        }
        // What is made with it stands in it, and looks there first.
        let names = self.names.within(&schema);
        let mut inner = Walker { new_schema: Some(schema), ..Walker::new(self.catalog, &names) };
        for element in &e.schema_elts {
            inner.statement(element, &Scope::default());
        }
        self.secret |= inner.secret;
        if !e.schema_elts.is_empty() {
            let elements = inner.finish(StatementKind::Utility);
            self.absorb(elements);
        }
    }

    pub(super) fn other(&mut self, action: Action, kind: &'static str, name: &str) {
        self.add(action, Object::Other { kind, name: cut(name) });
    }

    fn listed_name(&mut self, action: Action, kind: &'static str, names: &[Node]) {
        self.other(action, kind, qualified(names).map_or("", |(_, name)| name));
    }

    pub(super) fn made(&mut self, relation: Option<&RangeVar>, action: Action) {
        match relation {
            Some(relation) => {
                for target in self.new_targets(relation) {
                    self.add(action, target.object());
                }
            }
            None => self.unplaced(None),
        }
    }

    pub(super) fn changed(&mut self, relation: Option<&RangeVar>, action: Action) {
        match relation {
            Some(relation) => self.existing(relation, action),
            None => self.unplaced(None),
        }
    }

    /// A type, or another thing of a schema that is named as its relations are.
    pub(super) fn type_(&mut self, names: &[Node], deed: Deed) {
        match (qualified(names), deed) {
            (Some((schema, name)), Deed::Create) => self.make(schema, name, Action::Create),
            (Some((schema, name)), Deed::Alter) => self.change(schema, name, Action::Alter),
            (Some((schema, name)), Deed::Drop) => self.change(schema, name, Action::Drop),
            (None, _) => self.unplaced(None),
        }
    }

    /// Options that may name functions: whoever sets them leaves code behind.
    fn options_routine(&mut self, options: &[Node]) {
        if !options.is_empty() {
            self.add(Action::Routine, Object::Database);
        }
    }

    /// CREATE AGGREGATE, OPERATOR, TYPE, TEXT SEARCH …, COLLATION.
    fn define(&mut self, kind: i32, schema: &str, name: &str) {
        match ObjectType::try_from(kind) {
            Ok(ObjectType::ObjectAggregate) => self.routine(schema, name, Action::Routine, Deed::Create),
            Ok(ObjectType::ObjectOperator) => self.other(Action::Routine, "operator", name),
            Ok(
                ObjectType::ObjectType
                | ObjectType::ObjectCollation
                | ObjectType::ObjectTsdictionary
                | ObjectType::ObjectTsconfiguration,
            ) => self.make(schema, name, Action::Create),
            Ok(ObjectType::ObjectTsparser) => self.other(Action::Routine, "text search parser", name),
            Ok(ObjectType::ObjectTstemplate) => self.other(Action::Routine, "text search template", name),
            _ => self.unknown("statement", "DefineStmt", "what it defines is not understood"),
        }
    }

    fn create_function(&mut self, e: &CreateFunctionStmt) {
        match qualified(&e.funcname) {
            Some((schema, name)) => self.routine(schema, name, Action::Routine, Deed::Create),
            None => self.unplaced(None),
        }
        self.secret |= e.options.iter().any(holds_suspicious_text);
    }

    /// What a rule does, as its owner, when someone else writes: counted now.
    fn rule_actions(&mut self, relation: Option<&RangeVar>, actions: &[Node]) {
        let items = ["old", "new"].into_iter().map(|name| {
            let mut item = match relation {
                Some(relation) => Item::relation(&self.targets(relation), None, &[]),
                None => Item::derived(None, None, Vec::new()),
            };
            item.name = Some(name.into());
            item.schemas.clear();
            item
        });
        let scope = Scope { items: items.collect(), ..Scope::default() };
        for action in actions {
            self.statement(action, &scope);
        }
    }

    fn rename(&mut self, e: &RenameStmt) {
        let kind = match ObjectType::try_from(e.rename_type) {
            // A column belongs to what is renamed around it.
            Ok(ObjectType::ObjectColumn) => e.relation_type,
            Ok(ObjectType::ObjectTabconstraint) => ObjectType::ObjectTable.into(),
            Ok(ObjectType::ObjectAttribute) => ObjectType::ObjectType.into(),
            _ => e.rename_type,
        };
        if let Some(relation) = e.relation.as_ref().filter(|_| kind == e.rename_type) {
            // A temporary relation takes its new name before all others.
            if self.targets(relation).iter().any(|target| is_temporary(&target.schema)) {
                self.effects.push(NameEffect::Temporary(cut(&e.newname)));
            }
        }
        match (kind, e.object.as_deref()) {
            (kind, None) if e.relation.is_none() => self.renamed_by_name(kind, &e.subname),
            (kind, object) => self.on_object(kind, e.relation.as_ref(), object, None),
        }
    }

    /// ALTER SCHEMA, ROLE, DATABASE … RENAME name it by a word alone.
    fn renamed_by_name(&mut self, kind: i32, name: &str) {
        let node = Node { node: Some(NodeEnum::String(pg_query::protobuf::String { sval: name.to_owned() })) };
        self.object(kind, Some(&node), Deed::Alter);
    }

    /// Changes an object that a statement names by relation or by node.
    fn on_object(&mut self, kind: i32, relation: Option<&RangeVar>, object: Option<&Node>, action: Option<Action>) {
        let Some(handling) = super::objects::handling(kind) else {
            return self.unknown("object", "", "objects of this kind are not understood");
        };
        let action = action.unwrap_or_else(|| handling.action(Deed::Alter));
        match (relation, object) {
            (Some(relation), _) => self.existing(relation, action),
            (None, object) => self.object_as(action, kind, object),
        }
    }

    fn reindex(&mut self, e: &ReindexStmt) {
        match ReindexObjectType::try_from(e.kind) {
            Ok(ReindexObjectType::ReindexObjectIndex | ReindexObjectType::ReindexObjectTable) => {
                self.changed(e.relation.as_ref(), Action::Maintain);
            }
            Ok(ReindexObjectType::ReindexObjectSchema) => {
                self.add(Action::Maintain, Object::Schema { schema: cut(&e.name) })
            }
            Ok(ReindexObjectType::ReindexObjectSystem | ReindexObjectType::ReindexObjectDatabase) => {
                self.add(Action::Maintain, Object::Database);
            }
            Ok(ReindexObjectType::Undefined) | Err(_) => {
                self.unknown("node", "ReindexStmt", "this form of it is not understood")
            }
        }
    }
}

/// Whether the body of a function or DO block has words that secrets stand beside.
fn holds_suspicious_text(option: &Node) -> bool {
    let Some(NodeEnum::DefElem(option)) = &option.node else { return false };
    let Some(arg) = option.arg.as_deref() else { return false };
    match &arg.node {
        Some(NodeEnum::List(list)) => list.items.iter().filter_map(text).any(is_suspicious),
        _ => text(arg).is_some_and(is_suspicious) || qualified_node(arg).is_some_and(|(_, body)| is_suspicious(body)),
    }
}
