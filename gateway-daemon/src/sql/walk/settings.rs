//! SET, RESET, SHOW and their kin.

use std::sync::Arc;

use pg_query::{
    Node, NodeEnum,
    protobuf::{AConst, TypeCast, VariableSetKind, VariableSetStmt, a_const::Val},
};

use super::{Walker, expr::constant};
use crate::sql::{
    access::{Action, Name, Object},
    lists::{SettingRule, setting_rule},
    names::{NameEffect, SearchPath, cut},
    reading::{Reuse, StatementKind},
};

/// What a setting is set to.
pub(super) enum Value<'t> {
    /// The one that the session began with.
    Default,
    /// `SET x = a, b`: each constant on its own.
    Words(Vec<&'t str>),
    /// `set_config`: one text.
    Text(&'t str),
}

impl Walker<'_> {
    pub(super) fn set_statement(&mut self, set: &VariableSetStmt) -> StatementKind {
        self.reuse = self.reuse.max(Reuse::Text);
        let name = set.name.to_ascii_lowercase();
        match VariableSetKind::try_from(set.kind) {
            Ok(VariableSetKind::VarSetValue) => match words(&set.args) {
                Some(words) => self.set_setting(&name, &Value::Words(words)),
                None => self.unknown("setting", &name, "its value is not a constant"),
            },
            Ok(VariableSetKind::VarSetMulti) => self.set_transaction(&name, &set.args),
            Ok(VariableSetKind::VarSetDefault | VariableSetKind::VarReset) => {
                self.set_setting(&name, &Value::Default);
                return StatementKind::Reset { name: Some(name.into()) };
            }
            Ok(VariableSetKind::VarResetAll) => {
                self.add(Action::Set, Object::Setting { name: "all".into() });
                return StatementKind::Reset { name: None };
            }
            // FROM CURRENT has a meaning in CREATE FUNCTION alone.
            Ok(VariableSetKind::VarSetCurrent | VariableSetKind::Undefined) | Err(_) => {
                self.unknown("setting", &name, "this form of SET is not understood");
            }
        }
        StatementKind::Set { name: name.into() }
    }

    /// SET TRANSACTION and SET SESSION CHARACTERISTICS: isolation, read only, deferrable; or a snapshot of another session.
    fn set_transaction(&mut self, name: &str, args: &[Node]) {
        match name {
            "transaction" | "session characteristics" => {
                for arg in args {
                    match &arg.node {
                        Some(NodeEnum::DefElem(mode)) => self.set_setting(&mode.defname, &Value::Words(Vec::new())),
                        other => self.unplaced(other.as_ref()),
                    }
                }
            }
            _ => self.unknown("setting", name, "a snapshot shows what another session sees"),
        }
    }

    pub(super) fn set_setting(&mut self, name: &str, value: &Value<'_>) {
        let name: Name = name.to_ascii_lowercase().into();
        match &*name {
            "search_path" => return self.set_search_path(name, value),
            "role" | "session_authorization" => return self.set_role(&name, value),
            _ => {}
        }
        let permitted = match setting_rule(&name) {
            Some(SettingRule::Set) => true,
            Some(SettingRule::Only(values)) => match value {
                Value::Default => true,
                Value::Words(words) => words.iter().all(|word| is_one_of(values, word)),
                Value::Text(text) => is_one_of(values, text),
            },
            Some(SettingRule::Show) | None => false,
        };
        if permitted {
            self.add(Action::Set, Object::Setting { name });
        } else {
            self.unknown_object(Object::Setting { name }, "it may not be set to this, or not at all");
        }
    }

    fn set_search_path(&mut self, name: Name, value: &Value<'_>) {
        self.reuse = Reuse::Never;
        let path = match value {
            // The path that the session began with is a candidate already.
            Value::Default => None,
            Value::Words(words) => Some(SearchPath::of_schemas(words.iter().copied())),
            Value::Text(text) => Some(SearchPath::parse(text)),
        };
        match path.transpose() {
            Ok(path) => {
                self.effects.extend(path.map(NameEffect::SearchPath));
                self.add(Action::Set, Object::Setting { name });
            }
            Err(_) => self.unknown_object(Object::Setting { name }, "the path cannot be followed"),
        }
    }

    fn set_role(&mut self, setting: &str, value: &Value<'_>) {
        let role = match value {
            Value::Default => None,
            Value::Words(words) => Some(words.first().copied().unwrap_or_default()),
            Value::Text(text) => Some(*text),
        };
        let back = role.is_none() || (setting == "role" && role == Some("none"));
        if back && self.catalog.begins_as_login() {
            // To Weir's own role, with which the session began: as DISCARD ALL does.
            return self.add(Action::Transaction, Object::Database);
        }
        self.reuse = Reuse::Never;
        let name = role.map_or_else(|| cut(""), cut);
        // `none` is the role that logged in.
        let becomes = if back { self.catalog.login().cloned() } else { Some(Arc::clone(&name)) };
        self.effects.extend(becomes.map(NameEffect::User));
        // Kinds of their own: this session's role is changed, and no role.
        let kind = if setting == "role" { "current role" } else { "session user" };
        self.add(Action::Role, Object::Other { kind, name });
    }

    pub(super) fn show_setting(&mut self, name: &str) {
        let name: Name = name.to_ascii_lowercase().into();
        let object = Object::Setting { name: Arc::clone(&name) };
        match setting_rule(&name) {
            Some(SettingRule::Set | SettingRule::Only(_) | SettingRule::Show) => self.add(Action::Show, object),
            None => self.unknown_object(object, "it is not on the list of what may be shown"),
        }
    }
}

fn is_one_of(values: &[&str], value: &str) -> bool {
    values.iter().any(|permitted| permitted.eq_ignore_ascii_case(value.trim()))
}

/// The constants of `SET x = a, b`. Numbers and intervals say nothing that a rule looks at.
fn words(args: &[Node]) -> Option<Vec<&str>> {
    args.iter().map(|arg| arg.node.as_ref().and_then(word)).collect()
}

fn word(node: &NodeEnum) -> Option<&str> {
    match node {
        NodeEnum::AConst(AConst { val: Some(Val::Sval(string)), .. }) => Some(&string.sval),
        NodeEnum::AConst(AConst { val: Some(Val::Ival(number)), .. }) => Some(if number.ival == 1 { "1" } else { "#" }),
        NodeEnum::AConst(AConst { val: Some(Val::Fval(_) | Val::Boolval(_)), .. }) => Some("#"),
        NodeEnum::TypeCast(cast) => interval(cast),
        _ => None,
    }
}

/// `SET TIME ZONE INTERVAL '1' HOUR`.
fn interval(cast: &TypeCast) -> Option<&str> {
    constant(cast.arg.as_deref()?)
}
