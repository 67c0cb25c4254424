//! `weir policy test`: the example policies decide as their tests say, and a test that does not hold is told.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies")
}

/// Exit status, what was said, and the errors.
fn run(file: &Path, more: &[&str]) -> io::Result<(Option<i32>, String, String)> {
    let mut weir = Command::new(env!("CARGO_BIN_EXE_weir"));
    let output = weir.args(["policy", "test"]).arg(file).args(more).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

#[test]
fn the_example_policies_decide_as_their_tests_say() {
    let mut files = 0;
    for file in fs::read_dir(examples().join("tests")).expect("a folder") {
        let (status, out, errors) = run(&file.expect("a file").path(), &[]).expect("weir");
        assert_eq!((status, &*errors), (Some(0), ""), "{out}");
        files += 1;
    }
    assert!(files > 0);
}

#[test]
fn a_case_that_comes_out_otherwise_is_told_with_its_line_and_what_decided() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("wrong.toml");
    let cases = r#"[defaults]
agent = "claude"
connection = "orders"
database = "shop"
groups = ["corp/writers"]
[[table]]
name = "public.articles"
columns = ["id", "price"]
[[case]]
name = "the price"
sql = "UPDATE articles SET price = 0"
expect = "allow"
[[case]]
sql = "SELECT id FROM articles"
expect = "allow"
policy = "readers-read"
[[case]]
sql = "SELECT id FROM articles"
expect = "allow"
policy = "writers-rows"
"#;
    fs::write(&file, cases).expect("a file");
    let policies = examples().display().to_string();
    let (status, out, errors) = run(&file, &["--policies", &policies]).expect("weir");
    assert_eq!((status, &*errors), (Some(1), ""), "{out}");
    let told: Vec<_> = out.lines().filter(|line| line.starts_with("FAILED") || line.contains("expected")).collect();
    assert!(told[0].starts_with("FAILED the price (") && told[0].ends_with("wrong.toml, line 9)"), "{out}");
    assert!(told[1].starts_with("    expected allow, found deny by `writers-not-the-price`: Prices change"), "{out}");
    assert!(told[2].ends_with("wrong.toml, line 13)"), "{out}");
    assert_eq!(told[3], "    expected allow by `readers-read`, found allow by `writers-rows`");
    assert!(out.ends_with("wrong.toml: 3 cases, 2 failed\n"), "{out}");
}

#[test]
fn a_file_that_is_no_file_of_tests_says_what_it_lacks() {
    let folder = tempfile::tempdir().expect("a folder");
    let case = "[[case]]\nsql = \"SELECT 1\"\nexpect = \"allow\"\n";
    for (name, text, fault) in [
        ("empty", "", "has no [[case]]"),
        ("no-folder", case, "names no folder of policies"),
        ("no-agent", &format!("policies = \".\"\n{case}"), "`connection` is neither here nor in [defaults]"),
        ("unknown-key", "polices = \".\"", "unknown field `polices`"),
        ("maybe", "[[case]]\nsql = \"SELECT 1\"\nexpect = \"maybe\"\n", "unknown variant `maybe`"),
    ] {
        let file = folder.path().join(name);
        fs::write(&file, text).expect("a file");
        let (status, out, errors) = run(&file, &[]).expect("weir");
        assert_eq!((status, &*out), (Some(1), ""), "{name}");
        assert!(errors.contains(fault), "{name}: {errors}");
    }
}
