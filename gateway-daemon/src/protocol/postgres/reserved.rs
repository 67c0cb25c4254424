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
                (_, Object::Other { kind: "role", name })
                    if access.action == Action::Role && (name.is_empty() || **name == *self.role) =>
                {
                    (&self.role, "the role that Weir itself uses can be changed by no policy")
                }
                // The session would have to end as soon as the server says that it did so.
                (_, object) if sql::changes_reading(access) => {
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
            let action = if sql::changes_reading(access) { Action::Set } else { access.action };
            let what = format!("`{}` on {what}", action.name());
            let access = Some(Box::new(access.clone()));
            Some(Verdict::Deny { what, reason: reason.to_owned(), access, by: Denier::Weir })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::Columns;

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
            assert!(!refused(own, Action::Set, Object::Setting { name: "work_mem".into() }));
            assert!(refused(own, Action::Unknown, Object::Setting { name: "standard_conforming_strings".into() }));
            assert!(!refused(own, Action::Set, Object::Setting { name: "weird.subject".into() }));
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
