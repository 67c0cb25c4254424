//! Statements that change the shape of data, leave code behind, or change who may do what.

use pg_query::{
    Node, NodeEnum,
    protobuf::{
        AlterDomainStmt, AlterTableCmd, AlterTableStmt, AlterTableType, ColumnDef, ConstrType, Constraint,
        CreateDomainStmt, CreateFunctionStmt, CreateStmt, IndexStmt, ObjectType, RangeVar, ReindexObjectType,
        ReindexStmt, RenameStmt,
    },
};

use super::{
    Walker,
    names::{qualified, qualified_node, text},
    objects::Deed,
    scope::{Item, Scope},
};
use crate::sql::{
    access::{Action, Object},
    names::cut,
    redact::is_suspicious,
};

impl Walker<'_> {
    pub(super) fn ddl(&mut self, statement: &NodeEnum, scope: &Scope<'_>) {
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
            NodeEnum::CreateSchemaStmt(e) => {
                self.add(Action::Create, Object::Schema { schema: cut(&e.schemaname) });
                if let Some(role) = &e.authrole {
                    self.other(Action::Owner, "role", &role.rolename);
                }
                for element in &e.schema_elts {
                    self.statement(element, scope);
                }
            }
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
                self.options_routine(&e.definition);
            }
            NodeEnum::AlterCollationStmt(e) => self.type_(&e.collname, Deed::Alter),
            NodeEnum::CreateStatsStmt(e) => {
                self.type_(&e.defnames, Deed::Create);
                self.each_relation(&e.relations, Action::Alter);
                for expression in &e.exprs {
                    if let Some(NodeEnum::StatsElem(element)) = &expression.node {
                        if element.expr.is_some() {
                            self.code_on(&e.relations, Action::Expression);
                        }
                    }
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

    /// Who may do what, and what reaches outside the database.
    fn administration(&mut self, statement: &NodeEnum) {
        match statement {
            NodeEnum::GrantStmt(e) => {
                let kind = e.objtype;
                for object in &e.objects {
                    self.object_as(Action::Grant, kind, Some(object));
                }
                self.add(Action::Grant, Object::Database);
            }
            NodeEnum::GrantRoleStmt(_) | NodeEnum::AlterDefaultPrivilegesStmt(_) => {
                self.add(Action::Grant, Object::Database)
            }
            NodeEnum::CreateRoleStmt(e) => {
                self.other(Action::Role, "role", &e.role);
                self.secret = true;
            }
            NodeEnum::AlterRoleStmt(e) => {
                self.other(Action::Role, "role", e.role.as_ref().map_or("", |role| &role.rolename));
                self.secret = true;
            }
            NodeEnum::DropRoleStmt(e) => {
                for role in &e.roles {
                    match &role.node {
                        Some(NodeEnum::RoleSpec(role)) => self.other(Action::Role, "role", &role.rolename),
                        other => self.unplaced(other.as_ref()),
                    }
                }
            }
            NodeEnum::AlterRoleSetStmt(e) => {
                self.other(Action::System, "role", e.role.as_ref().map_or("", |role| &role.rolename));
            }
            NodeEnum::DropOwnedStmt(_) | NodeEnum::ReassignOwnedStmt(_) => self.add(Action::Owner, Object::Database),
            NodeEnum::AlterSystemStmt(e) => {
                let name = e.setstmt.as_ref().map_or("", |set| &set.name);
                self.add(Action::System, Object::Setting { name: name.to_ascii_lowercase().into() });
                self.secret = true;
            }
            NodeEnum::LoadStmt(_) => self.other(Action::System, "library", ""),
            NodeEnum::CreatedbStmt(e) => self.other(Action::System, "database", &e.dbname),
            NodeEnum::AlterDatabaseStmt(e) => self.other(Action::System, "database", &e.dbname),
            NodeEnum::AlterDatabaseRefreshCollStmt(e) => self.other(Action::System, "database", &e.dbname),
            NodeEnum::AlterDatabaseSetStmt(e) => self.other(Action::System, "database", &e.dbname),
            NodeEnum::DropdbStmt(e) => self.other(Action::System, "database", &e.dbname),
            NodeEnum::CreateTableSpaceStmt(e) => self.other(Action::System, "tablespace", &e.tablespacename),
            NodeEnum::DropTableSpaceStmt(e) => self.other(Action::System, "tablespace", &e.tablespacename),
            NodeEnum::AlterTableSpaceOptionsStmt(e) => self.other(Action::System, "tablespace", &e.tablespacename),
            NodeEnum::AlterTableMoveAllStmt(e) => self.other(Action::System, "tablespace", &e.orig_tablespacename),
            NodeEnum::CreateFdwStmt(e) => self.foreign("foreign data wrapper", &e.fdwname),
            NodeEnum::AlterFdwStmt(e) => self.foreign("foreign data wrapper", &e.fdwname),
            NodeEnum::CreateForeignServerStmt(e) => self.foreign("foreign server", &e.servername),
            NodeEnum::AlterForeignServerStmt(e) => self.foreign("foreign server", &e.servername),
            NodeEnum::CreateUserMappingStmt(e) => self.foreign("user mapping", &e.servername),
            NodeEnum::AlterUserMappingStmt(e) => self.foreign("user mapping", &e.servername),
            NodeEnum::DropUserMappingStmt(e) => self.foreign("user mapping", &e.servername),
            NodeEnum::ImportForeignSchemaStmt(e) => {
                self.foreign("foreign server", &e.server_name);
                self.add(Action::Create, Object::Schema { schema: cut(&e.local_schema) });
            }
            NodeEnum::CreatePublicationStmt(e) => self.other(Action::Foreign, "publication", &e.pubname),
            NodeEnum::AlterPublicationStmt(e) => self.other(Action::Foreign, "publication", &e.pubname),
            NodeEnum::CreateSubscriptionStmt(e) => self.foreign("subscription", &e.subname),
            NodeEnum::AlterSubscriptionStmt(e) => self.foreign("subscription", &e.subname),
            NodeEnum::DropSubscriptionStmt(e) => self.foreign("subscription", &e.subname),
            other => self.unplaced_statement(other),
        }
    }

    fn other(&mut self, action: Action, kind: &'static str, name: &str) {
        self.add(action, Object::Other { kind, name: cut(name) });
    }

    /// Options and connection strings of these hold passwords.
    fn foreign(&mut self, kind: &'static str, name: &str) {
        self.other(Action::Foreign, kind, name);
        self.secret = true;
    }

    fn listed_name(&mut self, action: Action, kind: &'static str, names: &[Node]) {
        self.other(action, kind, qualified(names).map_or("", |(_, name)| name));
    }

    fn made(&mut self, relation: Option<&RangeVar>, action: Action) {
        match relation {
            Some(relation) => {
                for target in self.new_targets(relation) {
                    self.add(action, target.object());
                }
            }
            None => self.unplaced(None),
        }
    }

    fn changed(&mut self, relation: Option<&RangeVar>, action: Action) {
        match relation {
            Some(relation) => self.existing(relation, action),
            None => self.unplaced(None),
        }
    }

    /// A type, or another thing of a schema that is named as its relations are.
    fn type_(&mut self, names: &[Node], deed: Deed) {
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

    fn create_table(&mut self, e: &CreateStmt) {
        let Some(relation) = &e.relation else { return self.unplaced(None) };
        let targets = self.new_targets(relation);
        let objects: Vec<Object> = targets.iter().map(super::names::Target::object).collect();
        objects.iter().for_each(|object| self.add(Action::Create, object.clone()));
        let mut code = false;
        for element in e.table_elts.iter().chain(&e.constraints) {
            match &element.node {
                Some(NodeEnum::ColumnDef(column)) => code |= self.column_code(column),
                Some(NodeEnum::Constraint(constraint)) => code |= self.constraint_code(constraint),
                // LIKE copies columns, and by option their defaults and constraints.
                Some(NodeEnum::TableLikeClause(like)) => {
                    self.changed(like.relation.as_ref(), Action::Select);
                    code |= like.options != 0;
                }
                other => self.unplaced(other.as_ref()),
            }
        }
        // A child shows its rows in its parent, a partition also takes the parent's.
        self.each_relation(&e.inh_relations, Action::Alter);
        if let Some(spec) = &e.partspec {
            code |= spec.part_params.iter().any(
                |element| matches!(&element.node, Some(NodeEnum::PartitionElem(element)) if element.expr.is_some()),
            );
        }
        if code {
            objects.into_iter().for_each(|object| self.add(Action::Expression, object));
        }
    }

    /// Whether a column brings an expression.
    fn column_code(&mut self, column: &ColumnDef) -> bool {
        let mut code = column.raw_default.is_some();
        for constraint in &column.constraints {
            match &constraint.node {
                Some(NodeEnum::Constraint(constraint)) => code |= self.constraint_code(constraint),
                // COLLATE among the constraints.
                Some(NodeEnum::CollateClause(_)) => {}
                other => self.unplaced(other.as_ref()),
            }
        }
        code
    }

    /// Whether a constraint brings an expression. A foreign key ties another table.
    fn constraint_code(&mut self, constraint: &Constraint) -> bool {
        match ConstrType::try_from(constraint.contype) {
            Ok(
                ConstrType::ConstrDefault
                | ConstrType::ConstrGenerated
                | ConstrType::ConstrCheck
                | ConstrType::ConstrExclusion,
            ) => true,
            Ok(ConstrType::ConstrForeign) => {
                self.changed(constraint.pktable.as_ref(), Action::Alter);
                false
            }
            Ok(
                ConstrType::ConstrNull
                | ConstrType::ConstrNotnull
                | ConstrType::ConstrIdentity
                | ConstrType::ConstrPrimary
                | ConstrType::ConstrUnique
                | ConstrType::ConstrAttrDeferrable
                | ConstrType::ConstrAttrNotDeferrable
                | ConstrType::ConstrAttrDeferred
                | ConstrType::ConstrAttrImmediate
                | ConstrType::ConstrAttrEnforced
                | ConstrType::ConstrAttrNotEnforced,
            ) => false,
            Ok(ConstrType::Undefined) | Err(_) => {
                self.unknown("node", "Constraint", "this form of it is not understood");
                false
            }
        }
    }

    fn alter_table(&mut self, e: &AlterTableStmt) {
        let Some(relation) = &e.relation else { return self.unplaced(None) };
        let targets = self.targets(relation);
        let objects: Vec<Object> = targets.iter().map(super::names::Target::object).collect();
        let is_view = matches!(ObjectType::try_from(e.objtype), Ok(ObjectType::ObjectView | ObjectType::ObjectMatview));
        for command in &e.cmds {
            match &command.node {
                Some(NodeEnum::AlterTableCmd(command)) => {
                    for action in self.alter_actions(command) {
                        let action = if is_view && action == Action::Alter { Action::View } else { action };
                        objects.iter().for_each(|object| self.add(action, object.clone()));
                    }
                }
                other => self.unplaced(other.as_ref()),
            }
        }
    }

    /// What one command of ALTER TABLE does to the table.
    fn alter_actions(&mut self, command: &AlterTableCmd) -> Vec<Action> {
        use AlterTableType as T;
        let definition = command.def.as_deref().and_then(|def| def.node.as_ref());
        let code = match definition {
            Some(NodeEnum::ColumnDef(column)) => self.column_code(column),
            Some(NodeEnum::Constraint(constraint)) => self.constraint_code(constraint),
            Some(NodeEnum::PartitionCmd(partition)) => {
                self.changed(partition.name.as_ref(), Action::Alter);
                false
            }
            Some(NodeEnum::RangeVar(parent)) => {
                self.existing(parent, Action::Alter);
                false
            }
            _ => false,
        };
        match T::try_from(command.subtype) {
            Ok(T::AtColumnDefault | T::AtSetExpression | T::AtDropExpression) => {
                vec![Action::Alter, Action::Expression]
            }
            Ok(T::AtAddColumn | T::AtAddConstraint | T::AtAlterColumnType) if code => {
                vec![Action::Alter, Action::Expression]
            }
            Ok(T::AtChangeOwner) => vec![Action::Owner],
            Ok(
                T::AtEnableTrig
                | T::AtEnableAlwaysTrig
                | T::AtEnableReplicaTrig
                | T::AtDisableTrig
                | T::AtEnableTrigAll
                | T::AtDisableTrigAll
                | T::AtEnableTrigUser
                | T::AtDisableTrigUser,
            ) => vec![Action::Trigger],
            Ok(T::AtEnableRule | T::AtEnableAlwaysRule | T::AtEnableReplicaRule | T::AtDisableRule) => {
                vec![Action::Rule]
            }
            Ok(T::AtEnableRowSecurity | T::AtDisableRowSecurity | T::AtForceRowSecurity | T::AtNoForceRowSecurity) => {
                vec![Action::RowPolicy]
            }
            // Options of foreign tables and columns say where the rows come from.
            Ok(T::AtGenericOptions | T::AtAlterColumnGenericOptions) => {
                self.secret = true;
                vec![Action::Alter, Action::Foreign]
            }
            Ok(
                T::AtAddColumn
                | T::AtAddColumnToView
                | T::AtCookedColumnDefault
                | T::AtDropNotNull
                | T::AtSetNotNull
                | T::AtSetStatistics
                | T::AtSetOptions
                | T::AtResetOptions
                | T::AtSetStorage
                | T::AtSetCompression
                | T::AtDropColumn
                | T::AtAddIndex
                | T::AtReAddIndex
                | T::AtAddConstraint
                | T::AtReAddConstraint
                | T::AtReAddDomainConstraint
                | T::AtAlterConstraint
                | T::AtValidateConstraint
                | T::AtAddIndexConstraint
                | T::AtDropConstraint
                | T::AtReAddComment
                | T::AtAlterColumnType
                | T::AtClusterOn
                | T::AtDropCluster
                | T::AtSetLogged
                | T::AtSetUnLogged
                | T::AtDropOids
                | T::AtSetAccessMethod
                | T::AtSetTableSpace
                | T::AtSetRelOptions
                | T::AtResetRelOptions
                | T::AtReplaceRelOptions
                | T::AtAddInherit
                | T::AtDropInherit
                | T::AtAddOf
                | T::AtDropOf
                | T::AtReplicaIdentity
                | T::AtAttachPartition
                | T::AtDetachPartition
                | T::AtDetachPartitionFinalize
                | T::AtAddIdentity
                | T::AtSetIdentity
                | T::AtDropIdentity
                | T::AtReAddStatistics,
            ) => vec![Action::Alter],
            Ok(T::Undefined) | Err(_) => {
                self.unknown("node", "AlterTableCmd", "this command is not understood");
                Vec::new()
            }
        }
    }

    fn create_index(&mut self, e: &IndexStmt) {
        let Some(relation) = &e.relation else { return self.unplaced(None) };
        let expression = e.where_clause.is_some()
            || e.index_params.iter().any(
                // An operator class of someone's own is code as well.
                |p| !matches!(&p.node, Some(NodeEnum::IndexElem(p)) if p.expr.is_none() && p.opclass.len() < 2),
            );
        for target in self.targets(relation) {
            // The index comes to stand in the table's schema.
            self.add(Action::Create, target.object());
            if expression {
                self.add(Action::Expression, target.object());
            }
        }
    }

    fn code_on(&mut self, relations: &[Node], action: Action) {
        self.each_relation(relations, action);
    }

    fn create_domain(&mut self, e: &CreateDomainStmt) {
        self.type_(&e.domainname, Deed::Create);
        let mut code = false;
        for constraint in &e.constraints {
            match &constraint.node {
                Some(NodeEnum::Constraint(constraint)) => code |= self.constraint_code(constraint),
                other => self.unplaced(other.as_ref()),
            }
        }
        if let Some((schema, name)) = qualified(&e.domainname).filter(|_| code) {
            self.make(schema, name, Action::Expression);
        }
    }

    fn alter_domain(&mut self, e: &AlterDomainStmt) {
        self.type_(&e.type_name, Deed::Alter);
        // T: default; C: constraint. The rest drops or validates.
        if e.def.is_some() {
            if let Some((schema, name)) = qualified(&e.type_name) {
                self.change(schema, name, Action::Expression);
            }
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
            // A column or constraint belongs to what is renamed around it.
            Ok(ObjectType::ObjectColumn | ObjectType::ObjectAttribute | ObjectType::ObjectTabconstraint) => {
                e.relation_type
            }
            _ => e.rename_type,
        };
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
