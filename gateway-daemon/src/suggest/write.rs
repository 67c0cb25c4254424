//! From what was gathered to the text: permits with what they rest on, and at the end what is not proposed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
};

use aws_lc_rs::digest;
use serde::Serialize;

use super::{
    Grain, SHOWN, Suggester, Thing, Why,
    seen::{MOST_COLUMNS, Seen, Statements},
};
use crate::{
    policy::{Entity, Extent, Grantee, Permit},
    show::line,
    sql::{Action, Class},
};

/// Bytes of all permits; a folder takes files of 8 MiB.
const MOST_BYTES: usize = 6 << 20;
/// Bytes of a `@description`.
const LONGEST_DESCRIPTION: usize = 1024;
/// Characters of a name in an `@id`, and in a `@description`.
const IN_ID: usize = 48;
const IN_DESCRIPTION: usize = 40;

/// What `weir policy suggest` shows.
#[derive(Debug)]
pub struct Suggestions {
    grain: Grain,
    /// The permits, in a fixed order.
    pub proposals: Vec<Proposal>,
    /// What is not proposed, in a fixed order.
    pub left: Vec<Left>,
    statements: Statements,
    not_by_policies: u64,
    unreadable: u64,
    beyond: u64,
}

/// One permit. As JSON it is one line of `weir policy suggest --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proposal {
    /// Its `@id`.
    pub id: String,
    /// The policy's text.
    pub policy: String,
    /// What it rests on, for people: lines without `//`.
    pub because: Vec<String>,
}

/// Something that was denied and is not proposed. As JSON it is one line of `weir policy suggest --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// What, for people.
    pub not_proposed: String,
    /// Why not.
    pub why: String,
    /// How often, when, by whom.
    pub because: String,
}

/// What becomes one permit.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    grantee: Grantee,
    extent: Extent,
    /// The only action, where each is to have a permit of its own.
    alone: Option<Action>,
    columns: Option<BTreeSet<String>>,
}

impl Suggester {
    /// What follows from all that was seen.
    pub fn finish(self) -> Suggestions {
        let Self { grain, seen, statements, not_by_policies, unreadable, mut beyond, .. } = self;
        let mut left: BTreeMap<(Grantee, Why, String, Action), Seen> = BTreeMap::new();
        let mut permits: BTreeMap<Key, BTreeMap<Action, Seen>> = BTreeMap::new();
        for ((grantee, thing), seen) in seen {
            match thing {
                Thing::Left(why, what, action) => {
                    left.insert((grantee, why, what, action), seen);
                }
                Thing::Permittable(entity, action) if grain == Grain::Column && seen.more_columns => {
                    left.insert((grantee, Why::Columns, spoken(&entity, SHOWN), action), seen);
                }
                Thing::Permittable(entity, action) => {
                    let key = Key::new(grain, grantee, entity, action, &seen);
                    match permits.entry(key).or_default().entry(action) {
                        std::collections::btree_map::Entry::Vacant(place) => {
                            place.insert(seen);
                        }
                        std::collections::btree_map::Entry::Occupied(mut known) => known.get_mut().merge(seen),
                    }
                }
            }
        }
        let (mut proposals, mut ids, mut bytes) = (Vec::new(), BTreeSet::new(), 0_usize);
        for (key, actions) in &permits {
            let proposal = key.proposal(actions, &mut ids);
            bytes = bytes.saturating_add(proposal.bytes());
            if bytes > MOST_BYTES {
                beyond = beyond.saturating_add(1);
            } else {
                proposals.push(proposal);
            }
        }
        let left = left.iter().map(|((grantee, why, what, action), seen)| Left {
            not_proposed: format!("{} on {what}, {}", action.name(), by(grantee)),
            why: why.words(),
            because: told(seen),
        });
        Suggestions { grain, proposals, left: left.collect(), statements, not_by_policies, unreadable, beyond }
    }
}

impl Key {
    fn new(grain: Grain, grantee: Grantee, entity: Entity, action: Action, seen: &Seen) -> Self {
        let columns = match (grain, action.class()) {
            (Grain::Column, Class::Read | Class::Write) if entity.kind() == "Table" && !seen.all_columns => {
                Some(seen.columns.clone())
            }
            (Grain::Column | Grain::Table | Grain::Schema, _) => None,
        };
        match (grain, entity.schema()) {
            // What was done to one of them is not what was done to another.
            (Grain::Schema, Some(schema)) => {
                let extent = Extent::Every { kind: entity.kind(), schema };
                Self { grantee, extent, alone: Some(action), columns }
            }
            (Grain::Column | Grain::Table | Grain::Schema, _) => {
                Self { grantee, extent: Extent::Only(entity), alone: None, columns }
            }
        }
    }

    fn proposal(&self, actions: &BTreeMap<Action, Seen>, ids: &mut BTreeSet<String>) -> Proposal {
        let Self { grantee, extent, columns, .. } = self;
        let names: Vec<Action> = actions.keys().copied().collect();
        let description = self.description(&names);
        let columns = columns.as_ref();
        let permit =
            |id: &str| Permit { id, description: &description, grantee, actions: &names, extent, columns }.to_string();
        let id = self.id(&permit(""), ids);
        let mut because = vec![format!("{}, {}", self.spoken(SHOWN), by(grantee))];
        for (action, seen) in actions {
            because.push(format!("  {}: {}", action.name(), told(seen)));
            because.extend(columns_told(seen).map(|columns| format!("    {columns}")));
            if action.class() == Class::Code {
                because.push(
                    "    CODE: it runs later, or out of sight; look at what was made before you permit it".to_owned(),
                );
            }
        }
        Proposal { policy: permit(&id), id, because }
    }

    /// Unique, and the same as long as the permit is.
    fn id(&self, text: &str, ids: &mut BTreeSet<String>) -> String {
        let who = match &self.grantee {
            Grantee::Agent(name) => slug(name),
            Grantee::Groups(groups) => slug(&groups.iter().map(String::as_str).collect::<Vec<_>>().join("-")),
        };
        let of = match self.extent.entity().name() {
            [] => "database".to_owned(),
            name => slug(&name.join(".")),
        };
        let digest = digest::digest(&digest::SHA256, text.as_bytes());
        let short: String = digest.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let plain = format!("suggested-{who}-{of}-{short}");
        let mut id = plain.clone();
        let mut count = 1_u64;
        while !ids.insert(id.clone()) {
            count = count.saturating_add(1);
            id = format!("{plain}-{count}");
        }
        id
    }

    fn description(&self, actions: &[Action]) -> String {
        let actions = actions.iter().map(|action| action.name()).collect::<Vec<_>>().join(", ");
        let columns = if self.columns.is_some() { ", some columns" } else { "" };
        let who = match &self.grantee {
            Grantee::Agent(name) => format!("Agent {}", line(name, IN_DESCRIPTION)),
            Grantee::Groups(groups) => {
                let groups = groups.iter().map(|group| line(group, IN_DESCRIPTION)).collect::<Vec<_>>();
                format!("Members of {}", groups.join(" and "))
            }
        };
        let text = format!("{who}: {actions} on {}{columns}, as the record suggests.", self.spoken(IN_DESCRIPTION));
        if text.len() > LONGEST_DESCRIPTION { format!("{actions}{columns}, as the record suggests.") } else { text }
    }

    fn spoken(&self, limit: usize) -> String {
        match &self.extent {
            Extent::Only(entity) => spoken(entity, limit),
            Extent::Every { kind, schema } => format!("every {} of {}", lower(kind), spoken(schema, limit)),
        }
    }
}

impl Why {
    fn words(&self) -> String {
        match self {
            Self::Forbidden(policies) => format!("{} forbids it, which no permit changes", ids(policies)),
            Self::Conditions(policies) => {
                format!("{} permits it under a condition that did not hold, which a permit would lift", ids(policies))
            }
            Self::Admin => "it is `admin`: it changes who may do what, or reaches outside the database".to_owned(),
            Self::Unknown => "Weir does not understand it, so nobody can say what a permit would permit".to_owned(),
            Self::Unnamable => "no policy can name it, or its name is too long to read".to_owned(),
            Self::Columns => format!("it names more than {MOST_COLUMNS} columns; ask with --by table"),
        }
    }
}

impl Proposal {
    fn bytes(&self) -> usize {
        let because = self.because.iter().map(|line| line.len().saturating_add(4));
        because.fold(self.policy.len().saturating_add(2), usize::saturating_add)
    }
}

/// The first few policies of a list.
fn ids(policies: &[String]) -> String {
    let named: Vec<String> = policies.iter().take(4).map(|id| format!("`{}`", line(id, 60))).collect();
    let more = if policies.len() > named.len() { " and others" } else { "" };
    format!("{}{more}", named.join(", "))
}

fn by(grantee: &Grantee) -> String {
    match grantee {
        Grantee::Agent(name) => format!("by agent {}", line(name, SHOWN)),
        Grantee::Groups(groups) => {
            let groups: Vec<String> = groups.iter().map(|group| line(group, SHOWN)).collect();
            format!("by agents in {}", groups.join(" and "))
        }
    }
}

/// How often, when, by whom.
fn told(seen: &Seen) -> String {
    let Seen { statements, first, last, people, sessions, .. } = seen;
    let Statements { let_pass, refused, prepared } = *statements;
    let run = let_pass.saturating_add(refused);
    let mut text = format!("{} ({let_pass} let pass, {refused} refused)", count(run, "statement"));
    if run == 0 {
        text = format!("{} and never run", count(prepared, "statement prepared"));
    }
    if first == last {
        let _ = write!(text, ", {first}");
    } else {
        let _ = write!(text, ", {first} to {last}");
    }
    let people_told: Vec<String> =
        people.named.iter().map(|(agent, subject)| format!("{} ({})", line(agent, 40), line(subject, 80))).collect();
    let sessions_told: Vec<String> = sessions.named.iter().map(ToString::to_string).collect();
    let more = |more| if more { " and others" } else { "" };
    let _ = write!(
        text,
        "; {}{}; sessions {}{}",
        people_told.join(", "),
        more(people.more),
        sessions_told.join(", "),
        more(sessions.more)
    );
    text
}

fn columns_told(seen: &Seen) -> Option<String> {
    const MOST: usize = 20;
    let mut named: Vec<String> = seen.columns.iter().take(MOST).map(|column| quoted(column, 63)).collect();
    let more = seen.columns.len().saturating_sub(MOST);
    if more > 0 {
        named.push(format!("{more} more"));
    }
    if seen.more_columns {
        named.push("others".to_owned());
    }
    match (seen.all_columns, named.is_empty()) {
        (true, true) => Some("columns: all".to_owned()),
        (true, false) => Some(format!("columns: all, and by name {}", named.join(", "))),
        (false, false) => Some(format!("columns: {}", named.join(", "))),
        (false, true) => None,
    }
}

/// An entity for people: `table public.customers of orders/shop`.
fn spoken(entity: &Entity, limit: usize) -> String {
    let name = entity.name();
    let of = place(entity, limit);
    match (entity.kind(), name) {
        ("Database", _) | (_, []) => format!("database {of}"),
        ("Other", [kind, name]) if name.is_empty() => format!("{} of {of}", line(kind, limit)),
        ("Other", [kind, name]) => format!("{} {} of {of}", line(kind, limit), quoted(name, limit)),
        (kind, parts) => {
            let parts: Vec<String> = parts.iter().map(|part| quoted(part, limit)).collect();
            format!("{} {} of {of}", lower(kind), parts.join("."))
        }
    }
}

fn place(entity: &Entity, limit: usize) -> String {
    let parts: Vec<String> = entity.place().iter().map(|part| line(part, limit)).collect();
    parts.join("/")
}

/// A name as SQL would have it: quoted unless it is plain.
fn quoted(name: &str, limit: usize) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !name.is_empty() && name.chars().all(plain) {
        return line(name, limit);
    }
    format!("\"{}\"", line(&name.replace('"', "\"\""), limit))
}

fn lower(kind: &str) -> String {
    kind.to_ascii_lowercase()
}

fn slug(name: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' };
    let slug: String = name.chars().map(fits).take(IN_ID).collect();
    slug.trim_matches('-').to_owned()
}

fn count(count: u64, what: &str) -> String {
    match (count, what.split_once(' ')) {
        (1, _) => format!("1 {what}"),
        (_, None) => format!("{count} {what}s"),
        (_, Some((noun, rest))) => format!("{count} {noun}s {rest}"),
    }
}

impl fmt::Display for Suggestions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { grain, proposals, left, statements, not_by_policies, unreadable, beyond } = self;
        let Statements { let_pass, refused, prepared } = *statements;
        if *statements == Statements::default() {
            writeln!(f, "// The policies denied nothing: there is nothing to propose.")?;
        } else {
            let width = match grain {
                Grain::Column => "for the columns that were named",
                Grain::Table => "for the tables and functions that were named, whole",
                Grain::Schema => "for whole schemas (--by schema): wider than what was seen",
            };
            writeln!(
                f,
                "// Proposed by `weir policy suggest`, {width}.\n// Read each permit before you put it in force:"
            )?;
            writeln!(f, "// that an agent asked for something does not mean that it should have it.")?;
            writeln!(
                f,
                "// {} denied: {let_pass} let pass, {refused} refused, {prepared} prepared and let pass. {} proposed, {} not.",
                count(let_pass.saturating_add(refused).saturating_add(prepared), "request"),
                count(u64::try_from(proposals.len()).unwrap_or(u64::MAX), "permit"),
                left.len(),
            )?;
        }
        for Proposal { policy, because, .. } in proposals {
            writeln!(f)?;
            for line in because {
                writeln!(f, "// {line}")?;
            }
            writeln!(f, "{policy}")?;
        }
        if !left.is_empty() {
            writeln!(f, "\n// NOT PROPOSED")?;
        }
        for Left { not_proposed, why, because } in left {
            writeln!(f, "// {not_proposed}: {why}\n//   {because}")?;
        }
        for (count, what) in [
            (
                beyond,
                "denials of other things are left out: there are too many; narrow with --agent, --connection, --since",
            ),
            (
                not_by_policies,
                "refusals by Weir itself (limits, syntax, its own role), or without particulars on the record",
            ),
            (unreadable, "events on the record that this version cannot read"),
        ] {
            if *count > 0 {
                writeln!(f, "// Also {count} {what}.")?;
            }
        }
        Ok(())
    }
}
