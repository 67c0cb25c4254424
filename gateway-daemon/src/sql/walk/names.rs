//! What a name in a statement means, under every path that may be in force.

use std::sync::Arc;

use pg_query::{Node, NodeEnum, protobuf::RangeVar};

use super::Walker;
use crate::sql::{
    access::{Name, Object},
    catalog::Relation,
    names::cut,
};

/// A relation that a name may mean.
#[derive(Debug, Clone)]
pub(super) struct Target<'a> {
    pub(super) schema: Name,
    pub(super) name: Name,
    /// What the catalogue says of it.
    pub(super) known: Option<&'a Relation>,
}

impl Target<'_> {
    pub(super) fn object(&self) -> Object {
        Object::Relation { schema: Arc::clone(&self.schema), name: Arc::clone(&self.name) }
    }
}

/// The schema of temporary objects, by the name that stands for the session's own.
pub(super) const TEMPORARY: &str = "pg_temp";
pub(super) const CATALOG: &str = "pg_catalog";

impl<'a> Walker<'a> {
    /// The existing relations that a name in a statement may mean.
    pub(super) fn targets(&mut self, relation: &RangeVar) -> Vec<Target<'a>> {
        self.targets_of(&relation.schemaname, &relation.relname)
    }

    /// The same of a schema, empty where none is given, and a name.
    pub(super) fn targets_of(&mut self, schema: &str, name: &str) -> Vec<Target<'a>> {
        let name = cut(name);
        if !schema.is_empty() {
            return vec![self.target(cut(schema), name)];
        }
        let mut found: Vec<Name> = Vec::new();
        if self.names.may_be_temporary(&name) {
            found.push(TEMPORARY.into());
        }
        for path in self.paths() {
            // The server takes the first schema that has the name; where none has, any may have it by now.
            let first = path.iter().find(|schema| self.catalog.relation(schema, &name).is_some());
            let candidates = match first {
                Some(schema) => std::slice::from_ref(schema),
                None => path.as_slice(),
            };
            for schema in candidates {
                let nowhere = first.is_none() && &**schema == CATALOG && self.catalog.has_schema(CATALOG);
                if !nowhere && !found.contains(schema) {
                    found.push(Arc::clone(schema));
                }
            }
        }
        if found.is_empty() {
            self.unresolved = true;
            self.unknown("relation", &name, "no search path leads to a relation of this name");
        }
        found.into_iter().map(|schema| self.target(schema, Arc::clone(&name))).collect()
    }

    /// The relations that a statement which makes one may make.
    pub(super) fn new_targets(&mut self, relation: &RangeVar) -> Vec<Target<'a>> {
        if relation.relpersistence == "t" && relation.schemaname.is_empty() {
            return vec![self.new_target(TEMPORARY, &relation.relname)];
        }
        self.new_targets_of(&relation.schemaname, &relation.relname)
    }

    pub(super) fn new_targets_of(&mut self, schema: &str, name: &str) -> Vec<Target<'a>> {
        if !schema.is_empty() {
            return vec![self.new_target(schema, name)];
        }
        let schemas = self.schemas_for_new();
        if schemas.is_empty() {
            self.unknown("relation", name, "no search path has a schema to make it in");
        }
        schemas.iter().map(|schema| self.new_target(schema, name)).collect()
    }

    /// Where the server makes what has no schema in its name: the first schema of the path that exists.
    pub(super) fn schemas_for_new(&self) -> Vec<Name> {
        let mut schemas = Vec::new();
        for path in self.names.paths() {
            let first = path.into_iter().find(|schema| self.exists(schema));
            schemas.extend(first.filter(|schema| !schemas.contains(schema)));
        }
        schemas
    }

    fn exists(&self, schema: &str) -> bool {
        // A catalogue that knows nothing rules nothing out.
        schema == TEMPORARY
            || self.catalog.has_schema(schema)
            || !self.catalog.has_schema(CATALOG)
            || self.new_schema.as_deref() == Some(schema)
    }

    fn new_target(&mut self, schema: &str, name: &str) -> Target<'a> {
        let (schema, name) = (cut(schema), cut(name));
        if is_temporary(&schema) {
            self.effects.push(crate::sql::NameEffect::Temporary(Arc::clone(&name)));
        }
        Target { known: self.catalog.relation(&schema, &name), schema, name }
    }

    fn target(&mut self, schema: Name, name: Name) -> Target<'a> {
        let known = self.catalog.relation(&schema, &name);
        self.unresolved |= known.is_none() && &*schema != TEMPORARY;
        Target { schema, name, known }
    }

    /// Every candidate path as the server searches it: without schemas that do not exist, pg_catalog first unless it is
    /// named.
    fn paths(&self) -> &[Vec<Name>] {
        self.paths.get_or_init(|| {
            let mut paths = Vec::new();
            for mut path in self.names.paths() {
                path.retain(|schema| self.exists(schema));
                if !path.iter().any(|schema| &**schema == CATALOG) {
                    path.insert(0, CATALOG.into());
                }
                if !paths.contains(&path) {
                    paths.push(path);
                }
            }
            paths
        })
    }

    /// The schemas of all candidate paths, each once.
    pub(super) fn schemas_searched(&self) -> Arc<[Name]> {
        let searched = self.searched.get_or_init(|| {
            let mut schemas = Vec::new();
            for schema in self.paths().iter().flatten() {
                if !schemas.contains(schema) {
                    schemas.push(Arc::clone(schema));
                }
            }
            schemas.into()
        });
        Arc::clone(searched)
    }
}

pub(super) fn is_temporary(schema: &str) -> bool {
    schema == TEMPORARY || schema.starts_with("pg_temp_")
}

/// A list of String nodes as schema and name; more parts than two begin with the database.
pub(super) fn qualified(names: &[Node]) -> Option<(&str, &str)> {
    let mut parts = names.iter().rev().map(text);
    let name = parts.next()??;
    Some((parts.next().unwrap_or(Some(""))?, name))
}

/// The text of a String node.
pub(in crate::sql) fn text(node: &Node) -> Option<&str> {
    match &node.node {
        Some(NodeEnum::String(string)) => Some(&string.sval),
        _ => None,
    }
}

/// A list of String nodes, or the single one, as a qualified name.
pub(super) fn qualified_node(node: &Node) -> Option<(&str, &str)> {
    match &node.node {
        Some(NodeEnum::List(list)) => qualified(&list.items),
        Some(NodeEnum::String(string)) => Some(("", &string.sval)),
        Some(NodeEnum::TypeName(name)) => qualified(&name.names),
        Some(NodeEnum::ObjectWithArgs(object)) => qualified(&object.objname),
        Some(NodeEnum::RangeVar(relation)) => Some((&relation.schemaname, &relation.relname)),
        _ => None,
    }
}
