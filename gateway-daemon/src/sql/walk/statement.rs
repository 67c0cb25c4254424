//! Statements of every kind, by name: queries and session control here, the shape of data in `ddl`.

use std::sync::Arc;

use pg_query::{
    Node, NodeEnum,
    protobuf::{
        CopyStmt, CreateTableAsStmt, DeclareCursorStmt, DefElem, DiscardMode, ExplainStmt, IntoClause, LockStmt,
        ObjectType, TransactionStmt, TransactionStmtKind, VacuumStmt, a_const::Val,
    },
};

use super::{
    Walker,
    names::{CATALOG, qualified},
    nodes::{Family, family},
    scope::Scope,
};
use crate::sql::{
    access::{Action, Object},
    lists::function_class,
    names::cut,
    reading::{Discard, Reuse, StatementKind, TransactionControl},
};

/// ACCESS SHARE, in the server's numbering of lock modes: what SELECT takes.
const ACCESS_SHARE_LOCK: i32 = 1;

impl Walker<'_> {
    pub(super) fn statement(&mut self, node: &Node, scope: &Scope<'_>) -> StatementKind {
        let Some(statement) = &node.node else {
            self.unplaced(None);
            return StatementKind::Utility;
        };
        match statement {
            NodeEnum::SelectStmt(_) => {
                self.query(node, scope);
                self.implicit_casts();
                StatementKind::Query
            }
            NodeEnum::InsertStmt(_) | NodeEnum::UpdateStmt(_) | NodeEnum::DeleteStmt(_) | NodeEnum::MergeStmt(_) => {
                self.query(node, scope);
                self.implicit_casts();
                StatementKind::Dml
            }
            _ => {
                // A literal in any other statement may be what it is about.
                self.reuse = self.reuse.max(Reuse::Text);
                self.session_statement(statement, scope)
            }
        }
    }

    fn session_statement(&mut self, statement: &NodeEnum, scope: &Scope<'_>) -> StatementKind {
        match statement {
            NodeEnum::TransactionStmt(e) => self.transaction(e),
            NodeEnum::VariableSetStmt(e) => self.set_statement(e),
            NodeEnum::VariableShowStmt(e) => {
                self.show_setting(&e.name);
                StatementKind::Show { name: e.name.to_ascii_lowercase().into() }
            }
            NodeEnum::ExplainStmt(e) => self.explain(e),
            NodeEnum::PrepareStmt(e) => {
                let statement = self.nested(e.query.as_deref());
                self.add(Action::Transaction, Object::Database);
                self.absorb(statement.clone());
                StatementKind::Prepare { name: cut(&e.name), statement: Box::new(statement) }
            }
            NodeEnum::ExecuteStmt(e) => {
                self.exprs(&e.params, scope);
                self.add(Action::Transaction, Object::Database);
                self.executes = Some(cut(&e.name));
                StatementKind::Execute { name: cut(&e.name) }
            }
            NodeEnum::DeallocateStmt(e) => {
                self.add(Action::Transaction, Object::Database);
                StatementKind::Deallocate { name: (!e.isall).then(|| cut(&e.name)) }
            }
            NodeEnum::DeclareCursorStmt(e) => self.declare(e),
            NodeEnum::FetchStmt(e) => {
                self.add(Action::Transaction, Object::Database);
                StatementKind::Fetch { name: cut(&e.portalname) }
            }
            NodeEnum::ClosePortalStmt(e) => {
                self.add(Action::Transaction, Object::Database);
                StatementKind::Close { name: (!e.portalname.is_empty()).then(|| cut(&e.portalname)) }
            }
            NodeEnum::DiscardStmt(e) => self.discard(e.target),
            NodeEnum::ListenStmt(e) => {
                let channel = cut(&e.conditionname);
                self.add(Action::Listen, Object::Other { kind: "channel", name: Arc::clone(&channel) });
                StatementKind::Listen { channel }
            }
            NodeEnum::UnlistenStmt(e) => {
                let channel = cut(&e.conditionname);
                // It ends what the session itself began.
                self.add(Action::Transaction, Object::Database);
                StatementKind::Unlisten { channel: (!channel.is_empty()).then_some(channel) }
            }
            NodeEnum::NotifyStmt(e) => {
                let channel = cut(&e.conditionname);
                self.add(Action::Notify, Object::Other { kind: "channel", name: Arc::clone(&channel) });
                StatementKind::Notify { channel }
            }
            NodeEnum::CopyStmt(e) => self.copy(e, scope),
            NodeEnum::CreateTableAsStmt(e) => self.create_table_as(e),
            NodeEnum::ConstraintsSetStmt(_) => {
                self.add(Action::Transaction, Object::Database);
                StatementKind::Utility
            }
            NodeEnum::LockStmt(e) => self.lock(e),
            NodeEnum::VacuumStmt(e) => self.vacuum(e),
            NodeEnum::CallStmt(e) => {
                match e.funccall.as_deref() {
                    Some(call) => {
                        self.call(call, scope);
                        // A procedure is never free, whatever a function of its name is.
                        let listed = qualified(&call.funcname).filter(|(_, name)| function_class(name).is_some());
                        if let Some(("" | CATALOG, name)) = listed {
                            self.call_function(&CATALOG.into(), &cut(name));
                        }
                    }
                    None => self.unplaced(None),
                }
                StatementKind::Utility
            }
            _ => {
                self.ddl(statement);
                StatementKind::Utility
            }
        }
    }

    /// A statement of no kind that is understood.
    pub(super) fn unplaced_statement(&mut self, statement: &NodeEnum) {
        let (family, name) = family(statement);
        let why = match family {
            Family::Statement => "statements of this kind are not understood",
            Family::Expression | Family::FromItem | Family::Part | Family::Analysed => "it is no statement",
        };
        self.unknown("statement", name, why);
    }

    fn transaction(&mut self, e: &TransactionStmt) -> StatementKind {
        let name = || cut(&e.savepoint_name);
        let control = match TransactionStmtKind::try_from(e.kind) {
            Ok(TransactionStmtKind::TransStmtBegin | TransactionStmtKind::TransStmtStart) => TransactionControl::Begin,
            Ok(TransactionStmtKind::TransStmtCommit) => TransactionControl::Commit { chain: e.chain },
            Ok(TransactionStmtKind::TransStmtRollback) => TransactionControl::Rollback { chain: e.chain },
            Ok(TransactionStmtKind::TransStmtSavepoint) => TransactionControl::Savepoint { name: name() },
            Ok(TransactionStmtKind::TransStmtRelease) => TransactionControl::Release { name: name() },
            Ok(TransactionStmtKind::TransStmtRollbackTo) => TransactionControl::RollbackTo { name: name() },
            Ok(TransactionStmtKind::TransStmtPrepare) => TransactionControl::Prepare,
            Ok(TransactionStmtKind::TransStmtCommitPrepared) => TransactionControl::CommitPrepared,
            Ok(TransactionStmtKind::TransStmtRollbackPrepared) => TransactionControl::RollbackPrepared,
            Ok(TransactionStmtKind::Undefined) | Err(_) => {
                self.unknown("statement", "TransactionStmt", "this form of it is not understood");
                return StatementKind::Utility;
            }
        };
        match control {
            // It takes the transaction out of the session, or ends one that another session began.
            TransactionControl::Prepare | TransactionControl::CommitPrepared | TransactionControl::RollbackPrepared => {
                self.unknown("statement", "two-phase commit", "its transaction is not this session's alone");
            }
            _ => self.add(Action::Transaction, Object::Database),
        }
        StatementKind::Transaction(control)
    }

    fn discard(&mut self, target: i32) -> StatementKind {
        let what = match DiscardMode::try_from(target) {
            Ok(DiscardMode::DiscardAll) => Discard::All,
            Ok(DiscardMode::DiscardPlans) => Discard::Plans,
            Ok(DiscardMode::DiscardSequences) => Discard::Sequences,
            Ok(DiscardMode::DiscardTemp) => Discard::Temporary,
            Ok(DiscardMode::Undefined) | Err(_) => {
                self.unknown("statement", "DiscardStmt", "this form of it is not understood");
                return StatementKind::Utility;
            }
        };
        self.add(Action::Transaction, Object::Database);
        StatementKind::Discard(what)
    }

    fn declare(&mut self, e: &DeclareCursorStmt) -> StatementKind {
        let query = self.nested(e.query.as_deref());
        self.add(Action::Transaction, Object::Database);
        self.absorb(query);
        StatementKind::DeclareCursor { name: cut(&e.portalname) }
    }

    /// Without ANALYZE nothing runs: what would be written is only looked at.
    fn explain(&mut self, e: &ExplainStmt) -> StatementKind {
        let analyze = e.options.iter().any(|option| match &option.node {
            Some(NodeEnum::DefElem(option)) => option.defname == "analyze" && !is_false(option),
            _ => true,
        });
        let mut nested = self.nested(e.query.as_deref());
        if !analyze {
            for access in &mut nested.accesses {
                if matches!(access.action, Action::Insert | Action::Update | Action::Delete) {
                    access.action = Action::Select;
                }
            }
        }
        self.add(Action::Explain, Object::Database);
        self.absorb(nested);
        StatementKind::Query
    }

    fn copy(&mut self, e: &CopyStmt, scope: &Scope<'_>) -> StatementKind {
        if let Some(query) = e.query.as_deref() {
            let nested = self.nested(Some(query));
            self.absorb(nested);
        }
        let action = if e.is_from { Action::CopyFrom } else { Action::Select };
        if let Some(relation) = &e.relation {
            let targets = self.targets(relation);
            let item = super::scope::Item::relation(&targets, None, &[]);
            for target in &targets {
                if e.attlist.is_empty() {
                    self.add_all(action, &target.object());
                }
                for column in e.attlist.iter().filter_map(super::names::text) {
                    self.add_column(action, &target.object(), &cut(column));
                }
            }
            let scope = Scope { items: vec![item], ..Scope::below(scope) };
            self.maybe_expr(e.where_clause.as_deref(), &scope);
        }
        self.implicit_casts();
        if e.is_program || !e.filename.is_empty() {
            let kind = if e.is_program { "program" } else { "file" };
            // A path or a command line may hold what nobody should see.
            self.add(Action::Host, Object::Other { kind, name: cut("") });
            self.secret |= e.is_program;
            return StatementKind::Utility;
        }
        if e.is_from { StatementKind::CopyIn } else { StatementKind::CopyOut }
    }

    fn create_table_as(&mut self, e: &CreateTableAsStmt) -> StatementKind {
        let nested = self.nested(e.query.as_deref());
        self.absorb(nested);
        let Some(into) = e.into.as_deref() else {
            self.unplaced(None);
            return StatementKind::Utility;
        };
        match ObjectType::try_from(e.objtype) {
            Ok(ObjectType::ObjectTable) => self.table_made(into),
            Ok(ObjectType::ObjectMatview) => {
                if let Some(relation) = &into.rel {
                    for target in self.new_targets(relation) {
                        self.add(Action::View, target.object());
                    }
                }
            }
            _ => self.unknown("statement", "CreateTableAsStmt", "it makes neither a table nor a materialized view"),
        }
        StatementKind::Utility
    }

    /// SELECT INTO and CREATE TABLE AS: the table that is made.
    pub(super) fn table_made(&mut self, into: &IntoClause) {
        match &into.rel {
            Some(relation) => {
                for target in self.new_targets(relation) {
                    self.add(Action::Create, target.object());
                }
            }
            None => self.unplaced(None),
        }
    }

    fn lock(&mut self, e: &LockStmt) -> StatementKind {
        // ACCESS SHARE is what SELECT takes, and holds up nobody whom SELECT would not.
        let action = if e.mode == ACCESS_SHARE_LOCK { Action::Select } else { Action::Lock };
        self.each_relation(&e.relations, action);
        StatementKind::Utility
    }

    fn vacuum(&mut self, e: &VacuumStmt) -> StatementKind {
        if e.rels.is_empty() {
            self.add(Action::Maintain, Object::Database);
        }
        for relation in &e.rels {
            match &relation.node {
                Some(NodeEnum::VacuumRelation(relation)) => match &relation.relation {
                    Some(relation) => self.existing(relation, Action::Maintain),
                    None => self.unplaced(None),
                },
                other => self.unplaced(other.as_ref()),
            }
        }
        StatementKind::Utility
    }

    /// Casts that the server may apply on its own, by functions that someone made.
    fn implicit_casts(&mut self) {
        let catalog = self.catalog;
        for cast in catalog.casts().iter().filter(|cast| cast.implicit) {
            self.call_function(&cast.function.0, &cast.function.1);
        }
    }
}

/// An option that is switched off for certain.
fn is_false(option: &DefElem) -> bool {
    match option.arg.as_deref().and_then(|arg| arg.node.as_ref()) {
        Some(NodeEnum::String(value)) => ["false", "off", "0"].iter().any(|off| value.sval.eq_ignore_ascii_case(off)),
        Some(NodeEnum::Integer(value)) => value.ival == 0,
        Some(NodeEnum::Boolean(value)) => !value.boolval,
        Some(NodeEnum::AConst(value)) => matches!(&value.val, Some(Val::Boolval(value)) if !value.boolval),
        _ => false,
    }
}
