//! Calls: which functions a name may mean, and what the listed ones do with their arguments.

use std::sync::Arc;

use pg_query::Node;

use super::{
    Walker,
    expr::{constant, integer},
    names::CATALOG,
    settings::Value,
};
use crate::sql::{
    access::{Action, Name, Object},
    lists::{FunctionClass, function_class},
    names::{SearchPath, cut},
    reading::Reuse,
};

/// What a function of class `bounded` may be asked to make.
const MAX_BOUNDED: i32 = 65_536;

impl Walker<'_> {
    /// A function by name, the schema empty where none is given, with its arguments.
    pub(super) fn function(&mut self, schema: &str, name: &Name, args: &[Node]) {
        match (function_class(name), schema) {
            (Some(class), "") if class.in_any_schema() => {
                let schema = self.schema_of_function(name);
                self.listed(class, &schema, name, args);
            }
            (Some(class), "") => {
                self.overloads(name);
                self.listed(class, &CATALOG.into(), name, args);
            }
            (None, "") => {
                self.overloads(name);
                self.unlisted(schema, name);
            }
            (Some(class), CATALOG) => self.listed(class, &CATALOG.into(), name, args),
            (None, CATALOG) => self.unlisted(schema, name),
            (Some(class), _) if class.in_any_schema() => self.listed(class, &cut(schema), name, args),
            (_, _) => self.call_function(&cut(schema), name),
        }
    }

    /// Where a function is found that is refused wherever it is: for people.
    fn schema_of_function(&self, name: &Name) -> Name {
        let searched = self.schemas_searched();
        let found = self.catalog.functions(name).iter().find(|f| searched.contains(&f.schema));
        found.map_or_else(|| CATALOG.into(), |f| Arc::clone(&f.schema))
    }

    /// Functions of the same name in other schemas of the path: with other types the server may take one of them.
    fn overloads(&mut self, name: &Name) {
        let catalog = self.catalog;
        let others = catalog.functions(name);
        if others.iter().all(|other| &*other.schema == CATALOG) {
            return;
        }
        let listed = function_class(name).is_some();
        let searched = self.schemas_searched();
        for other in others.iter().filter(|other| &*other.schema != CATALOG && searched.contains(&other.schema)) {
            if !(listed && other.harmless) {
                self.call_function(&other.schema, name);
            }
        }
    }

    /// On no list: a call, wherever it may be found.
    fn unlisted(&mut self, schema: &str, name: &Name) {
        let catalog = self.catalog;
        let known = catalog.functions(name);
        if schema == CATALOG || known.iter().any(|f| &*f.schema == CATALOG) || !catalog.has_schema(CATALOG) {
            return self.call_function(&CATALOG.into(), name);
        }
        let searched = self.schemas_searched();
        if known.iter().any(|f| searched.contains(&f.schema)) {
            // Counted among the overloads.
            return;
        }
        self.unresolved = true;
        let mut schemas = searched.iter().filter(|schema| &***schema != CATALOG).peekable();
        if schemas.peek().is_none() {
            self.unknown("function", name, "no search path leads to a function of this name");
        }
        for schema in schemas {
            self.call_function(schema, name);
        }
    }

    fn listed(&mut self, class: FunctionClass, schema: &Name, name: &Name, args: &[Node]) {
        let function = || Object::Function { schema: Arc::clone(schema), name: Arc::clone(name) };
        self.note_function(schema, name, class == FunctionClass::Free);
        match class {
            FunctionClass::Free => {}
            FunctionClass::Bounded => {
                self.reuse = self.reuse.max(Reuse::Text);
                if args.get(1).and_then(integer).is_none_or(|n| n > MAX_BOUNDED) {
                    self.add(Action::Call, function());
                }
            }
            FunctionClass::Sequence => self.sequence(name, args),
            FunctionClass::Setting => self.setting_function(name, args),
            FunctionClass::Notify => {
                self.reuse = self.reuse.max(Reuse::Text);
                match args.first().and_then(constant) {
                    Some(channel) => self.add(Action::Notify, Object::Other { kind: "channel", name: cut(channel) }),
                    // Whichever it is: a policy must permit all of them.
                    None => self.add(Action::Notify, Object::Database),
                }
            }
            FunctionClass::Release => self.add(Action::Transaction, Object::Database),
            FunctionClass::Inert => self.add(Action::Call, function()),
            FunctionClass::Host => self.add(Action::Host, function()),
            FunctionClass::System => self.add(Action::System, function()),
            FunctionClass::Unknown => {
                // Connection strings stand among their arguments.
                self.secret |= name.starts_with("dblink");
                self.unknown_object(function(), "it reads or runs what no name in the statement shows");
            }
        }
    }

    fn sequence(&mut self, name: &Name, args: &[Node]) {
        self.reuse = self.reuse.max(Reuse::Text);
        if &**name == "lastval" {
            return self.add(Action::UseSequence, Object::Database);
        }
        // The text is read as a path is: parts between points, quoted or folded.
        let parts = args.first().and_then(constant).and_then(|text| SearchPath::parse(&text.replace('.', ",")).ok());
        match parts.as_ref().map(|path| &*path.0) {
            Some([name]) => self.use_sequence("", name),
            Some([schema, name] | [_, schema, name]) => self.use_sequence(schema, name),
            _ => self.unknown("sequence", "", "its name is not a constant"),
        }
    }

    fn use_sequence(&mut self, schema: &str, name: &str) {
        for target in self.targets_of(schema, name) {
            self.add(Action::UseSequence, target.object());
        }
    }

    /// `set_config` and `current_setting`.
    fn setting_function(&mut self, name: &Name, args: &[Node]) {
        self.reuse = self.reuse.max(Reuse::Text);
        let Some(setting) = args.first().and_then(constant) else {
            return self.unknown("setting", "", "its name is not a constant");
        };
        if &**name == "current_setting" {
            return self.show_setting(setting);
        }
        match args.get(1).and_then(constant) {
            Some(value) => self.set_setting(setting, &Value::Text(value)),
            None => self.unknown("setting", setting, "its value is not a constant"),
        }
    }
}
