//! Everything that is asked of a policy before it may load: syntax, annotations, names, schema, and a trial.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    sync::Arc,
};

use cedar_policy::{
    Effect as CedarEffect, EntityUid, Policy, PolicyId as CedarId, Template, ValidationError, ValidationMode, Validator,
};
use miette::Diagnostic;

use super::{
    PolicyId,
    fault::{Fault, FaultKind},
    load::{Known, MAX_DEPTH, MAX_DESCRIPTION_BYTES, MAX_ID_BYTES, MAX_IFS, MAX_OPERATORS, MAX_POLICY_BYTES, text_of},
    names,
    rule::{Effect, Reads, Rule, Scope, conditions_read_action},
    schema::{Kind, schema, schema_of_one},
    source::{Complexity, Place, Source, printable},
    trial,
};
use crate::sql::Action;

/// Attributes of attributes are never asked for, and what stands in a policy by name is in no store: level 1 refuses
/// both, since they would fail when evaluated.
const MAX_DEREFERENCES: u32 = 1;

/// A policy that Cedar could read.
pub(super) struct Draft {
    source: Source,
    range: Range<usize>,
    policy: Policy,
    scope: Scope,
    reads: Reads,
}

/// What came of all drafts.
#[derive(Default)]
pub(super) struct Examined {
    pub(super) rules: Vec<Rule>,
    pub(super) faults: Vec<Fault>,
    pub(super) warnings: Vec<Fault>,
}

impl Draft {
    /// Reads one policy out of its file.
    pub(super) fn parse(source: &Source, range: Range<usize>) -> Result<Self, Vec<Fault>> {
        let text = text_of(source, range.clone());
        let Complexity { depth, ifs, operators } = Complexity::of(&text);
        for (found, limit, unit) in [
            (text.len(), MAX_POLICY_BYTES, "bytes"),
            (depth, MAX_DEPTH, "brackets inside each other"),
            (ifs, MAX_IFS, "`if`s"),
            (operators, MAX_OPERATORS, "operators"),
        ] {
            if found > limit {
                let limit = u64::try_from(limit).unwrap_or(u64::MAX);
                let kind = FaultKind::Limit { what: "a policy".into(), limit, unit };
                return Err(vec![Fault::new(kind, Some(source.place(range.start..range.start)))]);
            }
        }
        match Policy::parse(None, &*text) {
            Ok(policy) => {
                let (scope, reads) = (Scope::of(&policy), Reads::of(&policy));
                Ok(Self { source: source.clone(), range, policy, scope, reads })
            }
            Err(_) if Template::parse(None, &*text).is_ok() => {
                let slot = text.find("?principal").or_else(|| text.find("?resource")).unwrap_or(0);
                let place = source.place(range.start + slot..range.start + slot + 1);
                Err(vec![Fault::new(FaultKind::Template, Some(place))])
            }
            Err(errors) => Err(errors.iter().map(|error| syntax(error, source, &range)).collect()),
        }
    }

    fn place(&self) -> Place {
        self.source.place(self.range.start..self.range.start)
    }

    /// Where `needle` first stands in the policy, else the policy's start.
    fn place_of(&self, needle: &str) -> Place {
        match text_of(&self.source, self.range.clone()).find(needle) {
            Some(at) => self.source.place(self.range.start + at..self.range.start + at + needle.len()),
            None => self.place(),
        }
    }

    fn id(&self) -> Option<&str> {
        self.policy.annotation("id")
    }

    /// The id for people, where faults speak of a policy that may have none.
    fn name(&self) -> Arc<str> {
        self.id().map_or_else(|| "?".into(), |id| printable(id).into())
    }
}

/// Examines all drafts; gives rules only when there is no fault.
pub(super) fn examine(drafts: Vec<Draft>, known: Option<&Known>) -> Examined {
    let mut examined = Examined::default();
    let mut ids: BTreeMap<&str, String> = BTreeMap::new();
    for draft in &drafts {
        annotations(draft, &mut ids, &mut examined.faults);
        named(draft, known, &mut examined);
        columns(draft, &mut examined.faults);
    }
    validate(&drafts, &mut examined);
    if examined.faults.is_empty() {
        for draft in &drafts {
            if let Some(message) = trial::failure(&draft.policy, &draft.scope) {
                examined.faults.push(Fault::new(FaultKind::Fails { message }, Some(draft.place())));
            }
        }
    }
    if examined.faults.is_empty() {
        examined.rules = drafts.into_iter().map(rule).collect();
    }
    examined
}

fn syntax(error: &dyn Diagnostic, source: &Source, range: &Range<usize>) -> Fault {
    // What was expected stands in the label, where there is no help.
    let label = || error.labels()?.find_map(|label| label.label().map(str::to_owned));
    let help = error.help().map(|help| help.to_string()).or_else(label);
    let kind = FaultKind::Syntax { message: error.to_string(), help };
    Fault::new(kind, Some(source.place(marked(error, range))))
}

/// The first label of one of Cedar's errors, moved to where its policy stands in the file.
fn marked(error: &dyn Diagnostic, range: &Range<usize>) -> Range<usize> {
    match error.labels().and_then(|mut labels| labels.next()) {
        Some(label) => {
            let start = range.start.saturating_add(label.offset());
            start..start.saturating_add(label.len())
        }
        None => range.start..range.start,
    }
}

fn annotations<'a>(draft: &'a Draft, ids: &mut BTreeMap<&'a str, String>, faults: &mut Vec<Fault>) {
    let mut fault = |kind, place| faults.push(Fault::new(kind, Some(place)));
    match draft.id() {
        None => fault(FaultKind::MissingId, draft.place()),
        Some(id) if !is_id(id) => fault(FaultKind::BadId { id: printable(id) }, draft.place_of("@id")),
        Some(id) => {
            let place = draft.place();
            let here = format!("{}:{}", place.file, place.line);
            if let Some(first) = ids.get(id) {
                fault(FaultKind::DuplicateId { id: id.into(), first: first.clone() }, draft.place_of("@id"));
            } else {
                ids.insert(id, here);
            }
        }
    }
    match draft.policy.annotation("description") {
        None => fault(FaultKind::MissingDescription, draft.place()),
        Some(text) if text.trim().is_empty() || text.len() > MAX_DESCRIPTION_BYTES || printable(text) != text => {
            fault(FaultKind::BadDescription, draft.place_of("@description"));
        }
        Some(_) => {}
    }
    let mut unknown: Vec<_> = draft
        .policy
        .annotations()
        .map(|(name, _)| name)
        .filter(|name| !matches!(*name, "id" | "description"))
        .collect();
    unknown.sort_unstable();
    for name in unknown {
        let kind = match name {
            "approval" => FaultKind::Approval,
            other => FaultKind::UnknownAnnotation { name: other.to_owned() },
        };
        fault(kind, draft.place_of(&format!("@{name}")));
    }
}

fn is_id(id: &str) -> bool {
    let fits = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.');
    !id.is_empty() && id.len() <= MAX_ID_BYTES && id.chars().all(fits)
}

/// Entities that stand in the policy by name: each must be one that can exist, and should be one that is configured.
fn named(draft: &Draft, known: Option<&Known>, examined: &mut Examined) {
    for (written, kind, uid) in literals(&draft.policy) {
        if let Err(fault) = names::parts(kind, uid.id().unescaped()) {
            let place = draft.place_of(&written);
            examined.faults.push(Fault::new(FaultKind::Name { name: written, fault }, Some(place)));
        }
    }
    for Unconfigured { what, name, written } in known.into_iter().flat_map(|known| unconfigured(&draft.policy, known)) {
        let kind = FaultKind::Unconfigured { id: draft.name(), what, name };
        examined.warnings.push(Fault::new(kind, Some(draft.place_of(&written))));
    }
}

/// Something that a policy names and the configuration doesn't.
pub(super) struct Unconfigured {
    /// `agent`, `issuer` or `connection`.
    pub(super) what: &'static str,
    pub(super) name: String,
    /// The entity as it stands in the policy.
    written: String,
}

/// What a policy names and the configuration doesn't, each once.
pub(super) fn unconfigured(policy: &Policy, known: &Known) -> Vec<Unconfigured> {
    let mut seen = BTreeSet::new();
    let mut unconfigured = Vec::new();
    for (written, kind, uid) in literals(policy) {
        let (what, names) = match kind {
            Kind::Agent => ("agent", &known.agents),
            Kind::Group => ("issuer", &known.issuers),
            Kind::Connection
            | Kind::Database
            | Kind::Schema
            | Kind::Table
            | Kind::Function
            | Kind::Setting
            | Kind::Other => ("connection", &known.connections),
        };
        let Some(name) = names::parts(kind, uid.id().unescaped()).ok().and_then(|parts| parts.into_iter().next())
        else {
            continue;
        };
        if !names.contains(&name) && seen.insert((what, name.clone())) {
            unconfigured.push(Unconfigured { what, name, written });
        }
    }
    unconfigured
}

/// The entities that a policy names, but for actions, as they are written.
fn literals(policy: &Policy) -> Vec<(String, Kind, EntityUid)> {
    let uids: BTreeSet<EntityUid> = policy.entity_literals().into_iter().collect();
    uids.into_iter().filter_map(|uid| Some((uid.to_string(), Kind::of(uid.type_name())?, uid))).collect()
}

/// With `SELECT *` the set of columns is empty: a policy that forgets it lets through what it means to bar.
fn columns(draft: &Draft, faults: &mut Vec<Fault>) {
    let (read, unread) = match (draft.reads.columns, draft.reads.all_columns) {
        (true, false) => ("columns", "allColumns"),
        (false, true) => ("allColumns", "columns"),
        (true, true) | (false, false) => return,
    };
    let place = draft.place_of(&format!("context.{read}"));
    faults.push(Fault::new(FaultKind::HalfColumns { read, unread }, Some(place)));
}

/// Cedar's validator, strict. Inside it a policy is named by its index.
fn validate(drafts: &[Draft], examined: &mut Examined) {
    let mut groups: BTreeMap<Option<Action>, Vec<(usize, &Draft)>> = BTreeMap::new();
    for (index, draft) in drafts.iter().enumerate() {
        groups.entry(representative(draft)).or_default().push((index, draft));
    }
    for (action, drafts) in groups {
        match action.map_or_else(|| Ok(schema().clone()), schema_of_one) {
            Ok(schema) => validate_group(&Validator::new(schema), &drafts, examined),
            Err(message) => {
                examined.faults.push(Fault::new(FaultKind::Invalid { message, help: None }, None));
            }
        }
    }
}

/// One of the actions of a policy that stands for all of them. The validator tries each action on each kind of resource;
/// since all actions apply to the same, one tells as much as all do, in a thirtieth of the time, unless the conditions
/// look at the action. A test holds both to the same findings.
fn representative(draft: &Draft) -> Option<Action> {
    let action = draft.scope.actions.iter().next()?;
    if conditions_read_action(&draft.policy) { None } else { Some(action) }
}

fn validate_group(validator: &Validator, drafts: &[(usize, &Draft)], examined: &mut Examined) {
    let mut by_id = HashMap::with_capacity(drafts.len());
    let mut set = cedar_policy::PolicySet::new();
    for (index, draft) in drafts {
        let id = CedarId::new(index.to_string());
        by_id.insert(id.clone(), *draft);
        if let Err(error) = set.add(draft.policy.new_id(id)) {
            let kind = FaultKind::Invalid { message: error.to_string(), help: None };
            examined.faults.push(Fault::new(kind, Some(draft.place())));
        }
    }
    let result = validator.validate_with_level(&set, ValidationMode::Strict, MAX_DEREFERENCES);
    examined.faults.extend(folded(result.validation_errors().filter_map(|error| {
        let draft = by_id.get(error.policy_id())?;
        Some((draft.source.place(marked(error, &draft.range)), error))
    })));
    for warning in result.validation_warnings() {
        use cedar_policy::ValidationWarning as Warning;
        let draft = by_id.get(warning.policy_id());
        let id = draft.map_or_else(|| "?".into(), |draft| draft.name());
        let (kind, place) = match warning {
            Warning::ImpossiblePolicy(_) | Warning::InvalidActionApplication(_) => {
                (FaultKind::NeverMatches { id }, draft.map(|draft| draft.place()))
            }
            other => (
                FaultKind::Deceiving { message: without_id(&other.to_string(), other.policy_id()) },
                draft.map(|draft| draft.source.place(marked(other, &draft.range))),
            ),
        };
        examined.warnings.push(Fault::new(kind, place));
    }
}

/// Cedar tells the same mistake once for each action and each type of resource: one is told, the others are counted.
fn folded<'a>(errors: impl Iterator<Item = (Place, &'a ValidationError)>) -> Vec<Fault> {
    type Told = (Place, Vec<(String, Option<String>)>);
    let mut places: BTreeMap<_, Told> = BTreeMap::new();
    for (place, error) in errors {
        let help = match error {
            ValidationError::EntityDerefLevelViolation(_) => Some(
                "what a policy names has no attributes to read; read those of `principal` and `resource`".to_owned(),
            ),
            other => other.help().map(|help| without_id(&help.to_string(), other.policy_id())),
        };
        let at = (Arc::clone(&place.file), place.line, place.column);
        let (_, told) = places.entry(at).or_insert_with(|| (place, Vec::new()));
        told.push((without_id(&error.to_string(), error.policy_id()), help));
    }
    let fold = |(place, mut told): Told| {
        told.sort_unstable();
        told.dedup();
        let alike = told.len().saturating_sub(1);
        let (message, help) = told.into_iter().next()?;
        let message = if alike == 0 { message } else { format!("{message}; and {alike} more like it here") };
        Some(Fault::new(FaultKind::Invalid { message, help }, Some(place)))
    };
    places.into_values().filter_map(fold).collect()
}

/// Cedar's message without the index that stands for the policy's name.
fn without_id(message: &str, id: &CedarId) -> String {
    let prefix = format!("for policy `{id}`");
    message.strip_prefix(&prefix).map_or(message, |rest| rest.trim_start_matches([',', ':', ' '])).to_owned()
}

fn rule(draft: Draft) -> Rule {
    let id: Arc<str> = draft.id().unwrap_or_default().into();
    let place = draft.place();
    Rule {
        description: draft.policy.annotation("description").unwrap_or_default().into(),
        effect: match draft.policy.effect() {
            CedarEffect::Permit => Effect::Permit,
            CedarEffect::Forbid => Effect::Forbid,
        },
        file: place.file,
        line: place.line,
        text: text_of(&draft.source, draft.range.clone()),
        scope: draft.scope,
        reads: draft.reads,
        policy: draft.policy.new_id(CedarId::new(&*id)),
        id: PolicyId(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scopes and conditions, right and wrong, with which both ways of validating must find the same.
    #[test]
    fn one_action_tells_the_validator_as_much_as_all_of_them() {
        let actions = [
            "action",
            "action in Action::\"read\"",
            "action == Action::\"unknown\"",
            "action == Action::\"read\"",
            "action in [Action::\"ddl\", Action::\"select\"]",
            "action == Action::\"selct\"",
        ];
        let rest = [
            "principal, A, resource)",
            "principal is Group, A, resource)",
            "principal in Role::\"x/y\", A, resource)",
            "principal, A, resource == Connection::\"c\")",
            "principal, A, resource is Table) when { resource.schema == \"s\" }",
            "principal, A, resource) when { resource.schema == \"s\" }",
            "principal, A, resource) when { resource is Table && resource is Setting }",
            "principal, A, resource) when { context.hour == 3 }",
            "principal, A, resource) when { context.columns.contains(3) }",
            "principal, A, resource) when { action == Action::\"select\" }",
            "principal, A, resource) when { action == Action::\"select\" && context.hour == 3 }",
            "principal, A, resource) when { Database::\"c/d\".name == \"x\" }",
        ];
        let mut told_apart = BTreeSet::new();
        for (action, rest) in actions.iter().flat_map(|action| rest.map(|rest| (action, rest))) {
            let text = format!("permit ({};", rest.replace(", A,", &format!(", {action},")));
            let source = Source::new("a.cedar", &text);
            let draft = Draft::parse(&source, 0..text.len()).ok().unwrap();
            let found = |validator: &Validator| {
                let mut examined = Examined::default();
                validate_group(validator, &[(0, &draft)], &mut examined);
                // Not how often Cedar says the same, nor with which action as the example.
                let mut said: Vec<_> = examined.faults.iter().chain(&examined.warnings).map(Fault::to_string).collect();
                said.iter_mut().for_each(|said| {
                    if let Some((first, rest)) = said.split_once('\n') {
                        let first = first.split("; and ").next().unwrap();
                        *said = format!("{}\n{rest}", first.split(" in context for").next().unwrap());
                    }
                });
                said
            };
            let full = found(&Validator::new(schema().clone()));
            let schema = representative(&draft).map_or_else(|| schema().clone(), |one| schema_of_one(one).unwrap());
            assert_eq!(found(&Validator::new(schema)), full, "{text}");
            told_apart.insert(full.is_empty());
        }
        assert_eq!(told_apart.len(), 2, "some are right and some are wrong");
    }
}
