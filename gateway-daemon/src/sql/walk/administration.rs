//! Statements that change who may do what, or reach outside the database.

use pg_query::{
    NodeEnum,
    protobuf::{GrantTargetType, ObjectType, VariableSetKind, VariableSetStmt},
};

use super::Walker;
use crate::sql::{
    access::{Action, Object},
    names::cut,
};

impl Walker<'_> {
    pub(super) fn administration(&mut self, statement: &NodeEnum) {
        match statement {
            NodeEnum::GrantStmt(e) => {
                let kind = match GrantTargetType::try_from(e.targtype) {
                    Ok(GrantTargetType::AclTargetAllInSchema) => ObjectType::ObjectSchema.into(),
                    _ => e.objtype,
                };
                for object in &e.objects {
                    self.object_as(Action::Grant, kind, Some(object));
                }
                if e.objects.is_empty() {
                    self.add(Action::Grant, Object::Database);
                }
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
                self.lasting_setting(e.setstmt.as_ref());
            }
            NodeEnum::DropOwnedStmt(_) | NodeEnum::ReassignOwnedStmt(_) => self.add(Action::Owner, Object::Database),
            NodeEnum::AlterSystemStmt(e) => {
                self.lasting_setting(e.setstmt.as_ref());
                self.secret = true;
            }
            NodeEnum::LoadStmt(_) => self.other(Action::System, "library", ""),
            NodeEnum::CreatedbStmt(e) => self.other(Action::System, "database", &e.dbname),
            NodeEnum::AlterDatabaseStmt(e) => self.other(Action::System, "database", &e.dbname),
            NodeEnum::AlterDatabaseRefreshCollStmt(e) => self.other(Action::System, "database", &e.dbname),
            NodeEnum::AlterDatabaseSetStmt(e) => {
                self.other(Action::System, "database", &e.dbname);
                self.lasting_setting(e.setstmt.as_ref());
            }
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

    /// What later sessions begin with.
    fn lasting_setting(&mut self, set: Option<&VariableSetStmt>) {
        let name = match set.map(|set| (VariableSetKind::try_from(set.kind), &set.name)) {
            Some((Ok(VariableSetKind::VarResetAll), _)) => "all".to_owned(),
            Some((_, name)) => name.to_ascii_lowercase(),
            None => String::new(),
        };
        self.add(Action::System, Object::Setting { name: name.into() });
    }

    /// Options and connection strings of these hold passwords.
    fn foreign(&mut self, kind: &'static str, name: &str) {
        self.other(Action::Foreign, kind, name);
        self.secret = true;
    }
}
