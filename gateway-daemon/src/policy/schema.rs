//! The published schema, and the actions and entity types of its words as values.

use std::sync::LazyLock;

use cedar_policy::{EntityId, EntityTypeName, EntityUid, Schema, SchemaFragment};

use crate::sql::{Action, Class};

/// The schema as people read it: `weir policy schema` prints it.
pub const SCHEMA: &str = include_str!("weir.cedarschema");

/// An entity type of the schema that policies may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Agent,
    Group,
    Connection,
    Database,
    Schema,
    Table,
    Function,
    Setting,
    Other,
}

impl Kind {
    pub(super) const ALL: &'static [Self] = &[
        Self::Agent,
        Self::Group,
        Self::Connection,
        Self::Database,
        Self::Schema,
        Self::Table,
        Self::Function,
        Self::Setting,
        Self::Other,
    ];

    /// The type's name in policies.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Agent => "Agent",
            Self::Group => "Group",
            Self::Connection => "Connection",
            Self::Database => "Database",
            Self::Schema => "Schema",
            Self::Table => "Table",
            Self::Function => "Function",
            Self::Setting => "Setting",
            Self::Other => "Other",
        }
    }

    /// The kind of a type name; `None` for `Action` and for what the schema doesn't know.
    pub(super) fn of(type_name: &EntityTypeName) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.type_name() == type_name)
    }

    /// The uid of this kind with an id that is already escaped.
    pub(super) fn uid(self, id: &str) -> EntityUid {
        EntityUid::from_type_name_and_id(self.type_name().clone(), EntityId::new(id))
    }

    fn type_name(self) -> &'static EntityTypeName {
        let types = &*TYPES;
        match self {
            Self::Agent => &types.agent,
            Self::Group => &types.group,
            Self::Connection => &types.connection,
            Self::Database => &types.database,
            Self::Schema => &types.schema,
            Self::Table => &types.table,
            Self::Function => &types.function,
            Self::Setting => &types.setting,
            Self::Other => &types.other,
        }
    }
}

/// A set of actions, one bit for each of [`Action::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Actions(u64);

const _: () = assert!(Action::ALL.len() <= 64, "Actions has a bit for each");

impl Actions {
    pub(super) const NONE: Self = Self(0);

    pub(super) fn all() -> Self {
        Action::ALL.iter().fold(Self::NONE, |set, &action| set.with(action))
    }

    pub(super) fn with(self, action: Action) -> Self {
        Self(self.0 | Self::bit(action))
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn contains(self, action: Action) -> bool {
        self.0 & Self::bit(action) != 0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Action> {
        Action::ALL.iter().copied().filter(move |&action| self.contains(action))
    }

    /// The actions at or below `uid`: one for a leaf, the members for a group, none for what the schema doesn't know.
    pub(super) fn at_or_below(uid: &EntityUid) -> Self {
        let name = uid.id().unescaped();
        let below = |action: &&Action| action.name() == name || in_group(**action, name);
        Action::ALL.iter().filter(below).fold(Self::NONE, |set, &action| set.with(action))
    }

    /// The action that `uid` is; a group is none.
    pub(super) fn exactly(uid: &EntityUid) -> Self {
        let name = uid.id().unescaped();
        Action::ALL.iter().filter(|action| action.name() == name).fold(Self::NONE, |set, &action| set.with(action))
    }

    fn bit(action: Action) -> u64 {
        Action::ALL.iter().zip(0_u32..).find(|(known, _)| **known == action).map_or(0, |(_, index)| 1 << index)
    }
}

/// The action's group in the schema; `unknown` is in none.
pub(super) fn group(action: Action) -> Option<&'static str> {
    match action.class() {
        Class::Unknown => None,
        class @ (Class::Read | Class::Write | Class::Ddl | Class::Code | Class::Admin | Class::Session) => {
            Some(class.name())
        }
    }
}

/// The uid of an action or of a group of actions.
pub(super) fn action_uid(name: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(TYPES.action.clone(), EntityId::new(name))
}

/// The parsed schema.
pub(super) fn schema() -> &'static Schema {
    &SCHEMA_PARSED
}

/// The schema with one action that applies to anything; the others have names only.
///
/// # Errors
/// Cedar's, for people; no input reaches one.
pub(super) fn schema_of_one(action: Action) -> Result<Schema, String> {
    let (fragment, _) = SchemaFragment::from_cedarschema_str(SCHEMA).map_err(|error| error.to_string())?;
    let mut json = fragment.to_json_value().map_err(|error| error.to_string())?;
    let actions = json.pointer_mut("//actions").and_then(serde_json::Value::as_object_mut);
    for (name, declared) in actions.ok_or("the schema has no actions")? {
        if name != action.name()
            && let Some(declared) = declared.as_object_mut()
        {
            declared.remove("appliesTo");
        }
    }
    Schema::from_json_value(json).map_err(|error| error.to_string())
}

fn in_group(action: Action, name: &str) -> bool {
    group(action) == Some(name)
}

#[expect(clippy::expect_used, reason = "the text is compiled in and a test parses it: no input reaches this")]
static SCHEMA_PARSED: LazyLock<Schema> =
    LazyLock::new(|| SCHEMA.parse::<Schema>().expect("the schema that is compiled in parses"));

struct Types {
    action: EntityTypeName,
    agent: EntityTypeName,
    group: EntityTypeName,
    connection: EntityTypeName,
    database: EntityTypeName,
    schema: EntityTypeName,
    table: EntityTypeName,
    function: EntityTypeName,
    setting: EntityTypeName,
    other: EntityTypeName,
}

static TYPES: LazyLock<Types> = LazyLock::new(|| {
    #[expect(clippy::expect_used, reason = "constants, and a test parses each: no input reaches this")]
    let parse = |name: &str| name.parse::<EntityTypeName>().expect("a type name of the schema parses");
    Types {
        action: parse("Action"),
        agent: parse(Kind::Agent.name()),
        group: parse(Kind::Group.name()),
        connection: parse(Kind::Connection.name()),
        database: parse(Kind::Database.name()),
        schema: parse(Kind::Schema.name()),
        table: parse(Kind::Table.name()),
        function: parse(Kind::Function.name()),
        setting: parse(Kind::Setting.name()),
        other: parse(Kind::Other.name()),
    }
});

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Leaves of the schema with their groups, as `name < group`.
    fn of_schema() -> BTreeSet<String> {
        let groups: BTreeSet<_> = schema().action_groups().cloned().collect();
        let hierarchy = schema().action_entities().unwrap();
        schema()
            .actions()
            .filter(|uid| !groups.contains(*uid))
            .map(|uid| {
                let parents: Vec<_> = hierarchy.ancestors(uid).into_iter().flatten().map(name_of).collect();
                format!("{} < {}", name_of(uid), parents.join(", "))
            })
            .collect()
    }

    fn name_of(uid: &EntityUid) -> String {
        uid.id().unescaped().to_owned()
    }

    #[test]
    fn the_schema_has_exactly_the_actions_and_classes_of_sql() {
        let of_sql: BTreeSet<_> = Action::ALL
            .iter()
            .map(|action| format!("{} < {}", action.name(), group(*action).unwrap_or_default()))
            .collect();
        assert_eq!(of_schema(), of_sql);
    }

    #[test]
    fn the_groups_of_the_schema_are_the_classes_without_unknown() {
        let groups: BTreeSet<_> = schema().action_groups().map(name_of).collect();
        let classes: BTreeSet<_> = Action::ALL.iter().filter_map(|action| group(*action)).map(str::to_owned).collect();
        assert_eq!(groups, classes);
        assert!(!groups.contains(Class::Unknown.name()));
    }

    #[test]
    fn the_entity_types_of_the_schema_are_the_kinds() {
        let types: BTreeSet<_> = schema().entity_types().map(ToString::to_string).collect();
        let kinds: BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.name().to_owned()).collect();
        assert_eq!(types, kinds);
        for kind in Kind::ALL {
            assert_eq!(Kind::of(kind.type_name()), Some(*kind));
        }
    }

    #[test]
    fn a_group_holds_its_members_and_a_leaf_itself() {
        assert_eq!(
            Actions::at_or_below(&action_uid("read")).iter().collect::<Vec<_>>(),
            [Action::Select, Action::Explain]
        );
        assert_eq!(Actions::exactly(&action_uid("read")), Actions::NONE);
        assert_eq!(Actions::exactly(&action_uid("select")), Actions::NONE.with(Action::Select));
        assert_eq!(Actions::at_or_below(&action_uid("unknown")), Actions::NONE.with(Action::Unknown));
        assert_eq!(Actions::at_or_below(&action_uid("nothing")), Actions::NONE);
        assert_eq!(Actions::all().iter().count(), Action::ALL.len());
    }
}
