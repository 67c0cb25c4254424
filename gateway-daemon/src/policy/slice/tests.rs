//! A slice gives the answer of the whole set.

use std::{collections::BTreeSet, time::SystemTime};

use proptest::{prelude::*, sample::select, sample::subsequence};

use super::*;
use crate::{
    policy::{PolicySet, Source},
    sql::Name,
};

const PRINCIPALS: &[&str] = &[
    "principal",
    "principal is Agent",
    "principal is Group",
    "principal == Agent::\"a\"",
    "principal in Agent::\"b\"",
    "principal in Group::\"corp/x\"",
    "principal == Group::\"corp/x\"",
    "principal is Agent in Group::\"corp/y\"",
];
const ACTIONS: &[&str] = &[
    "action",
    "action in Action::\"read\"",
    "action == Action::\"read\"",
    "action == Action::\"select\"",
    "action in [Action::\"write\", Action::\"explain\"]",
    "action in [Action::\"unknown\"]",
];
const RESOURCES: &[&str] = &[
    "resource",
    "resource is Table",
    "resource is Connection",
    "resource in Connection::\"c\"",
    "resource == Connection::\"c\"",
    "resource in Database::\"c/d\"",
    "resource == Database::\"c/d\"",
    "resource in Schema::\"c/d/s\"",
    "resource == Schema::\"c/d/s\"",
    "resource == Table::\"c/d/s/t\"",
    "resource in Table::\"c/d/s/a%2Fb\"",
    "resource is Function in Schema::\"c/d/s\"",
    "resource is Table in Database::\"c/d\"",
    "resource is Schema in Schema::\"c/d/s\"",
    "resource in Setting::\"c/d/s\"",
    "resource is Other in Connection::\"c\"",
];
const CONDITIONS: &[&str] = &[
    "",
    "",
    "when { context.allColumns || context.columns.contains(\"x\") }",
    "when { !context.allColumns && [\"x\", \"y\"].containsAll(context.columns) }",
    "unless { resource has schema && resource.schema == \"s\" }",
    "when { principal.subject == \"robot\" }",
    "when { principal in Group::\"corp/y\" || resource in Schema::\"c/d/s\" }",
    "when { principal.subject == \"other\" && 9223372036854775807 + 1 > 0 }",
    "when { context.now.toTime() < duration(\"12h\") && context.protocol == \"postgres\" }",
];

fn policy() -> impl Strategy<Value = String> {
    let effect = select(&["permit", "permit", "forbid"][..]);
    (effect, select(PRINCIPALS), select(ACTIONS), select(RESOURCES), select(CONDITIONS)).prop_map(
        |(effect, principal, action, resource, condition)| {
            format!("{effect} ({principal}, {action}, {resource}) {condition};")
        },
    )
}

fn identity() -> impl Strategy<Value = Identity> {
    let groups = subsequence(vec!["corp/x", "corp/y", "corp/z"], 0..=3);
    (select(&["a", "b"][..]), groups, select(&["robot", "other"][..])).prop_map(|(agent, groups, subject)| Identity {
        agent: agent.into(),
        subject: Subject { issuer: "https://idp.example".into(), subject: subject.into() },
        groups: groups.into_iter().map(|group| Group(group.into())).collect(),
        token_id: None,
        actor: None,
        token_sha256: [0; 32],
        expires: SystemTime::UNIX_EPOCH,
    })
}

fn access() -> impl Strategy<Value = Access> {
    let actions = &[Action::Select, Action::Explain, Action::Insert, Action::Drop, Action::Unknown][..];
    let name = || select(&["s", "t", "a/b", "other"][..]).prop_map(Name::from);
    let object = prop_oneof![
        Just(Object::Database),
        name().prop_map(|schema| Object::Schema { schema }),
        (name(), name()).prop_map(|(schema, name)| Object::Relation { schema, name }),
        (name(), name()).prop_map(|(schema, name)| Object::Function { schema, name }),
        name().prop_map(|name| Object::Setting { name }),
        name().prop_map(|name| Object::Other { kind: "role", name }),
    ];
    let some = |names: Vec<&str>| Columns::Some(names.into_iter().map(Name::from).collect::<BTreeSet<_>>());
    let columns =
        prop_oneof![Just(Columns::None), subsequence(vec!["x", "y", "z"], 1..=3).prop_map(some), Just(Columns::All)];
    (select(actions), object, columns).prop_map(|(action, object, columns)| Access { action, object, columns })
}

fn set(policies: &[String]) -> PolicySet {
    let text: String = policies
        .iter()
        .enumerate()
        .map(|(index, policy)| format!("@id(\"p{index}\") @description(\"d\") {policy}\n"))
        .collect();
    PolicySet::from_sources(&[Source::new("p.cedar", &text)], None).unwrap().set
}

fn query<'a>(identity: &'a Identity, connection: &'a str) -> Query<'a> {
    Query {
        identity,
        connection,
        database: "d",
        protocol: "postgres",
        now: Circumstances::test().now,
        had: crate::policy::Had::Assumed(&[]),
        accesses: &[],
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn a_slice_answers_as_the_whole_set_does(
        policies in prop::collection::vec(policy(), 0..12),
        asked in prop::collection::vec((identity(), access(), select(&["c", "e"][..])), 1..24),
    ) {
        let set = set(&policies);
        // Twice, so that the second answer comes from what was kept.
        for (identity, access, connection) in asked.iter().chain(&asked) {
            let query = query(identity, connection);
            let sliced = set.slices().principal(set.rules(), identity).answer(set.rules(), &query, access);
            let whole = answer_of_all(set.rules(), &query, access);
            prop_assert_eq!((sliced.outcome, sliced.policies), (whole.outcome, whole.policies));
        }
    }
}

#[test]
fn hundreds_of_policies_for_others_leave_a_slice_as_it_was() {
    let own = "permit (principal in Group::\"corp/x\", action == Action::\"select\", resource);".to_owned();
    let others = (0..200).flat_map(|index| {
        [
            format!("permit (principal in Group::\"corp/g{index}\", action, resource);"),
            format!("forbid (principal in Group::\"corp/x\", action, resource == Table::\"c/d/s/t{index}\");"),
            "permit (principal, action in Action::\"ddl\", resource);".to_owned(),
        ]
    });
    let set = set(&std::iter::once(own).chain(others).collect::<Vec<_>>());
    let subject = Subject { issuer: "i".into(), subject: "s".into() };
    let identity = Identity {
        agent: "a".into(),
        subject,
        groups: vec![Group("corp/x".into())],
        token_id: None,
        actor: None,
        token_sha256: [0; 32],
        expires: SystemTime::UNIX_EPOCH,
    };
    let principal = set.slices().principal(set.rules(), &identity);
    let sizes = ["t7", "other"].map(|name| {
        let object = Object::Relation { schema: "s".into(), name: name.into() };
        principal.matching(set.rules(), Action::Select, &Resource::new("c", "d", &object)).len()
    });
    assert_eq!(sizes, [2, 1]);
}

#[test]
fn what_is_kept_is_bounded() {
    let set = set(&["permit (principal, action, resource);".to_owned()]);
    let subject = Subject { issuer: "i".into(), subject: "s".into() };
    let identity = |index: usize| Identity {
        agent: index.to_string().into(),
        subject: subject.clone(),
        groups: Vec::new(),
        token_id: None,
        actor: None,
        token_sha256: [0; 32],
        expires: SystemTime::UNIX_EPOCH,
    };
    for index in 0..MAX_PRINCIPALS + 10 {
        set.slices().principal(set.rules(), &identity(index));
    }
    assert!(set.slices().principals.read().unwrap().len() <= MAX_PRINCIPALS);
    let one = identity(0);
    let principal = set.slices().principal(set.rules(), &one);
    for index in 0..MAX_OBJECTS + 10 {
        let object = Object::Setting { name: index.to_string().into() };
        let access = Access { action: Action::Show, object, columns: Columns::None };
        assert_eq!(principal.answer(set.rules(), &query(&one, "c"), &access).outcome, Outcome::Permitted);
    }
    assert!(principal.slices.read().unwrap().len() <= MAX_OBJECTS);
}
