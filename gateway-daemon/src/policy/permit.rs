//! Writing a permit: the text of a policy from what it is to say. Names of any kind come out as they are and break out of
//! nothing: what is not plain ASCII is escaped.

use std::{collections::BTreeSet, fmt};

use super::{names, schema::Kind};
use crate::sql::Action;

/// Whom a permit is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grantee {
    /// An agent, by its configured name.
    Agent(String),
    /// Agents that are in all of these groups: at least one.
    Groups(BTreeSet<String>),
}

/// An entity that a policy can name: a type of the schema, and a name that one of that type can have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entity {
    /// Connection and database, as far as the name goes.
    place: Vec<String>,
    kind: Kind,
    /// The parts behind them.
    name: Vec<String>,
    id: String,
}

/// What a permit is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// This alone.
    Only(Entity),
    /// Everything of a type in a schema.
    Every {
        /// The type's name.
        kind: &'static str,
        /// The schema.
        schema: Entity,
    },
}

/// A permit as it is to be written.
#[derive(Debug, Clone, Copy)]
pub struct Permit<'a> {
    /// Its `@id`.
    pub id: &'a str,
    /// Its `@description`.
    pub description: &'a str,
    /// Its principal.
    pub grantee: &'a Grantee,
    /// Its actions, at least one.
    pub actions: &'a [Action],
    /// Its resource.
    pub extent: &'a Extent,
    /// The only columns, where it is for some only.
    pub columns: Option<&'a BTreeSet<String>>,
}

impl Grantee {
    /// Whether a policy can name it.
    pub fn can_be_named(&self) -> bool {
        match self {
            Self::Agent(name) => names::parts(Kind::Agent, name).is_ok(),
            Self::Groups(groups) => {
                !groups.is_empty() && groups.iter().all(|group| names::parts(Kind::Group, group).is_ok())
            }
        }
    }
}

impl Entity {
    /// The entity of a type and a name as the record has them; `None` when no policy can name it.
    pub fn new(kind: &str, id: &str) -> Option<Self> {
        let kind = *Kind::ALL.iter().find(|known| known.name() == kind)?;
        match kind {
            Kind::Agent | Kind::Group => return None,
            Kind::Connection
            | Kind::Database
            | Kind::Schema
            | Kind::Table
            | Kind::Function
            | Kind::Setting
            | Kind::Other => {}
        }
        let mut place = names::parts(kind, id).ok()?;
        let name = place.split_off(place.len().min(2));
        Some(Self { place, kind, name, id: id.to_owned() })
    }

    /// The type's name.
    pub const fn kind(&self) -> &'static str {
        self.kind.name()
    }

    /// Connection and database.
    pub fn place(&self) -> &[String] {
        &self.place
    }

    /// What stands behind them in its name, as it is.
    pub fn name(&self) -> &[String] {
        &self.name
    }

    /// The schema that it lies in, for what does.
    pub fn schema(&self) -> Option<Self> {
        match self.kind {
            Kind::Table | Kind::Function => {
                // Parts hold no bare `/`.
                let (id, _) = self.id.rsplit_once('/')?;
                Self::new(Kind::Schema.name(), id)
            }
            Kind::Agent
            | Kind::Group
            | Kind::Connection
            | Kind::Database
            | Kind::Schema
            | Kind::Setting
            | Kind::Other => None,
        }
    }
}

impl Extent {
    /// The entity that the policy names.
    pub const fn entity(&self) -> &Entity {
        match self {
            Self::Only(entity) | Self::Every { schema: entity, .. } => entity,
        }
    }
}

impl fmt::Display for Permit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, description, grantee, actions, extent, columns } = self;
        writeln!(f, "@id({})\n@description({})\npermit (", Quoted(id), Quoted(description))?;
        let (principal, others) = match grantee {
            Grantee::Agent(name) => (format!("principal == Agent::{}", Quoted(name)), String::new()),
            Grantee::Groups(groups) => {
                let mut each = groups.iter().map(|group| format!("principal in Group::{}", Quoted(group)));
                (each.next().unwrap_or_default(), each.collect::<Vec<_>>().join(" && "))
            }
        };
        writeln!(f, "    {principal},")?;
        let named: Vec<String> = actions.iter().map(|action| format!("Action::{}", Quoted(action.name()))).collect();
        match named.as_slice() {
            [one] => writeln!(f, "    action == {one},")?,
            several => writeln!(f, "    action in [{}],", several.join(", "))?,
        }
        match extent {
            Extent::Only(entity) => writeln!(f, "    resource == {}::{}", entity.kind(), Quoted(&entity.id))?,
            Extent::Every { kind, schema } => {
                writeln!(f, "    resource is {kind} in {}::{}", schema.kind(), Quoted(&schema.id))?;
            }
        }
        f.write_str(")")?;
        if !others.is_empty() {
            write!(f, "\nwhen {{ {others} }}")?;
        }
        match columns {
            None => {}
            // An empty set has no type in Cedar.
            Some(columns) if columns.is_empty() => {
                f.write_str("\nwhen { !context.allColumns && context.columns.isEmpty() }")?;
            }
            Some(columns) => {
                let columns: Vec<String> = columns.iter().map(|column| Quoted(column).to_string()).collect();
                let columns = columns.join(", ");
                write!(f, "\nwhen {{ !context.allColumns && [{columns}].containsAll(context.columns) }}")?;
            }
        }
        f.write_str(";")
    }
}

/// A string of Cedar's.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for character in self.0.chars() {
            match character {
                '"' | '\\' => write!(f, "\\{character}")?,
                ' '..='~' => write!(f, "{character}")?,
                other => write!(f, "\\u{{{:x}}}", u32::from(other))?,
            }
        }
        f.write_str("\"")
    }
}
