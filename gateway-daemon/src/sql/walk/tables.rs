//! Tables, indexes and domains: what is made and changed, and whether an expression comes with it that runs later.

use pg_query::{
    NodeEnum,
    protobuf::{
        AlterDomainStmt, AlterTableCmd, AlterTableStmt, AlterTableType, ColumnDef, ConstrType, Constraint,
        CreateDomainStmt, CreateStmt, IndexStmt, ObjectType,
    },
};

use super::{
    Walker,
    names::{Target, qualified},
    objects::Deed,
    scope::Scope,
};
use crate::sql::access::{Action, Object};

impl Walker<'_> {
    pub(super) fn create_table(&mut self, e: &CreateStmt) {
        let Some(relation) = &e.relation else { return self.unplaced(None) };
        let targets = self.new_targets(relation);
        let objects: Vec<Object> = targets.iter().map(Target::object).collect();
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
        if let Some(bound) = &e.partbound {
            // Bounds are computed at once.
            let scope = Scope::default();
            self.exprs(&bound.listdatums, &scope);
            for datum in bound.lowerdatums.iter().chain(&bound.upperdatums) {
                match &datum.node {
                    Some(NodeEnum::PartitionRangeDatum(datum)) => self.maybe_expr(datum.value.as_deref(), &scope),
                    _ => self.expr(datum, &scope),
                }
            }
        }
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

    pub(super) fn alter_table(&mut self, e: &AlterTableStmt) {
        let Some(relation) = &e.relation else { return self.unplaced(None) };
        let targets = self.targets(relation);
        let objects: Vec<Object> = targets.iter().map(Target::object).collect();
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

    pub(super) fn create_index(&mut self, e: &IndexStmt) {
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

    pub(super) fn create_domain(&mut self, e: &CreateDomainStmt) {
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

    pub(super) fn alter_domain(&mut self, e: &AlterDomainStmt) {
        self.type_(&e.type_name, Deed::Alter);
        // T: default; C: constraint. The rest drops or validates.
        if let Some((schema, name)) = qualified(&e.type_name).filter(|_| e.def.is_some()) {
            self.change(schema, name, Action::Expression);
        }
    }
}
