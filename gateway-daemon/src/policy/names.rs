//! How entities are named in policies, and back. Parts are joined by `/`; inside a part `%` is `%25` and `/` is `%2F`,
//! so that no two objects share a name, whatever an agent calls its tables. Agents and groups keep their names as they are.

use std::collections::{HashMap, HashSet};

use cedar_policy::{Entities, Entity, EntityUid, RestrictedExpression};

use super::schema::{Kind, action_uid, group};
use crate::{
    identity::Identity,
    sql::{Action, Object},
};

/// Why no entity can have a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameFault {
    /// Too few or too many parts.
    #[error("it has {found} part{} and needs {wanted}: {shape}", if *.found == 1 { "" } else { "s" })]
    Parts {
        /// Parts that it has.
        found: usize,
        /// Parts that names of this kind have.
        wanted: usize,
        /// The shape in words.
        shape: &'static str,
    },
    /// A part is empty.
    #[error("part {part} is empty")]
    Empty {
        /// Which, from 1.
        part: usize,
    },
    /// A `%` that is neither `%25` nor `%2F`.
    #[error("`%` stands for itself as `%25` and for `/` as `%2F`, and for nothing else")]
    Escape,
    /// A group without its issuer.
    #[error("a group is named by its issuer and its own name: ISSUER/GROUP")]
    Group,
}

/// What a statement's object is in Cedar: the entity asked for, with all that stands above it.
#[derive(Debug, Clone)]
pub(super) struct Resource {
    /// Its kind.
    pub(super) kind: Kind,
    /// The entity itself first, then upwards to the connection.
    pub(super) chain: Vec<Entity>,
}

impl Resource {
    pub(super) fn new(connection: &str, database: &str, object: &Object) -> Self {
        let above = Above { connection, database };
        let mut chain = Vec::with_capacity(4);
        let kind = match object {
            Object::Database => Kind::Database,
            Object::Schema { schema } => {
                chain.push(above.schema(schema));
                Kind::Schema
            }
            Object::Relation { schema, name } => {
                chain.extend([above.in_schema(Kind::Table, schema, name), above.schema(schema)]);
                Kind::Table
            }
            Object::Function { schema, name } => {
                chain.extend([above.in_schema(Kind::Function, schema, name), above.schema(schema)]);
                Kind::Function
            }
            Object::Setting { name } => {
                chain.push(above.setting(name));
                Kind::Setting
            }
            Object::Other { kind, name } => {
                chain.push(above.other(kind, name));
                Kind::Other
            }
        };
        chain.extend([above.database(), above.connection()]);
        Self { kind, chain }
    }
}

/// The name of the entity that an object is in policies.
pub(super) fn entity_name(connection: &str, database: &str, object: &Object) -> (Kind, String) {
    let (kind, below): (_, &[&str]) = match object {
        Object::Database => (Kind::Database, &[]),
        Object::Schema { schema } => (Kind::Schema, &[schema]),
        Object::Relation { schema, name } => (Kind::Table, &[schema, name]),
        Object::Function { schema, name } => (Kind::Function, &[schema, name]),
        Object::Setting { name } => (Kind::Setting, &[name]),
        Object::Other { kind, name } => (Kind::Other, &[kind, name]),
    };
    (kind, join(&[&[connection, database], below].concat()))
}

/// Names that every entity of one statement shares.
struct Above<'a> {
    connection: &'a str,
    database: &'a str,
}

impl Above<'_> {
    fn connection(&self) -> Entity {
        entity(Kind::Connection.uid(&join(&[self.connection])), [("name", self.connection)], None)
    }

    fn database(&self) -> Entity {
        let attributes = [("connection", self.connection), ("name", self.database)];
        entity(self.database_uid(), attributes, Some(Kind::Connection.uid(&join(&[self.connection]))))
    }

    fn schema(&self, schema: &str) -> Entity {
        let attributes = [("connection", self.connection), ("database", self.database), ("name", schema)];
        entity(self.schema_uid(schema), attributes, Some(self.database_uid()))
    }

    fn in_schema(&self, kind: Kind, schema: &str, name: &str) -> Entity {
        let attributes =
            [("connection", self.connection), ("database", self.database), ("schema", schema), ("name", name)];
        let uid = kind.uid(&join(&[self.connection, self.database, schema, name]));
        entity(uid, attributes, Some(self.schema_uid(schema)))
    }

    fn setting(&self, name: &str) -> Entity {
        let attributes = [("connection", self.connection), ("database", self.database), ("name", name)];
        let uid = Kind::Setting.uid(&join(&[self.connection, self.database, name]));
        entity(uid, attributes, Some(self.database_uid()))
    }

    fn other(&self, kind: &str, name: &str) -> Entity {
        let attributes = [("connection", self.connection), ("database", self.database), ("kind", kind), ("name", name)];
        let uid = Kind::Other.uid(&join(&[self.connection, self.database, kind, name]));
        entity(uid, attributes, Some(self.database_uid()))
    }

    fn database_uid(&self) -> EntityUid {
        Kind::Database.uid(&join(&[self.connection, self.database]))
    }

    fn schema_uid(&self, schema: &str) -> EntityUid {
        Kind::Schema.uid(&join(&[self.connection, self.database, schema]))
    }
}

/// Everything that Cedar needs to know for one question. Groups have no attributes, so their names as parents suffice.
///
/// # Errors
/// Cedar's, for people; no name reaches one, but a failure here must become a refusal and not a panic.
pub(super) fn entities(identity: &Identity, action: Action, resource: &Resource) -> Result<Entities, String> {
    let agent = Entity::new(
        agent_uid(identity),
        attributes([
            ("name", &*identity.agent),
            ("issuer", &*identity.subject.issuer),
            ("subject", &*identity.subject.subject),
        ]),
        identity.groups.iter().map(|group| Kind::Group.uid(&group.0)).collect(),
    )
    .map_err(|error| error.to_string())?;
    let parents = group(action).map(action_uid).into_iter().collect();
    let action = Entity::new_no_attrs(action_uid(action.name()), parents);
    Entities::from_entities(resource.chain.iter().cloned().chain([agent, action]), None)
        .map_err(|error| error.to_string())
}

pub(super) fn agent_uid(identity: &Identity) -> EntityUid {
    Kind::Agent.uid(&identity.agent)
}

/// Reads a name as policies write it into its parts, unescaped.
///
/// # Errors
/// When no entity of this kind can have that name.
pub(super) fn parts(kind: Kind, id: &str) -> Result<Vec<String>, NameFault> {
    let (wanted, shape) = match kind {
        Kind::Agent => return if id.is_empty() { Err(NameFault::Empty { part: 1 }) } else { Ok(vec![id.to_owned()]) },
        Kind::Group => return group_parts(id),
        Kind::Connection => (1, "CONNECTION"),
        Kind::Database => (2, "CONNECTION/DATABASE"),
        Kind::Schema => (3, "CONNECTION/DATABASE/SCHEMA"),
        Kind::Table => (4, "CONNECTION/DATABASE/SCHEMA/RELATION"),
        Kind::Function => (4, "CONNECTION/DATABASE/SCHEMA/FUNCTION"),
        Kind::Setting => (3, "CONNECTION/DATABASE/SETTING"),
        Kind::Other => (4, "CONNECTION/DATABASE/KIND/NAME"),
    };
    let parts: Vec<_> = id.split('/').map(unescape).collect::<Option<_>>().ok_or(NameFault::Escape)?;
    if parts.len() != wanted {
        return Err(NameFault::Parts { found: parts.len(), wanted, shape });
    }
    // Only the name of an `Other` may be missing.
    let may_be_empty = if kind == Kind::Other { wanted } else { wanted + 1 };
    match (1..may_be_empty).zip(&parts).find(|(_, part)| part.is_empty()) {
        Some((part, _)) => Err(NameFault::Empty { part }),
        None => Ok(parts),
    }
}

fn group_parts(id: &str) -> Result<Vec<String>, NameFault> {
    match id.split_once('/') {
        Some((issuer, name)) if !issuer.is_empty() && !name.is_empty() => Ok(vec![issuer.to_owned(), name.to_owned()]),
        Some(_) | None => Err(NameFault::Group),
    }
}

fn join(parts: &[&str]) -> String {
    let mut id = String::with_capacity(parts.iter().map(|part| part.len() + 1).sum());
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            id.push('/');
        }
        for character in part.chars() {
            match character {
                '%' => id.push_str("%25"),
                '/' => id.push_str("%2F"),
                other => id.push(other),
            }
        }
    }
    id
}

fn unescape(part: &str) -> Option<String> {
    let mut pieces = part.split('%');
    let mut plain = pieces.next()?.to_owned();
    for piece in pieces {
        let (escaped, rest) =
            piece.strip_prefix("25").map(|rest| ('%', rest)).or_else(|| Some(('/', piece.strip_prefix("2F")?)))?;
        plain.push(escaped);
        plain.push_str(rest);
    }
    Some(plain)
}

fn entity<'a>(
    uid: EntityUid,
    names: impl IntoIterator<Item = (&'static str, &'a str)>,
    parent: Option<EntityUid>,
) -> Entity {
    let parents: HashSet<_> = parent.into_iter().collect();
    // Only an attribute that calls an extension function can fail; then the entity is one without attributes, and
    // a policy that reads one fails, which refuses.
    Entity::new(uid.clone(), attributes(names), parents.clone()).unwrap_or_else(|_| Entity::new_no_attrs(uid, parents))
}

fn attributes<'a>(names: impl IntoIterator<Item = (&'static str, &'a str)>) -> HashMap<String, RestrictedExpression> {
    names
        .into_iter()
        .map(|(name, value)| (name.to_owned(), RestrictedExpression::new_string(value.to_owned())))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        policy::{ask, rule::Reads},
        sql::Columns,
    };

    #[test]
    fn names_read_back_or_say_what_is_wrong() {
        let table = |id| parts(Kind::Table, id);
        assert_eq!(table("orders/shop/public/customers").unwrap(), ["orders", "shop", "public", "customers"]);
        assert_eq!(table("orders/shop/public/a%2Fb%25.c").unwrap(), ["orders", "shop", "public", "a/b%.c"]);
        assert_eq!(
            table("public.customers"),
            Err(NameFault::Parts { found: 1, wanted: 4, shape: "CONNECTION/DATABASE/SCHEMA/RELATION" })
        );
        assert_eq!(table("orders/shop//customers"), Err(NameFault::Empty { part: 3 }));
        assert_eq!(table("orders/shop/public/a%2f"), Err(NameFault::Escape));
        assert_eq!(table("orders/shop/public/%"), Err(NameFault::Escape));
        assert!(parts(Kind::Other, "orders/shop/role/").is_ok());
        assert_eq!(parts(Kind::Other, "orders/shop//x"), Err(NameFault::Empty { part: 3 }));
        assert_eq!(parts(Kind::Group, "developers"), Err(NameFault::Group));
        assert_eq!(parts(Kind::Group, "corp//eng/backend").unwrap(), ["corp", "/eng/backend"]);
        assert_eq!(parts(Kind::Agent, ""), Err(NameFault::Empty { part: 1 }));
    }

    /// Names that are hostile to joining: the separators themselves, escapes, quotes, other scripts.
    fn name() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z/%.\"'\\\\]{1,6}",
            "[%/][0-9A-F]{0,3}(25|2F){0,2}",
            "\\PC{1,5}",
            Just("%2F".to_owned()),
            Just("customers".to_owned()),
        ]
    }

    fn object() -> impl Strategy<Value = Object> {
        let short = || name().prop_map(|name| name.as_str().into());
        prop_oneof![
            Just(Object::Database),
            short().prop_map(|schema| Object::Schema { schema }),
            (short(), short()).prop_map(|(schema, name)| Object::Relation { schema, name }),
            (short(), short()).prop_map(|(schema, name)| Object::Function { schema, name }),
            short().prop_map(|name| Object::Setting { name }),
            (prop_oneof![Just("role"), Just("foreign server")], short())
                .prop_map(|(kind, name)| Object::Other { kind, name }),
        ]
    }

    fn place() -> impl Strategy<Value = (String, String, Object)> {
        (name(), name(), object())
    }

    fn uid(place: &(String, String, Object)) -> EntityUid {
        Resource::new(&place.0, &place.1, &place.2).chain[0].uid()
    }

    proptest! {
        #[test]
        fn two_objects_never_share_a_name(one in place(), two in place()) {
            prop_assert_eq!(uid(&one) == uid(&two), one == two);
        }

        #[test]
        fn a_name_reads_back_into_its_parts(place in place()) {
            let resource = Resource::new(&place.0, &place.1, &place.2);
            let uid = resource.chain[0].uid();
            let mut wanted = vec![place.0.clone(), place.1.clone()];
            match &place.2 {
                Object::Database => {}
                Object::Schema { schema } => wanted.push(schema.to_string()),
                Object::Relation { schema, name } | Object::Function { schema, name } => {
                    wanted.extend([schema.to_string(), name.to_string()]);
                }
                Object::Setting { name } => wanted.push(name.to_string()),
                Object::Other { kind, name } => wanted.extend([(*kind).to_owned(), name.to_string()]),
            }
            prop_assert_eq!(parts(resource.kind, uid.id().unescaped()).unwrap(), wanted);
        }

        #[test]
        fn the_name_alone_is_that_of_the_entity_asked_for(place in place()) {
            let (kind, id) = entity_name(&place.0, &place.1, &place.2);
            prop_assert_eq!(kind.uid(&id), uid(&place));
        }

        #[test]
        fn what_is_asked_conforms_to_the_schema(place in place(), index in 0..Action::ALL.len()) {
            let resource = Resource::new(&place.0, &place.1, &place.2);
            let schema = super::super::schema::schema();
            Entities::from_entities(resource.chain.iter().cloned(), Some(schema)).unwrap();
            let entities = Entities::from_entities(resource.chain.iter().cloned(), None).unwrap();
            for above in &resource.chain[1..] {
                prop_assert!(entities.is_ancestor_of(&above.uid(), &resource.chain[0].uid()));
            }
            cedar_policy::Request::new(
                Kind::Agent.uid("claude"),
                action_uid(Action::ALL[index].name()),
                resource.chain[0].uid(),
                ask::context(&Columns::None, &ask::Circumstances::test(), Reads::everything()).unwrap(),
                Some(schema),
            ).unwrap();
        }
    }
}
