use std::{collections::BTreeMap, time::SystemTime};

use proptest::prelude::*;

use super::*;
use crate::{
    identity::{Group, Identity, Subject},
    policy::{Decision, Denier, Had, Lifts, Mode, PolicySet, Query, Source, Verdict},
    record::{self, DecisionRecord, SessionId},
    sql::{Access, Columns, Name, Object},
};

/// One access by somebody somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    agent: String,
    groups: Vec<String>,
    connection: String,
    database: String,
    access: Access,
}

impl Asked {
    fn identity(&self) -> Identity {
        Identity {
            agent: self.agent.as_str().into(),
            subject: Subject { issuer: "https://idp.example".into(), subject: "robot".into() },
            groups: self.groups.iter().map(|group| Group(group.as_str().into())).collect(),
            token_id: None,
            actor: None,
            token_sha256: [0; 32],
            expires: SystemTime::UNIX_EPOCH,
        }
    }

    fn decide(&self, set: &PolicySet) -> Decision {
        set.decide(&Query {
            identity: &self.identity(),
            connection: &self.connection,
            database: &self.database,
            protocol: "postgres",
            now: SystemTime::UNIX_EPOCH,
            had: Had::Assumed(&[]),
            accesses: std::slice::from_ref(&self.access),
        })
    }

    fn is_allowed(&self, set: &PolicySet) -> bool {
        self.decide(set).verdict == Verdict::Allow
    }

    /// What the record has of it under these policies; `None` where they allow it.
    fn row(&self, set: &PolicySet, seq: u64, mode: Mode) -> Option<Row> {
        let decision = self.decide(set).under(mode);
        let (Verdict::Deny { by: Denier::Policies(denied), .. } | Verdict::Lifted { denied, .. }) = &decision.verdict
        else {
            return None;
        };
        let accesses = denied.iter().map(|denied| record::DeniedAccess {
            action: denied.action.name().into(),
            kind: denied.kind.into(),
            id: denied.id.clone(),
            columns: match &denied.columns {
                Columns::Some(names) => names.iter().map(ToString::to_string).collect(),
                Columns::None | Columns::All => Vec::new(),
            },
            all_columns: denied.columns == Columns::All,
            forbidden_by: denied.forbidden_by.iter().map(ToString::to_string).collect(),
            unmet: denied.unmet.iter().map(ToString::to_string).collect(),
        });
        let observed = decision.for_record().lifted.is_some();
        Some(self.row_with(seq, Some(record::Denied { observed, accesses: accesses.collect() })))
    }

    fn row_with(&self, seq: u64, denied: Option<record::Denied>) -> Row {
        let session = SessionInfo {
            id: SessionId(seq),
            agent: self.agent.clone(),
            issuer: "https://idp.example".into(),
            subject: "robot".into(),
            groups: self.groups.clone(),
            connection: self.connection.clone(),
            run: "run-1".into(),
        };
        let request = Request {
            session: session.id,
            request: 1,
            kind: RequestKind::Simple,
            sql: String::new(),
            parameters: Vec::new(),
            formats: Vec::new(),
            types: Vec::new(),
            accesses: Vec::new(),
            decision: DecisionRecord {
                allowed: false,
                policies: Vec::new(),
                set: [0; 32],
                reason: "no policy permits it".into(),
                denied,
            },
            runs: None,
        };
        Row {
            seq,
            time: Time(1_795_435_200_000_000 + seq * 1_000_000),
            session: Some(session.into()),
            content: RowContent::Event(Box::new(Event::Request(request))),
        }
    }
}

fn set(text: &str) -> PolicySet {
    PolicySet::from_sources(&[Source::new("suggested.cedar", text)], None)
        .unwrap_or_else(|errors| panic!("{errors}\n{text}"))
        .set
}

fn claude(action: Action, object: Object, columns: Columns) -> Asked {
    Asked {
        agent: "claude".into(),
        groups: vec!["corp/readers".into(), "corp/eng".into()],
        connection: "orders".into(),
        database: "shop".into(),
        access: Access { action, object, columns },
    }
}

fn table(schema: &str, name: &str) -> Object {
    Object::Relation { schema: schema.into(), name: name.into() }
}

fn columns(names: &[&str]) -> Columns {
    Columns::Some(names.iter().map(|&name| Name::from(name)).collect())
}

/// What is suggested for what `policies` deny.
fn suggest(policies: &str, asked: &[Asked], grain: Grain, whom: Whom) -> String {
    let set = set(policies);
    let mut suggester = Suggester::new(grain, whom);
    for (seq, asked) in (1..).zip(asked) {
        let mode = if seq % 2 == 0 { Mode::Enforce } else { Mode::Observe(Lifts::Everything) };
        suggester.row(&asked.row(&set, seq, mode).expect("it is denied"));
    }
    suggester.finish().to_string()
}

const FORBIDS: &str = r#"
@id("no-audit") @description("Nobody touches the audit schema.")
forbid(principal, action, resource in Schema::"orders/shop/audit");
"#;

/// A day of an agent at work.
fn ordinary() -> Vec<Asked> {
    let customers = || table("public", "customers");
    vec![
        claude(Action::Transaction, Object::Database, Columns::None),
        claude(Action::Select, customers(), columns(&["id", "name"])),
        claude(Action::Select, customers(), columns(&["email"])),
        claude(Action::Update, customers(), columns(&["name"])),
        claude(Action::Delete, customers(), Columns::None),
        claude(Action::Select, table("public", "orders"), Columns::All),
        claude(Action::Select, table("sales", "orders"), Columns::None),
        claude(Action::Call, Object::Function { schema: "public".into(), name: "add_vat".into() }, Columns::None),
        claude(Action::Set, Object::Setting { name: "search_path".into() }, Columns::None),
        claude(Action::Create, Object::Schema { schema: "public".into() }, Columns::None),
        claude(Action::Trigger, customers(), Columns::None),
        claude(Action::Role, Object::Other { kind: "role", name: "app".into() }, Columns::None),
        claude(Action::Unknown, Object::Database, Columns::None),
        claude(Action::Select, table("audit", "log"), Columns::All),
    ]
}

#[test]
fn what_is_proposed_says_what_it_rests_on_and_what_is_left_says_why() {
    let text = suggest(FORBIDS, &ordinary(), Grain::Table, Whom::Agent);
    insta::assert_snapshot!(text);
    insta::assert_snapshot!("by-column-for-groups", suggest(FORBIDS, &ordinary(), Grain::Column, Whom::Groups));
    insta::assert_snapshot!("by-schema", suggest(FORBIDS, &ordinary(), Grain::Schema, Whom::Agent));
}

#[test]
fn the_order_of_rows_does_not_matter_to_what_is_proposed() {
    let set = set(FORBIDS);
    let rows: Vec<Row> = (1..)
        .zip(ordinary().iter().chain(&ordinary()))
        .map(|(seq, asked)| asked.row(&set, seq, Mode::Enforce).unwrap())
        .collect();
    let of = |rows: &mut dyn Iterator<Item = &Row>| {
        let mut suggester = Suggester::new(Grain::Column, Whom::Agent);
        rows.for_each(|row| suggester.row(row));
        suggester.finish().to_string()
    };
    assert_eq!(of(&mut rows.iter()), of(&mut rows.iter().rev()));
}

#[test]
fn a_statement_counts_once_for_each_thing_that_it_does() {
    let asked = claude(Action::Select, table("public", "customers"), columns(&["id"]));
    let access = |columns: &[&str]| record::DeniedAccess {
        action: "select".into(),
        kind: "Table".into(),
        id: "orders/shop/public/customers".into(),
        columns: columns.iter().map(ToString::to_string).collect(),
        all_columns: false,
        forbidden_by: Vec::new(),
        unmet: Vec::new(),
    };
    let accesses = vec![access(&["id"]), access(&["name"])];
    let mut suggester = Suggester::new(Grain::Table, Whom::Agent);
    suggester.row(&asked.row_with(1, Some(record::Denied { observed: true, accesses })));
    // Refused by Weir itself, and a row that nobody can read.
    suggester.row(&asked.row_with(2, None));
    let content = RowContent::Unreadable("damaged".into());
    suggester.row(&Row { seq: 3, time: Time::default(), session: None, content });
    let text = suggester.finish().to_string();
    assert!(
        text.contains("select: 1 statement (1 let pass, 0 refused)") && text.contains("columns: id, name"),
        "{text}"
    );
    assert!(text.contains("Also 1 refusals by Weir itself") && text.contains("Also 1 events"), "{text}");
}

#[test]
fn where_a_policy_permits_under_a_condition_no_permit_without_it_is_proposed() {
    let set = set(r#"
        @id("volume") @description("A little of everything.")
        permit (principal, action in Action::"read", resource) when { context.rowsThisHour < 0 };
        @id("columns") @description("Names of customers.")
        permit (principal, action == Action::"select", resource == Table::"orders/shop/public/customers")
        when { !context.allColumns && ["name"].containsAll(context.columns) };
        @id("others") @description("Somebody else's.")
        permit (principal == Agent::"codex", action, resource) when { context.bytesThisHour < 0 };
    "#);
    let mut suggester = Suggester::new(Grain::Table, Whom::Agent);
    for (seq, asked) in [
        claude(Action::Select, table("public", "customers"), columns(&["ssn"])),
        claude(Action::Select, table("public", "orders"), columns(&["id"])),
        claude(Action::Update, table("public", "orders"), columns(&["id"])),
    ]
    .iter()
    .enumerate()
    {
        suggester.row(&asked.row(&set, u64::try_from(seq).unwrap(), Mode::Enforce).unwrap());
    }
    let text = suggester.finish().to_string();
    let (proposed, left) = text.split_once("// NOT PROPOSED").unwrap();
    assert_eq!(proposed.matches("permit (").count(), 1, "{text}");
    assert!(proposed.contains("Action::\"update\""), "{text}");
    for part in [
        "select on Table orders/shop/public/customers, by agent claude: `columns`, `volume` permits it under a condition",
        "select on Table orders/shop/public/orders, by agent claude: `volume` permits it under a condition",
    ] {
        assert!(left.contains(part), "no `{part}` in {text}");
    }
    assert!(!left.contains("others"), "{text}");
}

#[test]
fn nothing_denied_is_said() {
    let text = Suggester::new(Grain::Table, Whom::Agent).finish().to_string();
    assert_eq!(text, "// The policies denied nothing: there is nothing to propose.\n");
}

/// Names that would break out of a string or a comment, pass for another, or turn a line around.
const HOSTILE: &[&str] = &[
    "x\"); permit(principal, action, resource); //",
    "x\\\"",
    "\\",
    "a\nb",
    "a\r// permit(principal, action, resource);\r",
    "*/ permit(principal, action, resource); /*",
    "\u{202e}resu\u{202c}",
    "\u{2066}x\u{2069}",
    "p\u{430}yments",
    "zero\u{200b}width\u{feff}",
    "\u{1b}[2J\u{1b}[31m",
    "\u{0}",
    "line\u{2028}separator\u{85}",
    "\u{5d0}\u{5d1}/\u{5d2}",
    "a\u{301}\u{302}\u{303}\u{304}",
    "\u{3164}",
    "%2F%25/%",
    "${id}",
    "\u{e0041}\u{e0042}",
    "Action::\"admin\"",
    "⟦… 5 more characters⟧",
    "\u{10ffff}\u{fffd}",
    " ",
    "..",
    "'; DROP TABLE x; --",
];

#[test]
fn hostile_names_break_out_of_nothing_and_deceive_nobody() {
    for whom in [Whom::Agent, Whom::Groups] {
        for grain in [Grain::Column, Grain::Table, Grain::Schema] {
            let mut seen = Vec::new();
            for name in HOSTILE {
                let place = Asked {
                    agent: (*name).to_owned(),
                    groups: vec![format!("corp/{name}"), (*name).to_owned() + "/x"],
                    connection: (*name).to_owned(),
                    database: (*name).to_owned(),
                    access: Access {
                        action: Action::Select,
                        object: table(name, name),
                        columns: columns(&[name, "id"]),
                    },
                };
                let other = |object| Asked {
                    access: Access { object, columns: Columns::None, ..place.access.clone() },
                    ..place.clone()
                };
                seen.push(other(Object::Setting { name: (*name).into() }));
                seen.push(other(Object::Other { kind: "role", name: (*name).into() }));
                seen.push(place);
            }
            let text = suggest("", &seen, grain, whom);
            for shown in text.chars().filter(|&c| c != '\n') {
                assert!(
                    line(&shown.to_string(), 1).starts_with(shown) || "⟦⟧\u{301}\u{302}".contains(shown),
                    "{shown:?} in\n{text}"
                );
            }
            let set = set(&text);
            for asked in &seen {
                assert!(asked.is_allowed(&set), "{asked:?}\n{text}");
                let stranger = Asked { agent: "mallory".into(), groups: Vec::new(), ..asked.clone() };
                assert!(!stranger.is_allowed(&set), "{asked:?}\n{text}");
            }
            assert!(!claude(Action::Select, table("public", "customers"), Columns::None).is_allowed(&set), "{text}");
            if (grain, whom) == (Grain::Table, Whom::Agent) {
                insta::assert_snapshot!("hostile", text);
            }
        }
    }
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[ab]", 1 => "[a/%\"\\\\.]{1,3}", 1 => "\\PC{1,3}"]
}

fn object() -> impl Strategy<Value = Object> {
    let short = || name().prop_map(|name| name.as_str().into());
    prop_oneof![
        1 => Just(Object::Database),
        1 => short().prop_map(|schema| Object::Schema { schema }),
        6 => (short(), short()).prop_map(|(schema, name)| Object::Relation { schema, name }),
        2 => (short(), short()).prop_map(|(schema, name)| Object::Function { schema, name }),
        1 => short().prop_map(|name| Object::Setting { name }),
        1 => (prop_oneof![Just("role"), Just("language")], short()).prop_map(|(kind, name)| Object::Other { kind, name }),
    ]
}

fn asked() -> impl Strategy<Value = Asked> {
    let actions = [Action::Select, Action::Update, Action::Drop, Action::Set, Action::Grant, Action::Unknown];
    let some = proptest::collection::btree_set(name(), 1..3)
        .prop_map(|names| Columns::Some(names.iter().map(|name| name.as_str().into()).collect()));
    let columns = prop_oneof![Just(Columns::None), Just(Columns::All), some];
    let groups =
        proptest::sample::subsequence(vec!["corp/a".to_owned(), "corp/b".to_owned(), "other/a".to_owned()], 0..3);
    ("[cd]", groups, "[ox]", name(), proptest::sample::select(actions.to_vec()), object(), columns).prop_map(
        |(agent, groups, connection, database, action, object, columns)| Asked {
            agent,
            groups,
            connection,
            database,
            access: Access { action, object, columns },
        },
    )
}

/// Whether one that was seen stands for another of the same grain.
fn covers(seen: &[Asked], asked: &Asked, grain: Grain, whom: Whom) -> bool {
    let Access { action, object, columns } = &asked.access;
    let same_place = |one: &&Asked| {
        let who = match whom {
            Whom::Groups if !one.groups.is_empty() => one.groups.iter().all(|group| asked.groups.contains(group)),
            Whom::Groups | Whom::Agent => one.agent == asked.agent,
        };
        who && (&one.connection, &one.database, one.access.action) == (&asked.connection, &asked.database, *action)
    };
    if matches!(action.class(), Class::Admin | Class::Unknown) {
        return false;
    }
    let in_reach = |one: &&Asked| match (grain, &one.access.object, object) {
        (Grain::Schema, Object::Relation { schema: one, .. }, Object::Relation { schema: other, .. })
        | (Grain::Schema, Object::Function { schema: one, .. }, Object::Function { schema: other, .. }) => one == other,
        (_, one, other) => one == other,
    };
    // Columns of what one principal was seen to name add up.
    let mut by_grantee: BTreeMap<_, (BTreeSet<Name>, bool)> = BTreeMap::new();
    for one in seen.iter().filter(same_place).filter(in_reach) {
        let grantee = Suggester::new(grain, whom).grantee(&session(one));
        let (names, all) = by_grantee.entry(grantee).or_default();
        match &one.access.columns {
            Columns::None => {}
            Columns::Some(some) => names.extend(some.iter().cloned()),
            Columns::All => *all = true,
        }
    }
    let by_columns = grain == Grain::Column
        && matches!(object, Object::Relation { .. })
        && matches!(action.class(), Class::Read | Class::Write);
    by_grantee.values().any(|(names, all)| {
        !by_columns
            || *all
            || match columns {
                Columns::None => true,
                Columns::Some(some) => some.is_subset(names),
                Columns::All => false,
            }
    })
}

fn session(asked: &Asked) -> SessionInfo {
    let row = asked.row_with(1, None);
    SessionInfo::clone(row.session.as_deref().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// What was seen is permitted (but `admin` and `unknown`), and of all else only what the grain stands for.
    #[test]
    fn what_was_seen_is_permitted_and_nothing_that_was_not(
        seen in proptest::collection::vec(asked(), 1..6),
        others in proptest::collection::vec(asked(), 0..40),
        grain in proptest::sample::select(vec![Grain::Column, Grain::Table, Grain::Schema]),
        whom in proptest::sample::select(vec![Whom::Agent, Whom::Groups]),
    ) {
        let text = suggest("", &seen, grain, whom);
        let set = set(&text);
        // Near misses: each that was seen, with one thing of another.
        let near = seen.iter().flat_map(|one| others.iter().flat_map(move |other| [
            Asked { agent: other.agent.clone(), ..one.clone() },
            Asked { groups: other.groups.clone(), ..one.clone() },
            Asked { connection: other.connection.clone(), ..one.clone() },
            Asked { database: other.database.clone(), ..one.clone() },
            Asked { access: Access { action: other.access.action, ..one.access.clone() }, ..one.clone() },
            Asked { access: Access { object: other.access.object.clone(), ..one.access.clone() }, ..one.clone() },
            Asked { access: Access { columns: other.access.columns.clone(), ..one.access.clone() }, ..one.clone() },
        ]));
        for one in &seen {
            let proposed = !matches!(one.access.action.class(), Class::Admin | Class::Unknown);
            prop_assert_eq!(one.is_allowed(&set), proposed, "{:?}\n{}", one, text);
        }
        for asked in near.chain(others.iter().cloned()) {
            prop_assert_eq!(asked.is_allowed(&set), covers(&seen, &asked, grain, whom), "{:?}\n{}", asked, text);
        }
    }
}
