//! What no policy can permit: what is Weir's own on the server.

use std::fmt;

use crate::{
    policy::{Denier, Verdict},
    sql::{self, Access, Action, Class, Object},
};

/// Before the names of session parameters that Weir alone sets.
pub const PARAMETERS: &str = "weir.";

/// What is Weir's own in a session.
#[derive(Debug, Clone, Copy)]
pub struct Reserved<'a> {
    /// The role that Weir uses there.
    pub role: &'a str,
    /// Whether the server's row security relies on the parameters that Weir set.
    pub identity_parameters: IdentityParameters,
}

/// Whether a session tells the server whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentityParameters {
    /// `weir.subject` and its kin are set, and hold.
    Set,
    /// They are not set, and mean nothing.
    Unset,
}

impl Reserved<'_> {
    /// Why a statement is refused, whatever policies say; `None` leaves it to them.
    pub fn refusal(&self, accesses: &[Access]) -> Option<Verdict> {
        accesses.iter().find_map(|access| {
            let (what, reason): (&dyn fmt::Display, _) = match (access.action.class(), &access.object) {
                (_, Object::Setting { name }) if name.starts_with(PARAMETERS) => {
                    (name, "session parameters of that name are Weir's to set alone")
                }
                // Its password, rights and settings. That something is made to belong to it (CREATE SCHEMA … AUTHORIZATION,
                // which is `owner`) changes nothing about it.
                (Class::Admin, Object::Other { kind: "role", name })
                    if access.action != Action::Owner && (name.is_empty() || **name == *self.role) =>
                {
                    (&self.role, "the role that Weir itself uses can be changed by no policy")
                }
                // For this session: it would have to end as soon as the server says that it did so. For later ones: they
                // are others' as well.
                (_, object) if sql::sets_a_reading_setting(access) => {
                    (object, "the server would read statements otherwise than Weir does; no policy can permit that")
                }
                (Class::Unknown | Class::Code | Class::Admin, object)
                    if self.identity_parameters == IdentityParameters::Set =>
                {
                    let reason = "this connection tells the server whose the session is (`identity_parameters`), so that \
                                  nothing is permitted that could change it out of Weir's sight";
                    (object, reason)
                }
                (
                    Class::Read
                    | Class::Write
                    | Class::Ddl
                    | Class::Code
                    | Class::Admin
                    | Class::Session
                    | Class::Unknown,
                    _,
                ) => return None,
            };
            // What Weir would not follow is `unknown` to policies; it is a SET all the same.
            let action = match access.action {
                Action::Unknown if sql::sets_a_reading_setting(access) => Action::Set,
                action => action,
            };
            let what = format!("`{}` on {what}", action.name());
            let access = Some(Box::new(access.clone()));
            Some(Verdict::Deny { what, reason: reason.to_owned(), access, by: Denier::Weir })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{Catalog, Columns};

    fn access(action: Action, object: Object) -> Access {
        Access { action, object, columns: Columns::None }
    }

    fn refused(identity_parameters: IdentityParameters, action: Action, object: Object) -> bool {
        Reserved { role: "weir_orders", identity_parameters }.refusal(&[access(action, object)]).is_some()
    }

    #[test]
    fn weirs_parameters_and_role_are_out_of_reach_everywhere() {
        for own in [IdentityParameters::Set, IdentityParameters::Unset] {
            for action in [Action::Set, Action::Unknown, Action::System, Action::Show] {
                assert!(refused(own, action, Object::Setting { name: "weir.subject".into() }), "{action:?}");
            }
            assert!(refused(own, Action::Role, Object::Other { kind: "role", name: "weir_orders".into() }));
            assert!(refused(own, Action::Role, Object::Other { kind: "role", name: "".into() }));
            assert!(refused(own, Action::System, Object::Other { kind: "role", name: "".into() }));
            assert!(!refused(own, Action::Set, Object::Setting { name: "work_mem".into() }));
            assert!(refused(own, Action::Unknown, Object::Setting { name: "standard_conforming_strings".into() }));
            assert!(!refused(own, Action::Set, Object::Setting { name: "weird.subject".into() }));
        }
    }

    #[test]
    fn nobody_changes_for_good_what_later_sessions_begin_with() {
        let catalog = Catalog::declared("shop", "weir_orders", &[]).unwrap();
        let refused = |sql: &str| {
            let reading = sql::read(sql, &catalog, &catalog.session_names()).unwrap();
            let accesses: Vec<Access> = reading.statements.iter().flat_map(|s| s.accesses.clone()).collect();
            let reserved = Reserved { role: "weir_orders", identity_parameters: IdentityParameters::Unset };
            reserved.refusal(&accesses).is_some()
        };
        let changes = [
            "SET statement_timeout = 1",
            "SET search_path = mine, public",
            "SET work_mem FROM CURRENT",
            "RESET statement_timeout",
            "RESET ALL",
        ];
        let own = ["CURRENT_USER", "SESSION_USER", "CURRENT_ROLE", "weir_orders", "\"weir_orders\"", "ALL"];
        for change in changes {
            for role in own {
                assert!(refused(&format!("ALTER ROLE {role} {change}")), "{role} {change}");
                assert!(refused(&format!("ALTER USER {role} IN DATABASE shop {change}")), "{role} {change}");
            }
        }
        let read_by = [
            "SET search_path = mine, public",
            "SET SCHEMA 'mine'",
            "SET search_path FROM CURRENT",
            "RESET search_path",
            "RESET ALL",
            "SET standard_conforming_strings = off",
            "SET Client_Encoding = 'SJIS'",
            "SET NAMES 'SJIS'",
            "SET role = 'other'",
            "SET SESSION AUTHORIZATION other",
            "SET weir.subject = 'x'",
        ];
        for change in read_by {
            for what in ["ALTER DATABASE shop", "ALTER DATABASE other", "ALTER ROLE other", "ALTER SYSTEM"] {
                // ALTER SYSTEM takes fewer forms.
                let fits = what != "ALTER SYSTEM" || (change.contains(" = ") || change.starts_with("RESET"));
                assert!(!fits || refused(&format!("{what} {change}")), "{what} {change}");
            }
        }
        for sql in [
            "ALTER ROLE other SET statement_timeout = 1",
            "ALTER DATABASE shop SET work_mem = '1MB'",
            "ALTER DATABASE shop RESET work_mem",
            "ALTER SYSTEM SET work_mem = '1MB'",
            "CREATE SCHEMA mine AUTHORIZATION weir_orders",
            "GRANT SELECT ON customers TO weir_orders",
        ] {
            assert!(!refused(sql), "{sql}: a matter of policies");
        }
    }

    #[test]
    fn with_identity_parameters_nothing_is_permitted_that_runs_out_of_sight() {
        for &action in Action::ALL {
            let expected = matches!(action.class(), Class::Unknown | Class::Code | Class::Admin);
            assert_eq!(refused(IdentityParameters::Set, action, Object::Database), expected, "{action:?}");
            assert!(!refused(IdentityParameters::Unset, action, Object::Database), "{action:?}");
        }
    }
}
