//! Kinds of objects: what it means to make, change or drop one, and how it is named.

use pg_query::{
    Node, NodeEnum,
    protobuf::{ObjectType, RangeVar},
};

use super::{
    Walker,
    names::{qualified, qualified_node, text},
};
use crate::sql::{
    access::{Action, Object},
    names::cut,
};

/// How objects of a kind are dealt with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Handling {
    create: Action,
    alter: Action,
    drop: Action,
    named: Named,
}

#[derive(Debug, Clone, Copy)]
enum Named {
    /// In a schema; types, collations and the like are named as relations of it are.
    Relation,
    Function,
    Schema,
    /// A trigger, rule, policy, constraint or column: by its relation, which stands before the last name.
    OfRelation,
    /// By a name of its own.
    Other(&'static str),
}

/// Which of the three is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    Create,
    Alter,
    Drop,
}

impl Handling {
    pub(super) const fn action(self, deed: Deed) -> Action {
        match deed {
            Deed::Create => self.create,
            Deed::Alter => self.alter,
            Deed::Drop => self.drop,
        }
    }
}

/// How the server's kind of object is dealt with; `None` where it is not understood.
pub(super) fn handling(kind: i32) -> Option<Handling> {
    use ObjectType as O;
    let ddl = |named| Handling { create: Action::Create, alter: Action::Alter, drop: Action::Drop, named };
    let all = |action, named| Handling { create: action, alter: action, drop: action, named };
    Some(match ObjectType::try_from(kind).ok()? {
        O::ObjectTable
        | O::ObjectForeignTable
        | O::ObjectSequence
        | O::ObjectIndex
        | O::ObjectType
        | O::ObjectDomain
        | O::ObjectCollation
        | O::ObjectStatisticExt
        | O::ObjectTsconfiguration
        | O::ObjectTsdictionary => ddl(Named::Relation),
        O::ObjectSchema => ddl(Named::Schema),
        O::ObjectColumn | O::ObjectTabconstraint => ddl(Named::OfRelation),
        // Their names are those of a type, with what is changed behind.
        O::ObjectAttribute | O::ObjectDomconstraint => ddl(Named::OfRelation),
        O::ObjectView | O::ObjectMatview => all(Action::View, Named::Relation),
        O::ObjectFunction | O::ObjectProcedure | O::ObjectAggregate | O::ObjectRoutine => {
            all(Action::Routine, Named::Function)
        }
        O::ObjectOperator => all(Action::Routine, Named::Other("operator")),
        O::ObjectOpclass => all(Action::Routine, Named::Other("operator class")),
        O::ObjectOpfamily => all(Action::Routine, Named::Other("operator family")),
        O::ObjectCast => all(Action::Routine, Named::Other("cast")),
        O::ObjectConversion => all(Action::Routine, Named::Other("conversion")),
        O::ObjectTransform => all(Action::Routine, Named::Other("transform")),
        O::ObjectAccessMethod => all(Action::Routine, Named::Other("access method")),
        O::ObjectTsparser => all(Action::Routine, Named::Other("text search parser")),
        O::ObjectTstemplate => all(Action::Routine, Named::Other("text search template")),
        O::ObjectTrigger => all(Action::Trigger, Named::OfRelation),
        O::ObjectEventTrigger => all(Action::Trigger, Named::Other("event trigger")),
        O::ObjectRule => all(Action::Rule, Named::OfRelation),
        O::ObjectPolicy => all(Action::RowPolicy, Named::OfRelation),
        O::ObjectExtension => all(Action::Extension, Named::Other("extension")),
        O::ObjectLanguage => all(Action::Extension, Named::Other("language")),
        O::ObjectRole => all(Action::Role, Named::Other("role")),
        O::ObjectDatabase => all(Action::System, Named::Other("database")),
        O::ObjectTablespace => all(Action::System, Named::Other("tablespace")),
        O::ObjectFdw => all(Action::Foreign, Named::Other("foreign data wrapper")),
        O::ObjectForeignServer => all(Action::Foreign, Named::Other("foreign server")),
        O::ObjectUserMapping => all(Action::Foreign, Named::Other("user mapping")),
        O::ObjectPublication | O::ObjectPublicationNamespace | O::ObjectPublicationRel => {
            all(Action::Foreign, Named::Other("publication"))
        }
        O::ObjectSubscription => all(Action::Foreign, Named::Other("subscription")),
        // Rows of no relation, and kinds that no statement names.
        O::ObjectLargeobject
        | O::ObjectDefacl
        | O::ObjectDefault
        | O::ObjectAmop
        | O::ObjectAmproc
        | O::ObjectParameterAcl
        | O::Undefined => return None,
    })
}

impl Walker<'_> {
    /// Does something to an object of the server's kind, by a node that names it.
    pub(super) fn object(&mut self, kind: i32, node: Option<&Node>, deed: Deed) {
        let Some(handling) = handling(kind) else {
            return self.unknown("object", "", "objects of this kind are not understood");
        };
        self.act(handling.action(deed), handling, node, deed);
    }

    /// The same under another action: an owner, a label.
    pub(super) fn object_as(&mut self, action: Action, kind: i32, node: Option<&Node>) {
        match handling(kind) {
            Some(handling) => self.act(action, handling, node, Deed::Alter),
            None => self.unknown("object", "", "objects of this kind are not understood"),
        }
    }

    fn act(&mut self, action: Action, handling: Handling, node: Option<&Node>, deed: Deed) {
        let Some(node) = node else { return self.unplaced(None) };
        match handling.named {
            Named::Relation => match qualified_node(node) {
                Some((schema, name)) if deed == Deed::Create => self.make(schema, name, action),
                Some((schema, name)) => self.change(schema, name, action),
                None => self.unplaced(node.node.as_ref()),
            },
            Named::Function => match qualified_node(node) {
                Some((schema, name)) => self.routine(schema, name, action, deed),
                None => self.unplaced(node.node.as_ref()),
            },
            Named::Schema => match qualified_node(node) {
                Some((_, name)) => self.add(action, Object::Schema { schema: cut(name) }),
                None => self.unplaced(node.node.as_ref()),
            },
            Named::OfRelation => self.of_relation(action, node),
            Named::Other(kind) => {
                let name = qualified_node(node).map_or_else(|| cut(""), |(_, name)| cut(name));
                self.add(action, Object::Other { kind, name });
            }
        }
    }

    /// `schema.relation.trigger`, or a type with the name of its constraint.
    fn of_relation(&mut self, action: Action, node: &Node) {
        let relation = match &node.node {
            Some(NodeEnum::List(list)) => match list.items.split_last() {
                Some((last, [])) => qualified_node(last),
                Some((last, relation)) => match relation.first().and_then(|first| first.node.as_ref()) {
                    Some(NodeEnum::TypeName(name)) => qualified(&name.names),
                    _ => text(last).and_then(|_| qualified(relation)),
                },
                None => None,
            },
            Some(NodeEnum::TypeName(name)) => qualified(&name.names),
            _ => None,
        };
        match relation {
            Some((schema, name)) => self.change(schema, name, action),
            None => self.unplaced(node.node.as_ref()),
        }
    }

    /// What is done to existing relations, or things named like them.
    pub(super) fn change(&mut self, schema: &str, name: &str, action: Action) {
        for target in self.targets_of(schema, name) {
            self.add(action, target.object());
        }
    }

    pub(super) fn make(&mut self, schema: &str, name: &str, action: Action) {
        for target in self.new_targets_of(schema, name) {
            self.add(action, target.object());
        }
    }

    pub(super) fn existing(&mut self, relation: &RangeVar, action: Action) {
        for target in self.targets(relation) {
            self.add(action, target.object());
        }
    }

    pub(super) fn each_relation(&mut self, relations: &[Node], action: Action) {
        for relation in relations {
            match &relation.node {
                Some(NodeEnum::RangeVar(relation)) => self.existing(relation, action),
                other => self.unplaced(other.as_ref()),
            }
        }
    }

    /// A function, procedure or aggregate that is made, changed or dropped.
    pub(super) fn routine(&mut self, schema: &str, name: &str, action: Action, deed: Deed) {
        let name = cut(name);
        if !schema.is_empty() {
            return self.add(action, Object::Function { schema: cut(schema), name });
        }
        let catalog = self.catalog;
        let mut schemas = if deed == Deed::Create { self.schemas_for_new() } else { self.schemas_searched().to_vec() };
        if deed != Deed::Create {
            let having: Vec<_> =
                schemas.iter().filter(|s| catalog.functions(&name).iter().any(|f| f.schema == **s)).cloned().collect();
            if having.is_empty() {
                self.unresolved = true;
                schemas.retain(|schema| &**schema != super::names::CATALOG);
            } else {
                schemas = having;
            }
        }
        if schemas.is_empty() {
            self.unknown("function", &name, "no search path has a schema for it");
        }
        for schema in schemas {
            self.add(action, Object::Function { schema, name: std::sync::Arc::clone(&name) });
        }
    }
}
