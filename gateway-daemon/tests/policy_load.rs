//! Folders of policies: what loads, and how each fault is told to the person who must mend it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail with them")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use gateway_daemon::{
    identity::{Identity, Subject},
    policy::{
        Had, Known, LoadErrors, Loaded, Policies, PolicyId, PolicySet, Query, Source, Verdict, check, check_guarded,
        doc,
    },
    sql::{Access, Action, Columns, Object},
};

fn source(name: &str, text: &str) -> Source {
    Source::new(name, text)
}

fn load(text: &str) -> Result<Loaded, LoadErrors> {
    PolicySet::from_sources(&[source("test.cedar", text)], None)
}

fn warnings(text: &str, known: Option<&Known>) -> String {
    let loaded = PolicySet::from_sources(&[source("test.cedar", text)], known).unwrap();
    loaded.warnings.iter().map(|warning| warning.render("warning")).collect::<Vec<_>>().join("\n\n")
}

fn policy(id: &str, rest: &str) -> String {
    format!("@id(\"{id}\") @description(\"For the test.\")\n{rest}\n")
}

fn nobody() -> Identity {
    Identity {
        agent: "claude".into(),
        subject: Subject { issuer: "https://idp.example".into(), subject: "robot".into() },
        groups: Vec::new(),
        token_id: None,
        actor: None,
        token_sha256: [0; 32],
        expires: SystemTime::UNIX_EPOCH,
    }
}

fn known() -> Known {
    Known {
        agents: ["claude".to_owned()].into(),
        issuers: ["corp".to_owned()].into(),
        connections: ["orders".to_owned()].into(),
    }
}

/// One file for each fault; what people are shown stands beside it.
#[test]
fn every_fault_is_told_with_its_place_and_its_mend() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policy_bad");
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("policy_bad");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "cedar") {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let errors = PolicySet::from_sources(&[source(&name, &text)], None).expect_err(&name);
        settings.bind(|| insta::assert_snapshot!(path.file_stem().unwrap().to_str().unwrap(), errors.to_string()));
        seen += 1;
    }
    assert_eq!(seen, 25);
}

#[test]
fn faults_of_all_files_are_told_at_once_in_their_order() {
    let errors = PolicySet::from_sources(
        &[source("a.cedar", "permit(principal, action, resource);"), source("b.cedar", &policy("b", "permit(;"))],
        None,
    )
    .unwrap_err();
    let places: Vec<_> = errors
        .faults
        .iter()
        .map(|fault| fault.place.as_ref().map(|place| format!("{}:{}:{}", place.file, place.line, place.column)))
        .collect();
    assert_eq!(places.into_iter().flatten().collect::<Vec<_>>(), ["a.cedar:1:1", "a.cedar:1:1", "b.cedar:2:8"]);
}

#[test]
fn the_examples_load_without_a_warning_and_permit_neither_unknown_nor_admin() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let loaded = PolicySet::load(&folder, Some(&known())).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let document = doc(&loaded.set, Some(&known()));
    for never in ["admin", "unknown", "code"] {
        assert!(document.nobody.iter().any(|name| name == never), "{never}: {:?}", document.nobody);
    }
    insta::assert_snapshot!(document.to_string());
}

#[test]
fn a_policy_that_can_never_match_is_warned_of() {
    let never =
        policy("never", "permit(principal, action, resource) when { resource is Table && resource is Function };");
    insta::assert_snapshot!(warnings(&never, None));
    for never in [
        "permit(principal is Group, action, resource);",
        "permit(principal, action == Action::\"read\", resource);",
        "permit(principal, action, resource == Connection::\"orders\");",
        "permit(principal, action, resource is Table in Table::\"orders/shop/public/t\") when { resource is Setting };",
    ] {
        assert!(warnings(&policy("p", never), None).contains("can never match"), "{never}");
    }
    for can in [
        "permit(principal is Agent, action, resource);",
        "permit(principal, action in Action::\"read\", resource);",
        "permit(principal, action, resource in Connection::\"orders\");",
        "permit(principal, action, resource is Table in Database::\"orders/shop\") when { resource.schema == \"x\" };",
    ] {
        assert_eq!(warnings(&policy("p", can), None), "", "{can}");
    }
}

#[test]
fn names_that_the_configuration_does_not_know_are_warned_of() {
    let text =
        policy("p", "permit(principal in Group::\"crop/x\", action, resource in Schema::\"oders/shop/public\");")
            + &policy("q", "forbid(principal == Agent::\"cluade\", action, resource);")
            + &policy("r", "permit(principal in Group::\"corp/x\", action, resource in Database::\"orders/shop\");");
    insta::assert_snapshot!(warnings(&text, Some(&known())));
    assert_eq!(warnings(&text, None), "");
}

#[test]
fn a_set_is_named_by_its_policies_and_not_by_files_order_or_comments() {
    let one = policy("one", "permit(principal, action, resource);");
    let two = policy("two", "forbid(principal, action, resource);");
    let id = |sources: &[Source]| PolicySet::from_sources(sources, None).unwrap().set.id();
    let base = id(&[source("a.cedar", &one), source("b.cedar", &two)]);
    assert_eq!(base, id(&[source("z.cedar", &format!("// a comment;\n{two}\n\n// another\n{one}"))]));
    assert_ne!(base, id(&[source("a.cedar", &one)]));
    assert_ne!(base, id(&[source("a.cedar", &(one.clone() + &two.replace("two", "three")))]));
    assert_ne!(base, id(&[source("a.cedar", &(one + &two.replace("forbid", "permit")))]));
    // Stable over versions: the record names sets by it.
    insta::assert_snapshot!(base, @"618f32d699c35ed2ecbddf55fb9d71044590435eb2663ccbe9867b3f17552e27");
}

#[test]
fn what_is_no_plain_file_is_refused_and_what_looks_like_policies_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("a.cedar"), policy("a", "permit(principal, action, resource);")).unwrap();
    fs::write(path("README.md"), "read me").unwrap();
    fs::write(path("b.cedar.bak"), "nothing").unwrap();
    fs::write(path(".hidden.cedar"), "nothing").unwrap();
    fs::create_dir(path("more")).unwrap();
    fs::create_dir(path("tests")).unwrap();
    let told = check(dir.path(), None);
    assert_eq!(told.exit_code(), 0);
    let ignored: Vec<_> = told.warnings.iter().map(|warning| warning.kind.to_string()).collect();
    assert_eq!(ignored.len(), 3, "{ignored:?}");

    symlink(path("a.cedar"), path("link.cedar")).unwrap();
    fs::create_dir(path("folder.cedar")).unwrap();
    fs::write(path("latin.cedar"), b"// caf\xe9").unwrap();
    fs::File::create(path("large.cedar")).unwrap().set_len((8 << 20) + 1).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("socket.cedar")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, path("pipe.cedar"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    let told = check(dir.path(), None);
    assert_eq!(told.exit_code(), 1);
    insta::assert_snapshot!(told.to_string());
}

#[test]
fn a_folder_that_is_not_there_is_an_error_and_an_empty_one_refuses_everything() {
    let dir = tempfile::tempdir().unwrap();
    assert!(check(dir.path(), None).to_string().contains("there is no policy: every statement is refused"));
    assert_eq!(check(&dir.path().join("none"), None).exit_code(), 1);
}

/// Cedar reads and drops expressions by recursion: what is over the limit is refused before, and what is at it works,
/// on the small stack that tests have.
#[test]
fn a_policy_too_large_or_too_deep_is_refused_and_one_at_the_limit_loads() {
    let when = |condition: String| policy("p", &format!("permit(principal, action, resource) when {{ {condition} }};"));
    let parentheses = |deep: usize| when(format!("{}true{}", "(".repeat(deep), ")".repeat(deep)));
    let ifs = |deep: usize| when("if true then ".repeat(deep) + "true" + &" else false".repeat(deep));
    let chain = |long: usize| when("true".to_owned() + &" && true".repeat(long));
    let set = |bytes: usize| when(format!("[\"{}\"].contains(resource.name)", "x".repeat(bytes)));
    for (what, at, over) in [
        ("65536 bytes", set(65_000), set(66_000)),
        ("16 brackets", parentheses(15), parentheses(16)),
        ("16 brackets", parentheses(15), parentheses(30_000)),
        ("8 `if`s", ifs(8), ifs(9)),
        ("512 operators", chain(256), chain(257)),
        ("512 operators", chain(10), chain(8_000)),
    ] {
        let set = load(&at).unwrap_or_else(|errors| panic!("{what}: {errors}")).set;
        let access = Access { action: Action::Select, object: Object::Database, columns: Columns::None };
        let decision = set.decide(&Query {
            identity: &nobody(),
            connection: "orders",
            database: "shop",
            protocol: "postgres",
            now: SystemTime::UNIX_EPOCH,
            had: Had::Assumed(&[]),
            accesses: &[access],
        });
        assert_eq!(decision.verdict == Verdict::Allow, what != "65536 bytes", "{what}");
        let told = load(&over).unwrap_err().to_string();
        assert!(told.contains(&format!("a policy has more than {what}")), "{told}");
    }
}

#[test]
fn a_reload_is_all_or_nothing_and_tells_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let permit = |id: &str| policy(id, "permit(principal, action, resource);");
    write("a.cedar", &(permit("kept") + &permit("changed") + &permit("removed")));
    let policies = Policies::new(PolicySet::load(dir.path(), None).unwrap().set);
    let before = policies.current();

    write("b.cedar", "permit(");
    assert!(policies.reload(dir.path(), None).is_err());
    assert!(Arc::ptr_eq(&before, &policies.current()));

    write("b.cedar", &permit("added"));
    write("a.cedar", &(permit("kept") + &policy("changed", "forbid(principal, action, resource);")));
    let reload = policies.reload(dir.path(), None).unwrap();
    let ids = |ids: &[PolicyId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(ids(&reload.added), ["added"]);
    assert_eq!(ids(&reload.removed), ["removed"]);
    assert_eq!(ids(&reload.changed), ["changed"]);
    assert_eq!((reload.before, reload.now), (before.id(), policies.current().id()));
}

#[test]
fn a_folder_that_others_can_write_is_refused() {
    let owner = rustix::process::geteuid().as_raw();
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("policies");
    let file = folder.join("a.cedar");
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    fs::create_dir(&folder).unwrap();
    fs::write(&file, "").unwrap();
    mode(&folder, 0o755);
    mode(&file, 0o644);
    check_guarded(&folder, owner).unwrap();

    for (path, bad, good) in
        [(&file, 0o646, 0o644), (&folder, 0o1757, 0o755), (&dir.path().to_path_buf(), 0o707, 0o700)]
    {
        mode(path, bad);
        let faults = check_guarded(&folder, owner).unwrap_err();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].to_string().contains("can be written by everybody"), "{}", faults[0]);
        mode(path, good);
        check_guarded(&folder, owner).unwrap();
    }
    assert!(check_guarded(&folder.join("none"), owner).is_err());
    let stranger = 54_321;
    std::os::unix::fs::chown(&file, Some(stranger), None).unwrap();
    assert!(check_guarded(&folder, owner).unwrap_err()[0].to_string().contains("belongs to user 54321"));
    check_guarded(&folder, stranger).unwrap_or_default();
    std::os::unix::fs::chown(&file, Some(owner), Some(stranger)).unwrap();
    mode(&file, 0o664);
    assert!(check_guarded(&folder, owner).unwrap_err()[0].to_string().contains("can be written by group 54321"));
}
