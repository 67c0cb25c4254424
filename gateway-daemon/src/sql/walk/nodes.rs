//! Every node of the parse tree, by name, with what it can be. A node that a newer parser adds is a compile error here.

use pg_query::NodeEnum;

/// What a node can be in a tree that has not been analysed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// A statement of its own.
    Statement,
    /// Gives a value.
    Expression,
    /// Stands in FROM.
    FromItem,
    /// Part of a statement or expression, met only where its owner looks for it.
    Part,
    /// Made by analysis, rewriting or planning: never in what a parser gives.
    Analysed,
}

macro_rules! families {
    ($($family:ident: $($variant:ident)*;)*) => {
        /// The node's family and its name.
        pub(super) const fn family(node: &NodeEnum) -> (Family, &'static str) {
            match node {
                $($(NodeEnum::$variant(_) => (Family::$family, stringify!($variant)),)*)*
            }
        }

        /// All of them.
        #[cfg(test)]
        const ALL: &[(Family, &str)] = &[$($((Family::$family, stringify!($variant)),)*)*];
    };
}

families! {
    Statement:
        InsertStmt DeleteStmt UpdateStmt MergeStmt SelectStmt CreateSchemaStmt AlterTableStmt AlterCollationStmt AlterDomainStmt
        GrantStmt GrantRoleStmt AlterDefaultPrivilegesStmt CopyStmt VariableSetStmt VariableShowStmt CreateStmt
        CreateTableSpaceStmt DropTableSpaceStmt AlterTableSpaceOptionsStmt AlterTableMoveAllStmt CreateExtensionStmt
        AlterExtensionStmt AlterExtensionContentsStmt CreateFdwStmt AlterFdwStmt CreateForeignServerStmt
        AlterForeignServerStmt CreateForeignTableStmt CreateUserMappingStmt AlterUserMappingStmt DropUserMappingStmt
        ImportForeignSchemaStmt CreatePolicyStmt AlterPolicyStmt CreateAmStmt CreateTrigStmt CreateEventTrigStmt
        AlterEventTrigStmt CreatePlangStmt CreateRoleStmt AlterRoleStmt AlterRoleSetStmt DropRoleStmt CreateSeqStmt AlterSeqStmt
        DefineStmt CreateDomainStmt CreateOpClassStmt CreateOpFamilyStmt AlterOpFamilyStmt DropStmt TruncateStmt CommentStmt
        SecLabelStmt DeclareCursorStmt ClosePortalStmt FetchStmt IndexStmt CreateStatsStmt AlterStatsStmt CreateFunctionStmt
        AlterFunctionStmt DoStmt CallStmt RenameStmt AlterObjectDependsStmt AlterObjectSchemaStmt AlterOwnerStmt
        AlterOperatorStmt AlterTypeStmt RuleStmt NotifyStmt ListenStmt UnlistenStmt TransactionStmt CompositeTypeStmt
        CreateEnumStmt CreateRangeStmt AlterEnumStmt ViewStmt LoadStmt CreatedbStmt AlterDatabaseStmt
        AlterDatabaseRefreshCollStmt AlterDatabaseSetStmt DropdbStmt AlterSystemStmt ClusterStmt VacuumStmt ExplainStmt
        CreateTableAsStmt RefreshMatViewStmt CheckPointStmt DiscardStmt LockStmt ConstraintsSetStmt ReindexStmt
        CreateConversionStmt CreateCastStmt CreateTransformStmt PrepareStmt ExecuteStmt DeallocateStmt DropOwnedStmt
        ReassignOwnedStmt AlterTsdictionaryStmt AlterTsconfigurationStmt CreatePublicationStmt AlterPublicationStmt
        CreateSubscriptionStmt AlterSubscriptionStmt DropSubscriptionStmt;
    Expression:
        GroupingFunc MergeSupportFunc NamedArgExpr BoolExpr SubLink CaseExpr RowExpr CoalesceExpr MinMaxExpr
        SqlvalueFunction XmlExpr XmlSerialize JsonIsPredicate JsonParseExpr JsonScalarExpr JsonSerializeExpr JsonFuncExpr
        JsonObjectConstructor JsonArrayConstructor JsonArrayQueryConstructor JsonObjectAgg JsonArrayAgg JsonValueExpr
        NullTest BooleanTest SetToDefault CurrentOfExpr ColumnRef ParamRef AExpr TypeCast CollateClause FuncCall
        AIndirection AArrayExpr MultiAssignRef AConst List GroupingSet;
    FromItem:
        RangeVar JoinExpr RangeSubselect RangeFunction RangeTableFunc RangeTableSample JsonTable;
    Part:
        Alias IntoClause CaseWhen JsonFormat JsonReturning JsonBehavior MergeAction TypeName RoleSpec AStar AIndices ResTarget
        SortBy WindowDef RangeTableFuncCol ColumnDef TableLikeClause IndexElem DefElem LockingClause PartitionElem PartitionSpec
        PartitionBoundSpec PartitionRangeDatum PartitionCmd WithClause InferClause OnConflictClause CtesearchClause
        CtecycleClause CommonTableExpr MergeWhenClause ReturningOption ReturningClause TriggerTransition JsonOutput
        JsonArgument JsonTablePathSpec JsonTableColumn JsonKeyValue JsonAggConstructor RawStmt ReturnStmt AlterTableCmd
        AtalterConstraint ReplicaIdentityStmt ObjectWithArgs AccessPriv Constraint CreateOpClassItem StatsElem FunctionParameter
        VacuumRelation PublicationTable PublicationObjSpec Integer Float Boolean String BitString;
    Analysed:
        TableFunc Var Param Aggref WindowFunc WindowFuncRunCondition SubscriptingRef FuncExpr OpExpr DistinctExpr NullIfExpr
        ScalarArrayOpExpr SubPlan AlternativeSubPlan FieldSelect FieldStore RelabelType CoerceViaIo ArrayCoerceExpr
        ConvertRowtypeExpr CollateExpr CaseTestExpr ArrayExpr RowCompareExpr JsonConstructorExpr JsonExpr JsonTablePath
        JsonTablePathScan JsonTableSiblingJoin CoerceToDomain CoerceToDomainValue NextValueExpr InferenceElem ReturningExpr
        TargetEntry RangeTblRef FromExpr OnConflictExpr Query RangeTblEntry RtepermissionInfo RangeTblFunction
        TableSampleClause WithCheckOption SortGroupClause WindowClause RowMarkClause SetOperationStmt PlassignStmt
        InlineCodeBlock CallContext IntList OidList;
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;

    /// What the grammar makes only of parts of other statements.
    const NEVER_ALONE: &[&str] = &[];

    #[test]
    fn every_kind_of_statement_has_a_case() {
        let mut seen = BTreeSet::new();
        for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sql/statements")).unwrap() {
            for line in fs::read_to_string(file.unwrap().path()).unwrap().lines() {
                let Ok(tree) = pg_query::parse(line, 0) else { continue };
                for raw in &tree.protobuf.stmts {
                    let mut node = raw.stmt.as_deref().and_then(|stmt| stmt.node.as_ref());
                    while let Some(statement) = node {
                        seen.insert(family(statement).1);
                        node = match statement {
                            NodeEnum::ExplainStmt(e) => e.query.as_deref().and_then(|query| query.node.as_ref()),
                            _ => None,
                        };
                    }
                }
            }
        }
        let missing: Vec<_> = (ALL.iter())
            .filter(|(family, name)| {
                *family == Family::Statement && !seen.contains(name) && !NEVER_ALONE.contains(name)
            })
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
